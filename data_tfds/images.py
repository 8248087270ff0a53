"""Decoding one stored image, with an error that names the file and what is wrong with it."""

import io
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from data_tfds.errors import UserError

DAMAGED = (OSError, ValueError, SyntaxError, RuntimeError)
"""What Pillow's readers raise for bytes they cannot make sense of."""


class ImageError(UserError):
    """A file that cannot serve as an image; `kind` is "no image", "truncated" or a Pillow mode."""

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


def decode(encoded: bytes, where: str, grey: bool = False) -> Image.Image:
    """The whole image, decoded, as a Pillow image of mode RGB.

    `where` names the file in messages. With `grey` a one-channel image becomes three equal
    channels; without it, and for every other mode, an image that is not RGB is an ImageError, as
    are a file that is no image and a truncated one.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{where} is not an image that Pillow can read; replace it or remove its sample.",
            "no image",
        ) from error
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
