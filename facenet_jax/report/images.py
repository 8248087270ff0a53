"""The ranked lists of a finished training as images, for TensorBoard and wandb.

Where the option `config.train.writers` has the word `images`; the lists are those of the page.
"""

import collections
import functools
import pathlib
import re
import textwrap
from typing import Any

import ml_collections
from absl import logging
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data_tfds.errors import UserError
from data_tfds.paths import Place
from facenet_jax import report
from facenet_jax.report.blocks import stacked
from facenet_jax.runtime.writers import Writer

CELL, GAP, FRAME, LINE = 112, 6, 3, 14
"""Pixels: the least width of a column, the space around it, a frame, the height of a text line."""

COLOURS = {"right": "#1a9850", "wrong": "#d73027", "junk": "#8a929b", "query": "#2b6cb0"}
"""Of the frames, as page.html.j2 has them."""


def wanted(config: ml_collections.ConfigDict) -> bool:
    """Whether the option asks for images."""
    return "images" in str(config.get("train", {}).get("writers", ""))


def refuse_missing(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the option asks for images and a package is missing."""
    if wanted(config):
        report.refuse_missing("Images of ranked lists (config.train.writers) need")


def write(folder: Place, writer: Writer, step: int) -> None:
    """Write the lists of a workdir with results at `step`; one log line where there are none."""
    from facenet_jax.report import finished, ranked  # they take a while to load

    try:
        run = finished.open_finished(folder)
        words = ranked.nothing(run)
    except UserError as error:
        words = str(error)
    if words:
        logging.warning("There are no images of ranked lists. %s", words)
        return
    found, count = {}, collections.Counter()
    for each in ranked.with_images(run):
        name = re.sub(r"\W+", "_", each.why.lower())
        count[name] += 1
        found[f"ranked/{name}_{count[name]}"] = (drawn(each), each.caption)
    writer.images(step, found)


def drawn(of: Any) -> Image.Image:
    """One `ranked.Ranked` as an image: the caption, and below it a column for each sample."""
    pictures = [
        ImageOps.expand(stacked(images), FRAME, COLOURS[frame]) for images, _, frame in of.shown
    ]
    cell = max(CELL, *(each.width for each in pictures))
    labels = [wrapped(label.replace(" · ", "\n"), cell) for _, label, _ in of.shown]
    width = GAP + len(pictures) * (cell + GAP)
    caption = wrapped(of.caption, width - 2 * GAP)
    top = GAP + len(caption) * LINE + GAP
    tallest = max(each.height for each in pictures)
    height = top + tallest + GAP + max(map(len, labels)) * LINE + GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)

    def say(left: int, above: int, lines: list[str]) -> None:
        for i, line in enumerate(lines):
            draw.text((left, above + i * LINE), line, "black", font())

    say(GAP, GAP, caption)
    for i, (image, label) in enumerate(zip(pictures, labels, strict=True)):
        left = GAP + i * (cell + GAP)
        canvas.paste(image, (left, top))
        say(left, top + tallest + GAP, label)
    return canvas


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text in lines of at most so many pixels, or nearly so."""
    characters = max(1, int(width / font().getlength("0")))
    return [part for line in text.split("\n") for part in textwrap.wrap(line, characters)]


@functools.cache
def font() -> ImageFont.FreeTypeFont:
    """That of matplotlib, which has the letters of most alphabets."""
    import matplotlib

    folder = pathlib.Path(matplotlib.get_data_path())
    return ImageFont.truetype(folder / "fonts" / "ttf" / "DejaVuSans.ttf", 11)
