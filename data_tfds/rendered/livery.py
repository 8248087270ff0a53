"""What an identity looks like in the three modalities: one row of `COLUMNS` per named surface.

Paint is seen in the visible alone. Near-infrared reflectance and temperature are drawn apart
from it, panel by panel, so each modality shows something of an identity that the others do not.
`infrared_of_paint` makes the near-infrared follow the paint instead, to match one with the other.
"""

import colorsys

import numpy as np

COLUMNS = ("red", "green", "blue", "near_infrared", "temperature", "gloss", "glow", "retro")
"""Reflectances in 0..1, temperature in 0..1 of the camera's range, mirror share, light given off at
night, and share of the near-infrared lamp's light that is sent straight back."""

_FIXED = {  # surfaces that look much the same on every vehicle
    "arch": (0.04, 0.04, 0.05, 0.06, 0.45, 0, 0, 0),
    "seam": (0.05, 0.05, 0.06, 0.12, 0.4, 0, 0, 0),
    "bed": (0.1, 0.1, 0.1, 0.2, 0.35, 0, 0, 0),
    "chassis": (0.08, 0.08, 0.09, 0.12, 0.5, 0, 0, 0),
    "belt": (0.1, 0.1, 0.1, 0.2, 0.4, 0, 0, 0),
    "headlamp": (0.8, 0.82, 0.85, 0.7, 0.5, 0.4, 1.0, 0.5),
    "taillamp": (0.6, 0.06, 0.05, 0.55, 0.42, 0.2, 0.6, 0.4),
    "sign": (0.9, 0.8, 0.3, 0.6, 0.55, 0, 0.5, 0.1),
    "light_bar": (0.3, 0.4, 0.9, 0.5, 0.5, 0.3, 0.5, 0.2),
    "mirror": (0.12, 0.12, 0.13, 0.25, 0.4, 0.2, 0, 0),
}
_PAINTED = (
    "fender", "door_front", "door_rear", "sill", "hood", "roof", "pillar", "deck", "front",
    "back", "tailgate", "spare",
)  # fmt: skip
_CARGO = ("cargo", "cargo_panel", "cargo_top", "cargo_back", "cargo_front")


# Panels that share a coating or a temperature, and how often they differ from the body.
_AREAS = (
    (("roof", "pillar"), 0.5), (("hood", "front"), 0.4), (("back", "tailgate", "deck"), 0.4),
    (("door_front", "door_rear", "sill"), 0.35), (("door_rear",), 0.2), (("sill",), 0.2),
    (("cargo", "cargo_front", "cargo_back"), 0.6), (("cargo_panel",), 0.4), (("cargo_top",), 0.4),
    (("spare",), 0.5),
)  # fmt: skip


def _paint(rng: np.random.Generator, hue: float) -> np.ndarray:
    """A paint of about this hue (0..1), or in a quarter of the cases white, grey or black."""
    depth, light = rng.uniform(0.6, 0.95), rng.uniform(0.4, 0.85)
    if rng.random() < 0.25:
        depth, light = rng.uniform(0.0, 0.08), rng.choice([0.08, 0.4, 0.88]) * rng.uniform(0.9, 1)
    return np.clip(colorsys.hsv_to_rgb(hue % 1, depth, light), 0.03, 0.9)


