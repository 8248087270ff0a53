"""Non-learned features (raw pixels, colour histogram): what a trained model must clearly beat."""

from collections.abc import Sequence

import numpy as np

from data_tfds.errors import UserError

_SIDE = 32  # of the thumbnails, at most
_CHUNK = 64  # images at a time, so that their float copies stay small


def raw_pixel_features(images: Sequence[np.ndarray]) -> np.ndarray:
    """Thumbnails of all modalities as one vector per sample, float32 [N, E].

    `images` holds one uint8 [N, H, W, 3] per modality; H and W may differ between them. Each image
    is averaged over blocks to at most 32 x 32 pixels and loses its mean, or else overall brightness
    would decide every comparison. UserError for other arrays.
    """
    for modality in images:
        _check(modality)
    if len({len(modality) for modality in images}) != 1:
        raise UserError(
            f"The modalities have {[len(modality) for modality in images]} images: there must be "
            "at least one modality, and one image of each per sample."
        )
    return np.concatenate([_thumbnails(modality) for modality in images], axis=1)


def colour_histogram_features(images: np.ndarray, bins: int = 8) -> np.ndarray:
    """Joint colour histogram of each image's centre, float32 [N, bins^3], L2 norm 1.

    `images` uint8 [N, H, W, 3], those of the visible modality. Only the middle half in each
    direction counts, where the object is. Of the shares of pixels the square root is taken, so that
    the Euclidean distance of two rows is the Hellinger distance of their histograms.
    """
    _check(images)
    if not 2 <= bins <= 64:
        raise UserError(f"A colour histogram of {bins} bins per channel: choose 2 to 64.")
    samples, height, width, _ = images.shape
    top, left = height // 4, width // 4
    features = np.empty((samples, bins**3), np.float32)
    for row, image in enumerate(images[:, top : height - top, left : width - left]):
        level = image.reshape(-1, 3).astype(np.intp) * bins // 256
        cell = (level[:, 0] * bins + level[:, 1]) * bins + level[:, 2]
        features[row] = np.sqrt(np.bincount(cell, minlength=bins**3) / len(cell))
    return features


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Block means of each image less their mean, float32 [N, rows * columns * 3]."""
    samples, height, width, _ = images.shape
    rows, columns = _edges(height), _edges(width)
    area = np.diff(rows, append=height)[:, None, None] * np.diff(columns, append=width)[:, None]
    features = np.empty((samples, len(rows) * len(columns) * 3), np.float32)
    for start in range(0, samples, _CHUNK):
        part = slice(start, start + _CHUNK)
        total = np.add.reduceat(images[part], rows, axis=1, dtype=np.float32)
        total = np.add.reduceat(total, columns, axis=2)
        features[part] = (total / area.astype(np.float32)).reshape(len(total), -1)
    features -= features.mean(axis=1, keepdims=True)
    return features


def _edges(size: int) -> np.ndarray:
    """First pixel of each of at most 32 blocks of nearly equal size."""
    blocks = min(size, _SIDE)
    return np.arange(blocks) * size // blocks


def _check(images: np.ndarray):
    """UserError unless `images` is uint8 [N, H, W, 3] with at least one pixel."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise UserError(
            f"Images are {images.dtype} of shape {images.shape}, not uint8 [N, H, W, 3] with at "
            "least one of each."
        )
