"""Bars for what takes long, on stderr: none for what is over in seconds."""

import sys
from collections.abc import Iterable
from typing import TypeVar

import tqdm

Item = TypeVar("Item")

TERMINAL, FILE = 3.0, 30.0
"""Seconds until a bar is first shown, and in a file between its lines."""


class Bar(tqdm.tqdm):
    """The progress of `total` units of work; `update(n)` says that n more are done."""

    quiet = False  # True in all processes but the first

    def __init__(self, what: str, total: int, unit: str, items: Iterable | None = None):
        terminal = sys.stderr.isatty()
        super().__init__(
            items,
            what,
            total,
            unit=f" {unit}",
            delay=TERMINAL if terminal else FILE,
            mininterval=0.5 if terminal else FILE,
            leave=False,
            disable=Bar.quiet,
        )


def shown(items: Iterable[Item], what: str, total: int, unit: str) -> Iterable[Item]:
    """The items one by one, with a bar."""
    return Bar(what, total, unit, items)
