"""Names of a file -> canonical names, by a table of which every key must meet exactly one row."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from facenet_jax.weights.files import as_float32
from facenet_jax.weights.messages import shown

IGNORED = ""  # the canonical name of what a file holds and a model does not need

Layout = Callable[[np.ndarray], np.ndarray]
Row = tuple[str, str, Layout]  # pattern of their name, canonical name, layout


def same(x: np.ndarray) -> np.ndarray:
    """The layout of what is stored alike."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """[out, in] to [in, out]."""
    return x.T


def image_kernel(x: np.ndarray) -> np.ndarray:
    """[out, in, rows, columns] to [rows, columns, in, out]."""
    return x.transpose(2, 3, 1, 0)


def drop_first(x: np.ndarray) -> np.ndarray:
    """[1, n, D] to [n, D]; what has another first axis stays."""
    return x.reshape(x.shape[1:]) if x.shape[0] == 1 else x


def linear(theirs: str, ours: str) -> list[Row]:
    """Rows of a torch Linear; `theirs` is a pattern."""
    return [
        (theirs + r"\.weight", ours + "/kernel", transpose),
        (theirs + r"\.bias", ours + "/bias", same),
    ]


def norm(theirs: str, ours: str) -> list[Row]:
    """Rows of a torch LayerNorm; `theirs` is a pattern."""
    return [
        (theirs + r"\.weight", ours + "/scale", same),
        (theirs + r"\.bias", ours + "/bias", same),
    ]


Arrays = Mapping[str, np.ndarray]


def as_it_is(canonical: Arrays, flat: Arrays) -> tuple[dict[str, np.ndarray], list[str], str]:
    """The `finish` of a format whose rows say everything."""
    del flat
    return dict(canonical), [], ""


@dataclasses.dataclass(frozen=True)
class Format:
    """One family of ViTs in the names of one publisher."""

    family: str  # "vit", "dinov2", "dinov3" or "clip"
    publisher: str
    marks: tuple[str, ...]  # patterns, each of which the beginning of some name of a file meets
    rows: Sequence[Row]
    # finish(canonical arrays, the file's) -> (canonical arrays, what does not fit, a note): what no
    # single row can say.
    finish: Callable[[Arrays, Arrays], tuple[dict[str, np.ndarray], list[str], str]] = as_it_is

    def meets(self, names: Sequence[str]) -> bool:
        """Whether the names of a file are of this format."""
        return all(any(re.match(mark, name) for name in names) for mark in self.marks)


def translate(
    flat: Mapping[str, np.ndarray], rows: Sequence[Row], source: str
) -> tuple[dict[str, np.ndarray], list[str], list[str], list[str]]:
    """(canonical float32 arrays, names not needed, what does not fit, names without a row).

    The last two are clauses of a refusal. Raises `UserError` for arrays that are no finite floating
    numbers.
    """
    targets: dict[str, tuple[str, Layout]] = {}  # by the names that fill something
    ignored, problems, unknown = [], [], []
    for name in flat:
        found = ((re.fullmatch(pattern, name), ours, layout) for pattern, ours, layout in rows)
        match, ours, layout = next((row for row in found if row[0]), (None, "", same))
        if match is None:
            unknown.append(f"this model has no place for {shown(name)}")
        elif ours == IGNORED:
            ignored.append(name)
        else:
            targets[name] = (match.expand(ours), layout)
    canonical: dict[str, np.ndarray] = {}
    for name, array in as_float32({name: flat[name] for name in targets}, source).items():
        ours, layout = targets[name]
        if ours in canonical:
            problems.append(f"{shown(name)} is a second {ours}")
            continue
        try:
            canonical[ours] = layout(array)
        except (ValueError, IndexError, TypeError):
            problems.append(f"{shown(name)} has shape {list(array.shape)}")
    return canonical, ignored, problems, unknown
