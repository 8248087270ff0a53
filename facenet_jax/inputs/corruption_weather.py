"""Corruptions by weather: fog, frost, snow, spatter and rain, with their severities.

Every corruption here is a function (image float32 [H, W, 3] in 0..1, severity 1..5, rng) -> float32
[H, W, 3], not yet clipped. Lengths are in pixels. `corruptions.py` has the others and says more.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from facenet_jax.inputs.corruption_blurs import drawn_out, enlarged

FOG = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))  # share, decay of the fine structure
FROST = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # of the image, of the frost
SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
"""Mean and deviation of the flakes, their enlargement, the least flake that is seen, radius and
deviation of their fall, share of the image that stays as it is."""
SPATTER = (
    (0.65, 0.3, 4, 0.69, 0.6, False),
    (0.65, 0.3, 3, 0.68, 0.6, False),
    (0.65, 0.3, 2, 0.68, 0.5, False),
    (0.65, 0.3, 1, 0.65, 1.5, True),
    (0.67, 0.4, 1, 0.65, 1.5, True),
)
"""Mean, deviation and smoothness of the liquid, the least that is seen, the strength of water or
the softness of mud, whether it is mud."""
WATER, MUD = np.float32([175, 238, 238]) / 255, np.float32([63, 42, 20]) / 255
RAIN = ((770, 10), (600, 30), (600, 30), (500, 60), (500, 60))  # pixels for a streak, its length
STREAK = 200 / 255


def plasma(shape: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """A random cloud float32 [H, W], 0 to 1 over the square of 2^k pixels that it is cut from.

    Midpoints are the mean of their four neighbours (the square's sides meet) and a uniform random
    number, whose range falls by decay^2 whenever the distance of the points is halved.
    """
    size = step = 1 << max(1, (max(shape) - 1).bit_length())
    cloud, reach = np.zeros((size, size), np.float32), 1.0
    while step > 1:
        half = step // 2
        noise = rng.uniform(-reach, reach, (3, size // step, size // step))
        corner = cloud[::step, ::step]
        below = np.roll(corner, -1, 0)
        right = np.roll(corner, -1, 1)
        middle = (corner + below + right + np.roll(below, -1, 1)) / 4 + noise[0]
        cloud[half::step, half::step] = middle
        cloud[half::step, ::step] = (corner + below + middle + np.roll(middle, 1, 1)) / 4 + noise[1]
        cloud[::step, half::step] = (corner + right + middle + np.roll(middle, 1, 0)) / 4 + noise[2]
        step, reach = half, reach / decay**2
    low, high = cloud.min(), cloud.max()
    return ((cloud - low) / (high - low))[: shape[0], : shape[1]]


def fog(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] and a white cloud, brought back to the range of the image."""
    share, decay = FOG[severity - 1]
    brightest = max(float(image.max()), 1 / 255)  # a black image stays nearly black
    cloud = plasma(image.shape[:2], decay, rng)[:, :, None]
    return (image + share * cloud) * (brightest / (brightest + share))


def frost(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] and a texture of frost, which is drawn, not photographed."""
    own, other = FROST[severity - 1]
    return own * image + other * frost_texture(image.shape[:2], rng)


def frost_texture(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A bluish-white texture [H, W, 3] in 0..1: needles of ice in six directions on a cloud.

    The published corruption cuts pieces out of photographs of frost, which are not here.
    """
    cover = plasma(shape, 1.4, rng)
    start = rng.uniform(0, 60)
    needles = np.zeros(shape, np.float32)
    for angle in start + np.arange(0, 360, 60):
        seeds = (rng.random(shape) < 0.01).astype(np.float32)
        needles = np.maximum(needles, drawn_out(seeds[:, :, None], 5, 5, angle)[:, :, 0])
    needles /= max(float(needles.max()), 1e-6)
    ice = np.clip(0.2 + 0.5 * cover + 0.8 * needles * cover, 0, 1)
    tint = np.float32([0.85, 0.95, 1])
    return ice[:, :, None] ** (1 / tint)  # dark ice is bluer than white ice


def snow(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3], paler, and falling flakes, twice: as drawn and turned by 180 degrees."""
    mean, deviation, zoom, least, radius, sigma, own = SNOW[severity - 1]
    layer = rng.normal(mean, deviation, (*image.shape[:2], 1)).astype(np.float32)
    layer = enlarged(layer, zoom)
    layer[layer < least] = 0
    layer = drawn_out(np.clip(layer, 0, 1), radius, sigma, rng.uniform(-135, -45))
    pale = np.maximum(image, 1.5 * grey(image) + 0.5)
    return own * image + (1 - own) * pale + layer + layer[::-1, ::-1]


def grey(image: np.ndarray) -> np.ndarray:
    """The luminance [H, W, 1] of an image [H, W, 3], by the weights of Rec. 601."""
    return image @ np.float32([[0.299], [0.587], [0.114]])


def spatter(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] under drops of water (severities 1 to 3) or stains of mud (4 and 5).

    The rims of the drops are found on their mask, where the published corruption has a detector of
    edges on the same liquid.
    """
    mean, deviation, sigma, least, strength, mud = SPATTER[severity - 1]
    liquid = rng.normal(mean, deviation, image.shape[:2]).astype(np.float32)
    liquid = ndimage.gaussian_filter(liquid, sigma)
    mask = liquid >= least
    if mud:
        stain = ndimage.gaussian_filter(mask.astype(np.float32), strength)
        stain[stain < 0.8] = 0
        return image * (1 - stain[:, :, None]) + stain[:, :, None] * MUD
    drops = np.where(mask, liquid * relief(mask), 0)
    drops *= strength / max(float(drops.max()), 1e-6)
    return image + drops[:, :, None] * WATER


def relief(mask: np.ndarray) -> np.ndarray:
    """How bright water is [H, W] in 0..1, lit from one corner, for drops where `mask` [H, W] is."""
    rim = mask & ~ndimage.binary_erosion(mask)
    if not rim.any():
        return np.ones(mask.shape, np.float32)
    away = np.minimum(ndimage.distance_transform_edt(~rim), 20)  # the inside of drops is not as far
    height = ndimage.uniform_filter(away.astype(np.float32), 3).astype(np.uint8)
    share = np.cumsum(np.bincount(height.ravel(), minlength=256)) / height.size
    height = share[height].astype(np.float32)  # equalised: every height is as frequent
    lit = ndimage.correlate(height, np.float32([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    return ndimage.uniform_filter(np.clip(lit, 0, 1), 3)


def rain(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] behind grey streaks, blurred with them and darker.

    Severity 1 is a drizzle, 2 and 3 are heavy, 4 and 5 torrential; all streaks of an image have one
    slant, up to 10 pixels to either side. The mean over (2 + severity)^2 pixels is taken of
    the whole view. A streak is at most half as long as the image is high.
    """
    area, length = RAIN[severity - 1]
    height, width = image.shape[:2]
    length, slant = min(length, height // 2), int(rng.integers(-10, 11))
    layer = Image.new("L", (width, height))
    draw = ImageDraw.Draw(layer)
    count = max(1, height * width // area)
    left = rng.integers(min(0, -slant), width + max(0, -slant), count)
    top = rng.integers(0, height - length + 1, count)
    for x, y in zip(left.tolist(), top.tolist(), strict=True):
        draw.line((x, y, x + slant, y + length), fill=255)
    view = np.where(np.asarray(layer)[:, :, None] > 0, np.float32(STREAK), image)
    blur = 2 + severity
    view = ndimage.uniform_filter(view, (blur, blur, 1), mode="mirror")
    return view - (0.05 + 0.05 * severity)
