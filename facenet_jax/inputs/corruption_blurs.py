"""Corruptions that move or mix pixels: five blurs and the elastic one, with their severities.

Every corruption here is a function (image float32 [H, W, 3] in 0..1, severity 1..5, rng) -> float32
[H, W, 3], not yet clipped. Lengths are in pixels. `corruptions.py` has the others and says more.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

GAUSSIAN = (1, 2, 3, 4, 6)  # standard deviation
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # deviation, reach, rounds
DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # radius, deviation of its rim
MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius, standard deviation
ZOOM = ((1.10, 0.01), (1.15, 0.01), (1.20, 0.02), (1.25, 0.02), (1.30, 0.03))  # largest, step
ELASTIC = (0.05, 0.065, 0.085, 0.1, 0.12)  # in 250 largest shifts


def gaussian_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] under a Gaussian."""
    return smoothed(image, GAUSSIAN[severity - 1])


def smoothed(image: np.ndarray, sigma: float) -> np.ndarray:
    """The image [H, W, 3] under a Gaussian of `sigma` pixels; the margin repeats the edge."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def glass_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] with pixels exchanged with near ones, between two Gaussians.

    Each pixel that is not within the reach of a margin is exchanged with one that lies -reach to
    reach - 1 away in each direction, one after the other from the last to the first.
    """
    sigma, reach, rounds = GLASS[severity - 1]
    height, width = image.shape[:2]
    inner = np.arange(height * width).reshape(height, width)
    inner = inner[reach : height - reach, reach : width - reach].ravel()[::-1]
    order = list(range(height * width))  # of a list, single entries are read faster than of arrays
    for _ in range(rounds):
        away = rng.integers(-reach, reach, (2, len(inner)))
        other = inner + away[0] * width + away[1]
        for a, b in zip(inner.tolist(), other.tolist(), strict=True):
            order[a], order[b] = order[b], order[a]
    pixels = smoothed(image, sigma).reshape(height * width, -1)
    return smoothed(pixels[order].reshape(image.shape), sigma)


def defocus_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] under a disk with a soft rim."""
    radius, rim = DEFOCUS[severity - 1]
    reach = max(8, radius)
    away = np.arange(-reach, reach + 1)
    disk = (away[:, None] ** 2 + away**2 <= radius**2).astype(np.float32)
    cut = 1 if radius <= 8 else 2  # pixels to which the Gaussian of the rim reaches
    disk = ndimage.gaussian_filter(disk, rim, radius=cut, mode="mirror")
    return ndimage.convolve(image, (disk / disk.sum())[:, :, None], mode="mirror")


def motion_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] drawn along a straight line at -45..45 degrees to the rows."""
    return drawn_out(image, *MOTION[severity - 1], rng.uniform(-45, 45))


def drawn_out(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """The image [H, W, C] with every pixel the mean of 2 radius + 1 that lie on one side of it.

    At distance t along `angle` (in degrees, 0 along the rows) the weight falls as a Gaussian of t
    does; places are rounded to pixels, and the margin repeats the edge.
    """
    height, width = image.shape[:2]
    distance = np.arange(2 * radius + 1)
    weight = np.exp(-((distance / sigma) ** 2) / 2)
    weight /= weight.sum()
    direction = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    down, right = (np.rint(distance * along).astype(int) for along in direction)
    pad = 2 * radius
    wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    mean = np.zeros_like(image)
    for each, y, x in zip(weight.astype(image.dtype), down + pad, right + pad, strict=True):
        mean += each * wide[y : y + height, x : x + width]
    return mean


def zoom_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image [H, W, 3] and of enlargements of it, the factor 1 among them."""
    largest, step = ZOOM[severity - 1]
    factors = np.arange(1, largest + step / 100, step)
    return (image + sum(enlarged(image, factor) for factor in factors)) / (len(factors) + 1)


def enlarged(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the image [H, W, C], enlarged to [H, W, C], bilinear."""
    height, width = image.shape[:2]
    x, y = width * (1 - 1 / factor) / 2, height * (1 - 1 / factor) / 2
    box = (x, y, width - x, height - y)
    channels = [Image.fromarray(channel) for channel in np.moveaxis(image, -1, 0)]
    size, way = (width, height), Image.Resampling.BILINEAR
    return np.stack([np.asarray(each.resize(size, way, box)) for each in channels], axis=-1)


def elastic_transform(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The image [H, W, 3] with every pixel taken from a place nearby, by smooth random shifts."""
    shape = image.shape[:2]
    largest, sigma = 0.005 * shape[0], [0.01 * length for length in shape]
    factor = 250 * ELASTIC[severity - 1]
    places = []
    for place in np.indices(shape, np.float32):
        shift = rng.uniform(-largest, largest, shape)
        shift = ndimage.gaussian_filter(shift, sigma, mode="reflect", truncate=3)
        places.append(place + factor * shift)
    channels = [
        ndimage.map_coordinates(channel, places, order=1, mode="reflect")
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1)
