"""What a refusal may show of a weight file: names and sentences of bounded length."""

import contextlib
from collections.abc import Iterator, Sequence

from data_tfds.errors import UserError

_LONGEST_NAME = 120  # characters
_LONGEST_REASON = 200  # characters
_MOST_PROBLEMS = 50


def shown(name: str) -> str:
    """`name`, which came from a file, fit for a terminal: cut, and without control characters."""
    cut = name[:_LONGEST_NAME] + ("..." if len(name) > _LONGEST_NAME else "")
    return "".join(character if character.isprintable() else "?" for character in cut)


def listed(problems: Sequence[str], separator: str = "; ") -> str:
    """All `problems` in one text; beyond fifty, how many more there are."""
    more = len(problems) - _MOST_PROBLEMS
    rest = [f"and {more} more"] if more > 0 else []
    return separator.join([*problems[:_MOST_PROBLEMS], *rest])


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever a damaged file provokes inside the block into one `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = "".join(c if c.isprintable() else " " for c in str(error)[: 10 * _LONGEST_REASON])
        what = " ".join(text.split())[:_LONGEST_REASON] or type(error).__name__
        raise UserError(
            f"{name}: the file is truncated, corrupt or no checkpoint ({what}); "
            "fetch it again and compare its size"
        ) from error
