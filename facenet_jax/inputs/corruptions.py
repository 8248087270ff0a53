"""Corrupted images for tests of robustness: 20 types, each at severities 1 to 5.

The types and numbers are those that MUN's Table 5 is measured with: the 15 of ImageNet-C,
speckle noise, Gaussian blur, spatter, saturation, and rain. Everything is written anew from the
published numbers with NumPy, SciPy and Pillow, so that images agree in kind and strength, not
pixel by pixel. Frost differs in kind: the published one cuts pieces out of photographs; here the
texture is drawn by a procedure. Whatever is random comes from the generator that is given.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from data_tfds.errors import UserError
from facenet_jax.inputs import corruption_blurs as blurs
from facenet_jax.inputs import corruption_weather as weather

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""(image float32 [H, W, 3] in 0..1, severity 1..5, rng) -> float32 [H, W, 3], not yet clipped."""

SEVERITIES = (1, 2, 3, 4, 5)
FROST_NOTE = "frost is a procedural texture, where the published corruption has photographs"

GAUSSIAN_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation
SHOT_NOISE = (60, 25, 12, 5, 3)  # photons of white
IMPULSE_NOISE = (0.03, 0.06, 0.09, 0.17, 0.27)  # share of the values
SPECKLE_NOISE = (0.15, 0.2, 0.35, 0.45, 0.6)  # standard deviation, of white
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to the value of HSV
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of it
SATURATE = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))  # factor and addition, saturation
JPEG = (25, 18, 15, 10, 7)  # quality, as Pillow has it
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)  # length of the small image


def gaussian_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] with normal noise on every value."""
    return image + GAUSSIAN_NOISE[severity - 1] * rng.standard_normal(image.shape, np.float32)


def shot_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] by a count of photons for every value."""
    photons = SHOT_NOISE[severity - 1]
    return (rng.poisson(image * photons) / photons).astype(np.float32)


def impulse_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] with a share of its values replaced, half by 0 and half by 1."""
    share, drawn = IMPULSE_NOISE[severity - 1], rng.random(image.shape)
    return np.where(drawn < share, drawn < share / 2, image).astype(np.float32)


def speckle_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] with normal noise in proportion to every value."""
    noise = rng.standard_normal(image.shape, np.float32)
    return image * (1 + SPECKLE_NOISE[severity - 1] * noise)


def brightness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] with a greater value (largest channel), hue and saturation kept."""
    value = image.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + BRIGHTNESS[severity - 1], 1)
    share = np.divide(image, value, out=np.ones_like(image), where=value > 0)
    return share * brighter


def contrast(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] nearer to the mean of each channel."""
    mean = image.mean(axis=(0, 1))
    return mean + CONTRAST[severity - 1] * (image - mean)


def saturate(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] with another saturation; grey, whose hue is undefined, is taken as red.

    Not monotone: severities 1 and 2 take colour away, 3 to 5 add some.
    """
    factor, more = SATURATE[severity - 1]
    value = image.max(axis=-1, keepdims=True)
    range_ = value - image.min(axis=-1, keepdims=True)
    old = np.divide(range_, value, out=np.zeros_like(value), where=value > 0)
    new = np.clip(factor * old + more, 0, 1)
    # How far each channel is below the largest one, in the range of the pixel.
    red = np.broadcast_to(np.float32([0, 1, 1]), image.shape)
    below = np.divide(value - image, range_, out=red.copy(), where=range_ > 0)
    return value * (1 - new * below)


def jpeg_compression(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] after a low quality of JPEG."""
    file = io.BytesIO()
    Image.fromarray(as_bytes(image)).save(file, "JPEG", quality=JPEG[severity - 1])
    return as_floats(np.asarray(Image.open(file)))


def pixelate(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] from fewer pixels: means over areas, then the nearest of them."""
    height, width = image.shape[:2]
    part = PIXELATE[severity - 1]
    small = (max(1, int(width * part)), max(1, int(height * part)))
    found = Image.fromarray(as_bytes(image)).resize(small, Image.Resampling.BOX)
    return as_floats(np.asarray(found.resize((width, height), Image.Resampling.NEAREST)))


TYPES: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "gaussian_blur": blurs.gaussian_blur,
    "glass_blur": blurs.glass_blur,
    "defocus_blur": blurs.defocus_blur,
    "motion_blur": blurs.motion_blur,
    "zoom_blur": blurs.zoom_blur,
    "fog": weather.fog,
    "frost": weather.frost,
    "snow": weather.snow,
    "spatter": weather.spatter,
    "rain": weather.rain,
    "brightness": brightness,
    "contrast": contrast,
    "saturate": saturate,
    "jpeg_compression": jpeg_compression,
    "pixelate": pixelate,
    "elastic_transform": blurs.elastic_transform,
}
"""The types by name; their order belongs to what a seed gives."""


def as_bytes(image: np.ndarray) -> np.ndarray:
    """uint8 of floats in 0..1 of any shape, clipped and rounded."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def as_floats(image: np.ndarray) -> np.ndarray:
    """float32 in 0..1 of uint8 of any shape."""
    return image.astype(np.float32) / 255


def corrupt(image: np.ndarray, name: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """An image uint8 [H, W, 3], corrupted: uint8 [H, W, 3].

    UserError for a type that is not in TYPES, a severity that is not 1 to 5, and other images.
    """
    if name not in TYPES:
        raise UserError(f"There is no corruption {name!r}; there are {', '.join(TYPES)}.")
    if severity not in SEVERITIES:
        raise UserError(f"The severity of a corruption is 1, 2, 3, 4 or 5, not {severity}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(
            f"An image to corrupt is uint8 [height, width, 3], not {image.dtype} "
            f"{list(image.shape)}."
        )
    return as_bytes(TYPES[name](as_floats(image), severity, rng))


def corrupted(
    images: np.ndarray, seed: int, first: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images uint8 [N, H, W, 3], names str [N], severities int [N]): each image corrupted once.

    Type and severity are drawn uniformly. Image i has a generator of its own, from `seed` and
    `first` + i, so that what becomes of it does not depend on the others: a part of the images that
    begins at image k is corrupted as in the whole with `first`=k.
    """
    types = list(TYPES)

    def one(i: int) -> tuple[np.ndarray, str, int]:
        rng = np.random.default_rng((seed, first + i))
        name, severity = types[rng.integers(len(types))], int(rng.integers(1, 6))
        return corrupt(images[i], name, severity, rng), name, severity

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(one, range(len(images))))
    new = np.stack([each[0] for each in found]) if found else np.zeros_like(images)
    return new, np.array([each[1] for each in found]), np.array([each[2] for each in found])
