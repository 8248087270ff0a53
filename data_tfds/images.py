"""Decoding one stored image, with an error that names the file and what is wrong with it."""

import io

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
    if image.mode == "L" and grey:
        return image.convert("RGB")
    if image.mode != "RGB":
        raise ImageError(
            f"{where} has mode {image.mode} where three channels (RGB) are needed; "
            "store it as a three-channel image.",
            image.mode,
        )
    return image
