"""What a search found, as a table, as JSON values and as a picture."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from data_tfds.images import picture as open_picture
from facenet_jax.search.database import Found

TILE = (120, 120)
"""Width and height that an image is fitted into, in pixels."""
GAP, LINE = 4, 14
GREY, BLACK, WHITE, BLUE = (128, 128, 128), (0, 0, 0), (255, 255, 255), (0, 90, 200)


def table(found: Sequence[Found]) -> str:
    """A line for each row: rank, cosine, name and the labels that are known."""
    if not found:
        return "Nothing was found."
    width = max(len("name"), *(len(each.name) for each in found))
    lines = [f"rank   cosine  {'name':{width}}  labels"]
    for rank, each in enumerate(found, start=1):
        line = f"{rank:4}  {each.cosine:7.5f}  {each.name:{width}}  {_told(each.labels)}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def values(query: Mapping[str, Any], by: Sequence[str], found: Sequence[Found]) -> dict[str, Any]:
    """Query and answer as JSON values; labels that are not known are left out."""
    rows = [
        {"rank": rank, "name": each.name, "cosine": each.cosine}
        | {"labels": _known(each.labels), "files": dict(each.files)}
        for rank, each in enumerate(found, start=1)
    ]
    return {"query": {m: str(x) for m, x in query.items()}, "by": list(by), "found": rows}


def picture(
    query: Mapping[str, Any], found: Sequence[Found], modalities: Sequence[str]
) -> Image.Image:
    """The ranked list: the query, framed, and each row, its modalities below each other.

    A modality that a sample lacks, or whose file is no longer there, is a grey tile that says so.
    """
    columns = [(query, ["query"], BLUE)]
    for rank, each in enumerate(found, start=1):
        words = [f"{rank}  {each.cosine:.3f}", _told(_short(each.labels))]
        columns.append((each.files, words, GREY))
    wide, high = TILE[0] + 2 * GAP, TILE[1] + 2 * GAP
    size = (wide * len(columns) + GAP, high * len(modalities) + 2 * LINE + GAP)
    page = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(page)
    for i, (files, words, colour) in enumerate(columns):
        left = i * wide + GAP
        for j, modality in enumerate(modalities):
            top = j * high + GAP
            draw.rectangle(
                (left - 2, top - 2, left + TILE[0] + 1, top + TILE[1] + 1), outline=colour, width=2
            )
            page.paste(_tile(files.get(modality), modality), (left, top))
        for line, text in enumerate(words):
            shown = text[: TILE[0] // 6]
            draw.text((left, high * len(modalities) + LINE * line), shown, fill=BLACK)
    return page


def encoded(drawn: Image.Image, suffix: str) -> bytes:
    """The picture as a PNG or JPEG file."""
    file = io.BytesIO()
    drawn.save(file, {".png": "PNG", ".jpg": "JPEG"}[suffix])
    return file.getvalue()


def _tile(image: Any, modality: str) -> Image.Image:
    """One image at the size of a tile."""
    missing = isinstance(image, str) and not pathlib.Path(image).is_file()
    if image is not None and not missing:
        return ImageOps.pad(open_picture(image, modality), TILE, color=WHITE)
    tile = Image.new("RGB", TILE, GREY)
    text = "file is gone" if missing else f"no {modality}"
    ImageDraw.Draw(tile).text((GAP, TILE[1] // 2), text, fill=WHITE)
    return tile


def _known(labels: Mapping[str, str | int]) -> dict[str, str | int]:
    return {label: value for label, value in labels.items() if value not in ("", -1, None)}


def _short(labels: Mapping[str, str | int]) -> dict[str, str | int]:
    """Identity and camera, as a report names them."""
    return {"id": labels["identity"], "cam": labels["camera"]}


def _told(labels: Mapping[str, str | int]) -> str:
    """The labels that are known, as words."""
    return ", ".join(f"{label} {value}" for label, value in _known(labels).items())
