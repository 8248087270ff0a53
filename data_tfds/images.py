"""Decoding one stored image, with an error that names the file and what is wrong with it."""

import io
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from data_tfds.errors import UserError
from data_tfds.limits import Limits

DAMAGED = (OSError, ValueError, SyntaxError, RuntimeError)
"""What Pillow's readers raise for bytes they cannot make sense of."""

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
"""What is decoded. Pillow has readers of 40 other formats, of which one starts Ghostscript."""

_PROBE = b"\x55" * 64  # bytes that no marker of a JPEG can be


class ImageError(UserError):
    """A file that cannot serve as an image.

    `kind` is "no image", "truncated", "too large" or a Pillow mode.
    """

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


def open_image(encoded: bytes) -> Image.Image:
    """The image in `encoded`, not yet decoded, of one of the `FORMATS`; or errors of Pillow's."""
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def decode(
    encoded: bytes, where: str, grey: bool = False, most_pixels: int = Limits.pixels
) -> Image.Image:
    """The whole image, decoded, as a Pillow image of mode RGB.

    `where` names the file in messages. With `grey` a one-channel image becomes three equal
    channels; without it, and for every other mode, an image that is not RGB is an ImageError, as
    are a file that is no image, a truncated one and one of more than `most_pixels` pixels.
    """
    try:
        image = open_image(encoded)
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{where} is not an image that is read here ({', '.join(FORMATS)}); replace it or "
            "remove its sample.",
            "no image",
        ) from error
    if image.width * image.height > most_pixels:
        raise ImageError(
            f"{where} has {image.width} x {image.height} pixels, more than the {most_pixels} of "
            "config.data.max_pixels; make it smaller or raise that option.",
            "too large",
        )
    try:
        image.load()
    except DAMAGED as error:
        raise ImageError(
            f"{where} is truncated or damaged ({error}); replace it or remove its sample.",
            "truncated",
        ) from error
    return three_channels(image, where, grey)


def three_channels(image: Image.Image, where: str, grey: bool = False) -> Image.Image:
    """The image in mode RGB, with `where` and `grey` as in `decode`."""
    if image.mode == "L" and grey:
        return image.convert("RGB")
    if image.mode == "RGB":
        return image
    advice = "store it as a three-channel image"
    if image.mode.startswith("I;16"):  # Pillow would cut all above 255 off, which makes it white
        advice = "scale its 16 bits to 8 by one rule for all images, those of training included"
    raise ImageError(
        f"{where} has mode {image.mode} where three channels (RGB) are needed; {advice}.",
        image.mode,
    )


def picture(given: Any, where: str) -> Image.Image:
    """The image that a user gives, as a Pillow image of mode RGB.

    It may be the path of a file, a Pillow image of mode RGB or L, or an array [H, W, 3] or [H, W],
    uint8 or of floats in 0..1. UserError for anything else, 16-bit images included.
    """
    if isinstance(given, str | os.PathLike):
        try:
            return decode(pathlib.Path(given).read_bytes(), os.fspath(given), grey=True)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{given} ({where}) cannot be read: {reason}.") from error
    if isinstance(given, Image.Image):
        return three_channels(given, where, grey=True)
    if not hasattr(given, "__array__"):
        raise UserError(
            f"{where} is a {type(given).__name__}; give the path of a file, a Pillow image, or an "
            "array [H, W, 3] or [H, W]."
        )
    pixels = np.asarray(given)
    if pixels.shape[2:] not in ((), (3,)) or pixels.ndim < 2 or 0 in pixels.shape:
        raise UserError(f"{where} has the shape {list(pixels.shape)}, not [H, W, 3] or [H, W].")
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"{where} has {pixels.dtype} values from {low:g} to {high:g}; floats must lie in "
                "0..1 (0 is black), and values in 0..255 be uint8."
            )
        pixels = np.rint(255 * pixels).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(
            f"{where} is {pixels.dtype} with values from {pixels.min()} to {pixels.max()}; give "
            "uint8, or floats in 0..1, scaled by one rule for all images, those of training "
            "included."
        )
    return Image.fromarray(pixels).convert("RGB")


def pictures(given: Any, where: str) -> list[Any]:
    """One image, or many, as a list of what `picture` takes.

    An array [H, W, 3] is one image; [N, H, W, 3] and [N, H, W] are many, and so is any sequence. An
    array [H, W] is one.
    """
    single = isinstance(given, str | os.PathLike | Image.Image)
    if not single and hasattr(given, "__array__"):
        array = np.asarray(given)
        single = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if single:
        return [given]
    try:
        return list(given)
    except TypeError:
        raise UserError(
            f"{where} is a {type(given).__name__}; give an image or a sequence of images."
        ) from None


def is_cut_off(encoded: bytes, image: Image.Image) -> bool:
    """Whether `image`, decoded from a JPEG, lacks its end, which libjpeg fills with grey.

    Some cameras and recovery tools close a file that lost its second half with an end marker, and
    then its reader only warns. A whole image does not change with more bytes before the end marker,
    for its last block is complete; one that is cut off reads them.
    """
    end = encoded.rfind(b"\xff\xd9")
    if not encoded.startswith(b"\xff\xd8") or end < 0:
        return False
    last = image.getpixel((image.width - 1, image.height - 1))
    if last != (128, 128, 128) and "progressive" not in image.info:
        return False  # what libjpeg fills in is 128, but for coarse images in several passes
    try:
        longer = open_image(encoded[:end] + _PROBE + encoded[end:]).convert("RGB")
    except DAMAGED:
        return True
    return longer.tobytes() != image.tobytes()
