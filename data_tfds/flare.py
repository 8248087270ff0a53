"""The flare label (Eq. 3) and the two statistics it can be drawn from. NumPy and Pillow only.

Both statistics look at the stored image, before any resize, and are computed once, when a data set
is prepared. The label is a choice made afterwards, so that it never costs a look at the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_tfds.samples import NEAR_INFRARED, VISIBLE

if TYPE_CHECKING:  # Pillow only where an image is looked at
    from PIL import Image

MODALITIES = (VISIBLE, NEAR_INFRARED)
"""The modalities that flare can blind; a thermal camera does not see it."""

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
    fraction: np.ndarray,
    ratio: np.ndarray,
    modalities: Sequence[str],
    *,
    statistic: str,
    rule: str,
    threshold: float,
    present: np.ndarray | None = None,
) -> np.ndarray:
    """Which images are flared: bool `[N, M]`, False for modalities that know no flare.

    `fraction` and `ratio` are float32 `[N, M]`, the luma fractions and histogram ratios of the
    images of `modalities`. `statistic` "luma" takes fraction > threshold, "histogram" takes ratio
    >= threshold, both compared in float32. `rule` "per_modality" leaves each image its own label;
    "either" and "both" give the visible and the near-infrared image one common label. `present`,
    bool `[N, M]`, says which images exist; a missing one has no label and no say.
    """
    threshold = np.float32(threshold)
    if statistic == "luma":
        flared = np.asarray(fraction, np.float32) > threshold
    elif statistic == "histogram":
        flared = np.asarray(ratio, np.float32) >= threshold
    else:
        raise ValueError(f"unknown flare statistic {statistic!r}")
    can = np.array([modality in MODALITIES for modality in modalities], bool)
    there = np.broadcast_to(can, flared.shape) if present is None else present & can
    if rule == "either":
        flared = (flared & there).any(axis=1, keepdims=True)
    elif rule == "both":
        flared = (flared | ~there).all(axis=1, keepdims=True)
    elif rule != "per_modality":
        raise ValueError(f"unknown flare rule {rule!r}")
    return flared & there


def removed(image: Image.Image, rule: str) -> Image.Image:
    """`image` (mode RGB) with its saturated pixels black: flare source removal.

    A pixel is saturated where its grey value is 251..255 (`rule` "luma", Eq. 3 applied to a pixel),
    or where "any" or "all" of its three channels are. Meant for the stored image, before any
    resize. Raises ValueError for another rule.
    """
    from PIL import Image

    if rule == "luma":
        saturated = np.asarray(image.convert("L")) >= BRIGHT
    elif rule in ("any", "all"):
        channels = np.asarray(image) >= BRIGHT
        saturated = channels.any(axis=2) if rule == "any" else channels.all(axis=2)
    else:
        raise ValueError(f"unknown rule of flare removal {rule!r}")
    return Image.fromarray(np.where(saturated[:, :, None], np.uint8(0), np.asarray(image)))


def _pillow(image: np.ndarray | Image.Image) -> Image.Image:
    from PIL import Image

    return image if isinstance(image, Image.Image) else Image.fromarray(image)
