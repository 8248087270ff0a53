"""The one exception for what a user can mend."""

import re


class UserError(Exception):
    """Something the user can mend. Its text is one sentence that says what clashes and what to do.

    `main.py` and the scripts print the text alone and exit with `exit_code`; a traceback would
    hide it.
    """

    def __init__(self, message: str, exit_code: int = 1):
        words = re.sub(r"\S{500,}", lambda found: f"{found[0][:100]}...", message)
        super().__init__(printable(words))
        self.exit_code = exit_code


def printable(text: str) -> str:
    """The text on one line, with escapes for what cannot be printed, such as a terminal's codes."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