def _painted_panels(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Visible colour of every panel: one paint, often a second one on an area of its own."""
    hue = rng.random()
    # A second hue far from the first, so that two tones are seen as two.
    first, second = _paint(rng, hue), _paint(rng, hue + rng.uniform(0.25, 0.75))
    paint = dict.fromkeys((*_PAINTED, *_CARGO), first)
    two_tone = rng.choice(["none", "roof", "low", "rear", "hood"], p=[0.2, 0.27, 0.23, 0.15, 0.15])
    areas = {
        "none": (),
        "roof": ("roof", "pillar"),
        "low": ("sill", "door_front", "door_rear"),
        "rear": ("back", "tailgate", "deck", "door_rear"),
        "hood": ("hood", "front"),
    }
    paint |= dict.fromkeys(areas[str(two_tone)], second)
    cargo = _paint(rng, rng.random()) if rng.random() < 0.75 else first
    paint |= dict.fromkeys(_CARGO, cargo)
    if rng.random() < 0.4:
        paint["cargo_panel"] = _paint(rng, rng.random())
    return paint


def _either(rng, low: float, high: float, up: bool | None = None) -> float:
    """A value near one end of the range: with contrast enough to be told apart in any light."""
    reach = 0.28 * (high - low)
    up = rng.random() < 0.5 if up is None else up
    return high - reach * rng.random() if up else low + reach * rng.random()


def _patchwork(rng, low: float, high: float) -> dict[str, float]:
    """A value per panel: one for the body; areas of it may lie at the other end of the range."""
    up = bool(rng.random() < 0.5)
    values = dict.fromkeys((*_PAINTED, *_CARGO), _either(rng, low, high, up))
    for names, chance in _AREAS:
        if rng.random() < chance:
            values |= dict.fromkeys(names, _either(rng, low, high, not up))
    return values


def draw(rng: np.random.Generator) -> dict[str, tuple[float, ...]]:
    """Rows of COLUMNS for every surface name, drawn in a fixed order from the identity's stream."""
    paint = _painted_panels(rng)
    infrared = _patchwork(rng, 0.22, 0.97)
    heat = _patchwork(rng, 0.26, 0.97)
    table = dict(_FIXED)
    for name in infrared:
        table[name] = (*paint[name], infrared[name], heat[name], 0.22, 0, 0)

    bumper = paint["fender"] if rng.random() < 0.5 else np.full(3, 0.12)
    table["bumper"] = (*bumper, _either(rng, 0.1, 0.9), _either(rng, 0.2, 0.8), 0.05, 0, 0)
    table["grille"] = (*np.full(3, rng.uniform(0.05, 0.5)), rng.uniform(0.05, 0.6),
                       _either(rng, 0.3, 1.0), 0, 0, 0)  # fmt: skip
    # Tinting is a matter of the visible; in the near infrared a dark pane may be clear.
    tint, clear, warm = rng.uniform(0.05, 0.4), _either(rng, 0.02, 0.85), _either(rng, 0.04, 0.9)
    for name, height in (("windscreen", 0.08), ("side_glass", 0.0), ("rear_glass", 0.0)):
        warmth = np.clip(warm + height + rng.uniform(-0.05, 0.05), 0, 1)
        table[name] = (tint * 0.9, tint, tint * 1.1, clear, warmth, 0.5, 0, 0)
    table["sunroof"] = (0.05, 0.05, 0.06, rng.uniform(0.05, 0.7), rng.uniform(0.1, 0.7), 0.5, 0, 0)
    for name in ("stripe", "hood_stripe", "decal"):
        table[name] = (
            *_paint(rng, rng.random()),
            _either(rng, 0.05, 0.95),
            _either(rng, 0.2, 0.9),
            0.1,
            0,
            0,
        )
    for name in ("rack", "roof_box"):
        dark = _either(rng, 0.05, 0.8)
        table[name] = (dark, dark, dark, _either(rng, 0.05, 0.9), _either(rng, 0.1, 0.9), 0.1, 0, 0)
    rim, rim_infrared = _either(rng, 0.1, 0.8), _either(rng, 0.05, 0.95)
    table["hub"] = (rim * 0.5, rim * 0.5, rim * 0.5, 0.2, 0.7, 0, 0, 0)
    table["tyre"] = (0.06, 0.06, 0.07, 0.1, _either(rng, 0.2, 0.9), 0, 0, 0)
    for name in ("rim_front", "rim_rear"):
        table[name] = (rim, rim, rim, rim_infrared, _either(rng, 0.2, 1.0), 0.3, 0, 0)
    plate = ((0.85, 0.85, 0.85), (0.85, 0.7, 0.1), (0.15, 0.3, 0.7))[
        rng.choice(3, p=[0.5, 0.3, 0.2])
    ]
    table["plate"] = (*plate, rng.uniform(0.6, 0.9), 0.3, 0.1, 0, 0.9)

    # Warm spots are drawn as surfaces that differ from their panel in temperature alone.
    for name, panel, low, high in (
        ("engine_heat", "hood", 0.3, 1.0),
        ("roof_heat", "roof", 0.1, 0.95),
        ("exhaust_heat", "tailgate", 0.4, 1.0),
        ("cargo_heat", "cargo", 0.1, 0.95),
    ):
        row = list(table[panel])
        row[4] = _either(rng, low, high)
        table[name] = tuple(row)
    return table


def infrared_of_paint(materials: np.ndarray, share: float) -> np.ndarray:
    """Rows of COLUMNS [K, 8] whose near-infrared reflectance follows the paint by `share` in 0..1.

    It becomes (1 - share) r + share l, l = 0.3 red + 0.59 green + 0.11 blue, so that light paint is
    light in both. At 0 nothing changes.
    """
    changed = materials.copy()
    lightness = materials[:, :3] @ (0.3, 0.59, 0.11)
    changed[:, 3] = (1 - share) * materials[:, 3] + share * lightness
    return changed
