"""What the doctor reads of every image of a data set, on all cores."""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Mapping

import tqdm
from PIL import Image

from data_tfds import flare
from data_tfds.builder import SampleBuilder, cores
from data_tfds.errors import UserError
from data_tfds.images import ImageError, decode, is_cut_off
from data_tfds.source import Source

EXIF_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Pixels:
    """What one file's content says; sizes are (width, height)."""

    digest: bytes
    error: ImageError | UserError | None = None
    size: tuple[int, int] = (0, 0)
    grey: bool = False
    rotated: bool = False
    cut_off: bool = False
    flare: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """{modality: (luma fraction, histogram ratio)} of the images that flare can blind."""


def read_pixels(builder: SampleBuilder, source: Source, paths: dict[str, str]) -> dict[str, Pixels]:
    """The content of every image, read once on all cores."""
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        found = pool.map(lambda path: _pixels(builder, source, path, paths[path]), paths)
        bar = tqdm.tqdm(found, "reading", len(paths), unit=" files", mininterval=1.0)
        return dict(zip(paths, bar, strict=True))


def _pixels(builder: SampleBuilder, source: Source, path: str, modality: str) -> Pixels:
    try:
        encoded = source.read(path)
    except UserError as error:
        return Pixels(path.encode(), error)
    digest = hashlib.blake2b(encoded, digest_size=16).digest()
    try:
        image, grey = _decode(builder, encoded, source.where(path))
        images = {modality: image}
        if builder.STRIP:
            tiles = builder.tiles(image, source.where(path))
            images = dict(zip(builder.modalities, tiles, strict=True))
    except UserError as error:
        return Pixels(digest, error)
    return Pixels(
        digest,
        size=image.size,
        grey=grey,
        rotated=_rotated(image),
        cut_off=is_cut_off(encoded, image),
        flare={
            modality: (flare.luma_fraction(each), flare.histogram_ratio(each))
            for modality, each in images.items()
            if modality in flare.MODALITIES
        },
    )


def _rotated(image: Image.Image) -> bool:
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except SyntaxError:  # metadata that cannot be read rotate nothing
        return False


def _decode(builder: SampleBuilder, encoded: bytes, where: str) -> tuple[Image.Image, bool]:
    """The image and whether it is grey, which not every data set may be."""
    try:
        return decode(encoded, where, most_pixels=builder.limits.pixels), False
    except ImageError as error:
        if error.kind != "L" or not builder.GREY:
            raise
        return decode(encoded, where, True, builder.limits.pixels), True
