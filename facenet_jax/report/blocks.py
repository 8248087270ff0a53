"""What a section of the page consists of; page.html.j2 says how each looks."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Text:
    """Words, or with `plain` lines as they are."""

    words: str
    plain: bool = False
    kind: str = "text"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under a head; `folded`: shown on demand; `marked`: rows to be noticed."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False
    marked: frozenset[int] = frozenset()
    kind: str = "table"


@dataclasses.dataclass(frozen=True)
class Chart:
    """A drawing as an SVG element, see `charts.svg`."""

    svg: str
    caption: str
    kind: str = "chart"


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture with a line below; `frame`: query, right, wrong, junk or none."""

    source: str
    label: str
    frame: str = "none"


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Pictures in a row, which scrolls where the screen is narrow."""

    caption: str
    tiles: Sequence[Tile]
    kind: str = "tiles"


Block = Text | Table | Chart | Tiles


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, what is below it in a sentence, and the blocks of each run."""

    title: str
    about: str
    runs: Sequence[Sequence[Block]]  # as many as runs, or one for all

    @property
    def anchor(self) -> str:
        """The name to link to."""
        return self.title.lower().replace(" ", "-")


TALLEST = 96
"""Pixels of one image, in height."""


def picture(images: Sequence[np.ndarray], quality: int = 80) -> str:
    """Images uint8 [H, W, 3] below each other as the address of one JPEG, made small."""
    file = io.BytesIO()
    stacked(images).save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def stacked(images: Sequence[np.ndarray]) -> Image.Image:
    """Images uint8 [H, W, 3] below each other as one, made small."""
    height, width = images[0].shape[:2]
    scale = min(1, TALLEST / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [np.asarray(Image.fromarray(each).resize(size)) for each in images]
    gap = np.full((2, size[0], 3), 128, np.uint8)
    parts = [part for each in small for part in (each, gap)][:-1]
    return Image.fromarray(np.concatenate(parts))


def percent(value: float | None) -> str:
    """A fraction in per cent with one digit, "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def span(ends: Sequence[float] | None) -> str:
    """An interval of fractions in per cent."""
    return "" if not ends else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
