"""Decoding one stored image, with an error that names the file and what is wrong with it."""

import io

from PIL import Image

from facenet_jax.types import UserError


def decode(encoded: bytes, where: str, grey: bool = False) -> Image.Image:
    """The whole image, decoded, as a Pillow image of mode RGB.

    `where` names the file in messages. With `grey` a one-channel image becomes three equal
    channels; without it, and for every other mode, an image that is not RGB is a UserError, as are
    a file that is no image and a truncated one.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{where} is not an image that Pillow can read; replace it or remove its triplet."
        ) from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} cannot be opened as an image: {error}.") from error
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{where} is truncated or damaged ({error}); replace it or remove its triplet."
        ) from error
    if image.mode == "L" and grey:
        return image.convert("RGB")
    if image.mode != "RGB":
        raise UserError(
            f"{where} has mode {image.mode} where three channels (RGB) are needed; "
            "store it as a three-channel image."
        )
    return image
