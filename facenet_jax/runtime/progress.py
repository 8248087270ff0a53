"""Bars for what takes long, on stderr: none for what is over in seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

TERMINAL, FILE = 3.0, 30.0
"""Seconds until a bar is first shown, and in a file between its lines."""


class Bar:
    """The progress of `total` units of work; `update(n)` says that n more are done."""

    quiet = False  # True in all processes but the first

    def __init__(self, what: str, total: int, unit: str, items: Iterable | None = None):
        import tqdm  # here, so that what shows no bar runs without it

        terminal = sys.stderr.isatty()
        self.bar = tqdm.tqdm(
            items,
            what,
            total,
            unit=f" {unit}",
            delay=TERMINAL if terminal else FILE,
            mininterval=0.5 if terminal else FILE,
            leave=False,
            disable=Bar.quiet,
        )

    def update(self, done: int = 1) -> None:
        """Say that so many more units are done."""
        self.bar.update(done)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.bar)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def shown(items: Iterable[Item], what: str, total: int, unit: str) -> Iterable[Item]:
    """The items one by one, with a bar."""
    return Bar(what, total, unit, items)
