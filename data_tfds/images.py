"""Decoding one stored image, with an error that names the file and what is wrong with it."""

import io

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
    if image.mode == "L" and grey:
        return image.convert("RGB")
    if image.mode != "RGB":
        raise ImageError(
            f"{where} has mode {image.mode} where three channels (RGB) are needed; "
            "store it as a three-channel image.",
            image.mode,
        )
    return image


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
