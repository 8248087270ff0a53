"""The flare label (Eq. 3) and the two statistics it can be drawn from. NumPy and Pillow only.

Both statistics look at the stored image, before any resize, and are computed once, when a data set
is prepared. The label is a choice made afterwards, so that it never costs a look at the pixels.
"""

import numpy as np
from PIL import Image

from data_tfds.errors import UserError

BRIGHT = 251
"""Smallest grey value, of 0..255, that counts as saturated."""


def luma_fraction(image: np.ndarray | Image.Image) -> float:
    """Share of pixels, 0..1, whose grey value lies in 251..255 (Eq. 3).

    Grey is the ITU-R 601 luma of Pillow's `convert("L")`. `image` is uint8 `[H, W, 3]` or a Pillow
    image of mode RGB.
    """
    counts = _pillow(image).convert("L").histogram()
    return sum(counts[BRIGHT:]) / sum(counts)


def histogram_ratio(image: np.ndarray | Image.Image) -> float:
    """Share of the 3 H W channel values, 0..1, that fall in the top 2 of 100 equal bins.

    The bins span the image's own smallest to largest value, over its three channels; a constant
    image has ratio 0. This is the statistic of the authors' release, so the arithmetic is its
    float32: `100 (v - lo) >= 98 (hi - lo)` in integers would differ for four (lo, hi, v).
    """
    counts = np.reshape(_pillow(image).histogram(), (3, 256)).sum(axis=0)
    present = np.flatnonzero(counts)
    lo, hi = present[0], present[-1]
    if lo == hi:
        return 0.0
    value = np.arange(256, dtype=np.float32) / np.float32(255)
    bins = np.floor((value - value[lo]) / (value[hi] - value[lo]) * np.float32(100))
    return float(counts[np.minimum(bins, 99) >= 98].sum() / counts.sum())


def labels(
    fraction: np.ndarray, ratio: np.ndarray, *, statistic: str, rule: str, threshold: float
) -> np.ndarray:
    """Which images of the visible and the near-infrared band are flared: bool `[N, 2]`.

    `fraction` and `ratio` are float32 `[N, 2]`, the luma fractions and histogram ratios of R and N.
    `statistic` "luma" takes fraction > threshold, "histogram" takes ratio >= threshold, both
    compared in float32. `rule` "per_modality" leaves each band its own label; "either" and "both"
    give the two bands one common label. Raises UserError for an unknown statistic or rule.
    """
    threshold = np.float32(threshold)
    if statistic == "luma":
        flared = np.asarray(fraction, np.float32) > threshold
    elif statistic == "histogram":
        flared = np.asarray(ratio, np.float32) >= threshold
    else:
        raise UserError(f'data.flare_statistic is "{statistic}" and must be "luma" or "histogram".')
    if rule == "per_modality":
        return flared
    if rule not in ("either", "both"):
        raise UserError(
            f'data.flare_rule is "{rule}" and must be "per_modality", "either" or "both".'
        )
    common = flared.any(axis=1) if rule == "either" else flared.all(axis=1)
    return np.repeat(common[:, None], 2, axis=1)


def _pillow(image: np.ndarray | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)
