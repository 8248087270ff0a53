"""Flare: light that enters the lens and blinds the visible and the near-infrared camera.

A source has a saturated core, a halo and streaks. Thermal cameras do not see it.
"""

import math

import numpy as np
from PIL import Image

SHARE = 0.4  # of the samples that have flare
SATURATED = (0.09, 0.15)  # of a blinded picture's pixels, drawn between these
_FLARE_STREAM = 4
_WHICH = ((True, True), (True, False), (False, True))  # the modalities that are blinded
_WHICH_SHARES = (0.56, 0.22, 0.22)


def blind(
    pictures: list[np.ndarray],
    lamps: np.ndarray,
    key: tuple[int, ...],
    wanted: bool | None,
    share: float = SHARE,
    saturated: tuple[float, float] = SATURATED,
) -> tuple[bool, bool]:
    """Flares `pictures` (visible [H, W, 3], near-infrared [H, W], ...; levels) in place.

    The sources of the two are drawn apart, so they hide partly different places. A picture that is
    blinded saturates on `saturated` of its pixels, one that is spared only gets a haze.

    Args:
        pictures: of every modality; only the first two are touched.
        lamps: [n, 2] pixels where sources may be.
        key: of the random stream, which nothing else uses: with and without flare, a picture is
            the same but for the flare.
        wanted: None draws it, True and False force it.
        share: probability of flare, where it is drawn.
        saturated: least and largest share of a blinded picture's pixels, in 0..1.

    Returns:
        Whether the visible and the near-infrared picture were blinded.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((*key, _FLARE_STREAM))))
    drawn = rng.random() < share
    if not (drawn if wanted is None else wanted):
        return False, False
    hits = _WHICH[rng.choice(len(_WHICH), p=_WHICH_SHARES)]
    for number, hit in enumerate(hits):
        shape = pictures[number].shape
        sources = lamps[rng.permutation(len(lamps))[: int(rng.integers(1, 3))]]
        light = _light((shape[1], shape[0]), sources, rng.uniform(*saturated), rng)
        if len(shape) == 3:  # lamps are warm, and the halo shows it; the core saturates all three
            tint = np.array([1.0, rng.uniform(0.88, 1.0), rng.uniform(0.7, 1.0)], np.float32)
            light = np.maximum(light[..., None] * tint, (light[..., None] > 250) * np.float32(256))
        if hit:
            # The exposure falls with the light in the lens, and stray light lifts what is left.
            keep, veil = np.float32(rng.uniform(0.3, 0.5)), np.float32(rng.uniform(10, 40))
            pictures[number] = pictures[number] * keep + light + veil
        else:
            haze = np.float32(rng.uniform(0.05, 0.12))
            pictures[number] = pictures[number] * np.float32(0.75) + haze * np.minimum(light, 255)
    return hits


def _light(size: tuple[int, int], sources: np.ndarray, share: float, rng) -> np.ndarray:
    """Light in the lens [H, W] in levels; a `share` of the picture lies above 256."""
    # Light is smooth: half the resolution is enough and four times as fast.
    width, height = size[0] // 2, size[1] // 2
    y, x = (axis.astype(np.float32) for axis in np.ogrid[:height, :width])
    unit = min(width, height)
    field = np.zeros((height, width), np.float32)
    spikes, turn = int(rng.integers(1, 4)), rng.uniform(-0.3, 0.3)
    for px, py in sources / 2:
        strength, radius = rng.uniform(0.6, 1.0), unit * rng.uniform(0.14, 0.24)
        dx, dy = x - np.float32(px), y - np.float32(py)
        field += np.float32(strength) / (1 + (dx * dx + dy * dy) / np.float32(radius**2))
        for k in range(spikes):
            cosine, sine = (
                np.float32(f(turn + k * math.pi / spikes)) for f in (math.cos, math.sin)
            )
            thin, reach = unit * rng.uniform(0.025, 0.05), unit * rng.uniform(0.5, 1.1)
            across = (dy * cosine - dx * sine) / np.float32(thin)
            along = (dx * cosine + dy * sine) / np.float32(reach)
            field += np.float32(0.8 * strength) / ((1 + across * across) * (1 + along * along))
    rank = int(share * field.size)
    field *= np.float32(256) / np.partition(field.ravel(), -rank)[-rank]
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR))
