"""Features that no network made: floors which a trained model has to clear in every report."""

import numpy as np

from data_tfds.errors import UserError

_SIDE = 32  # of the thumbnails, at most
_CHUNK = 64  # images at a time, so that their float copies stay small


def raw_pixel_features(images: np.ndarray) -> np.ndarray:
    """Thumbnails of all bands as one vector per sample, float32 [N, E].

    `images` uint8 [M, N, H, W, 3]. Each band is averaged over blocks to at most 32 x 32 pixels and
    loses its mean, or else overall brightness would decide every comparison.
    """
    _check(images)
    bands, samples, height, width, _ = images.shape
    rows, columns = _edges(height), _edges(width)
    area = np.diff(rows, append=height)[:, None, None] * np.diff(columns, append=width)[:, None]
    features = np.empty((samples, bands, len(rows) * len(columns) * 3), np.float32)
    for start in range(0, samples, _CHUNK):
        part = slice(start, start + _CHUNK)
        for band in range(bands):
            total = np.add.reduceat(images[band, part], rows, axis=1, dtype=np.float32)
            total = np.add.reduceat(total, columns, axis=2)
            features[part, band] = (total / area.astype(np.float32)).reshape(len(total), -1)
    features -= features.mean(axis=2, keepdims=True)
    return features.reshape(samples, -1)


def colour_histogram_features(images: np.ndarray, bins: int = 8) -> np.ndarray:
    """Joint colour histogram of the visible image's centre, float32 [N, bins^3], L2 norm 1.

    `images` uint8 [M, N, H, W, 3], the visible band first. Only the middle half in each direction
    counts, where the vehicle is. Of the shares of pixels the square root is taken, so that the
    Euclidean distance of two rows is the Hellinger distance of their histograms.
    """
    _check(images)
    if not 2 <= bins <= 64:
        raise UserError(f"A colour histogram of {bins} bins per channel: choose 2 to 64.")
    _, samples, height, width, _ = images.shape
    top, left = height // 4, width // 4
    centre = images[0, :, top : height - top, left : width - left]
    features = np.empty((samples, bins**3), np.float32)
    for row, image in enumerate(centre):
        level = image.reshape(-1, 3).astype(np.intp) * bins // 256
        cell = (level[:, 0] * bins + level[:, 1]) * bins + level[:, 2]
        features[row] = np.sqrt(np.bincount(cell, minlength=bins**3) / len(cell))
    return features


def _edges(size: int) -> np.ndarray:
    """First pixel of each of at most 32 blocks of nearly equal size."""
    blocks = min(size, _SIDE)
    return np.arange(blocks) * size // blocks


def _check(images: np.ndarray):
    """UserError unless `images` is uint8 [M, N, H, W, 3] with at least one pixel."""
    if images.dtype != np.uint8 or images.ndim != 5 or images.shape[4] != 3 or 0 in images.shape:
        raise UserError(
            f"Images are {images.dtype} of shape {images.shape}, not uint8 [M, N, H, W, 3] with at "
            "least one of each."
        )
