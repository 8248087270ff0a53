"""What an identity looks like in the three spectra: one row of `COLUMNS` per named surface.

Paint is seen by the visible band alone. Near-infrared reflectance and temperature are drawn apart
from it, panel by panel, so each band knows something about an identity that the others do not.
"""

import colorsys

import numpy as np

COLUMNS = ("red", "green", "blue", "near_infrared", "temperature", "gloss", "glow", "retro")
"""Reflectances in 0..1, temperature in 0..1 of the camera's range, mirror share, light given off at
night, and share of the near-infrared lamp's light that is sent straight back."""

_FIXED = {  # surfaces that look much the same on every vehicle
    "tyre": (0.06, 0.06, 0.07, 0.1, 0.55, 0, 0, 0),
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
    (("roof", "pillar"), 0.6), (("hood", "front"), 0.4), (("back", "tailgate", "deck"), 0.4),
    (("door_front",), 0.3), (("door_rear",), 0.3), (("sill",), 0.3), (("cargo_panel",), 0.4),
    (("cargo", "cargo_front"), 0.7), (("cargo_top",), 0.5), (("cargo_back",), 0.3),
    (("spare",), 0.5),
)  # fmt: skip


def _paint(rng: np.random.Generator) -> np.ndarray:
    """A paint as fleets have them: a third white to black, the others of any hue."""
    hue, depth, light = rng.random(), rng.uniform(0.45, 0.92), rng.uniform(0.3, 0.85)
    if rng.random() < 0.33:
        depth, light = rng.uniform(0.0, 0.1), rng.uniform(0.06, 0.9)
    return np.clip(colorsys.hsv_to_rgb(hue, depth, light), 0.03, 0.9)


def _painted_panels(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Visible colour of every panel: one paint, often a second one on an area of its own."""
    first, second = _paint(rng), _paint(rng)
    paint = dict.fromkeys((*_PAINTED, *_CARGO), first)
    two_tone = rng.choice(["none", "roof", "low", "rear", "hood"], p=[0.3, 0.25, 0.2, 0.13, 0.12])
    areas = {
        "none": (),
        "roof": ("roof", "pillar"),
        "low": ("sill", "door_front", "door_rear"),
        "rear": ("back", "tailgate", "deck", "door_rear"),
        "hood": ("hood", "front"),
    }
    paint |= dict.fromkeys(areas[str(two_tone)], second)
    cargo = _paint(rng) if rng.random() < 0.75 else first
    paint |= dict.fromkeys(_CARGO, cargo)
    if rng.random() < 0.4:
        paint["cargo_panel"] = _paint(rng)
    return paint


def _patchwork(rng, low: float, high: float, step: float) -> dict[str, float]:
    """A value per panel: one for the body; areas may differ from it, by at least `step`."""
    body = rng.uniform(low, high)
    values = dict.fromkeys((*_PAINTED, *_CARGO), body)
    for names, chance in _AREAS:
        if rng.random() < chance:
            value = rng.uniform(low, high)
            if abs(value - body) < step:
                value = body + (step if body < (low + high) / 2 else -step)
            values |= dict.fromkeys(names, value)
    return values


def draw(rng: np.random.Generator) -> dict[str, tuple[float, ...]]:
    """Rows of COLUMNS for every surface name, drawn in a fixed order from the identity's stream."""
    paint = _painted_panels(rng)
    infrared = _patchwork(rng, 0.05, 0.95, 0.3)
    heat = _patchwork(rng, 0.08, 0.88, 0.25)
    table = dict(_FIXED)
    for name in infrared:
        table[name] = (*paint[name], infrared[name], heat[name], 0.22, 0, 0)

    bumper = paint["fender"] if rng.random() < 0.5 else np.full(3, 0.12)
    table["bumper"] = (*bumper, rng.uniform(0.1, 0.8), rng.uniform(0.2, 0.6), 0.05, 0, 0)
    table["grille"] = (*np.full(3, rng.uniform(0.05, 0.5)), rng.uniform(0.05, 0.6),
                       rng.uniform(0.3, 0.95), 0, 0, 0)  # fmt: skip
    # Tinting is a matter of the visible band; in the near infrared a dark pane may be clear.
    for name, height in (("windscreen", 0.15), ("side_glass", 0.0), ("rear_glass", 0.0)):
        tint = rng.uniform(0.06, 0.3)
        table[name] = (tint * 0.9, tint, tint * 1.1, rng.uniform(0.02, 0.8),
                       np.clip(rng.uniform(0.0, 0.85) + height, 0, 1), 0.5, 0, 0)  # fmt: skip
    table["sunroof"] = (0.05, 0.05, 0.06, rng.uniform(0.05, 0.7), rng.uniform(0.1, 0.7), 0.5, 0, 0)
    for name in ("stripe", "hood_stripe", "decal"):
        table[name] = (*_paint(rng), rng.uniform(0.05, 0.95), rng.uniform(0.15, 0.7), 0.1, 0, 0)
    for name in ("rack", "roof_box"):
        dark = rng.uniform(0.05, 0.75)
        table[name] = (dark, dark, dark, rng.uniform(0.05, 0.9), rng.uniform(0.1, 0.6), 0.1, 0, 0)
    rim, rim_infrared = rng.uniform(0.15, 0.75), rng.uniform(0.1, 0.95)
    table["hub"] = (rim * 0.5, rim * 0.5, rim * 0.5, 0.2, 0.7, 0, 0, 0)
    front_wheel, rear_wheel = rng.uniform(0.25, 1.0, 2)
    for name, warm in (("rim_front", front_wheel), ("rim_rear", rear_wheel)):
        table[name] = (rim, rim, rim, rim_infrared, warm, 0.3, 0, 0)
    plate = ((0.85, 0.85, 0.85), (0.85, 0.7, 0.1), (0.15, 0.3, 0.7))[
        rng.choice(3, p=[0.5, 0.3, 0.2])
    ]
    table["plate"] = (*plate, rng.uniform(0.6, 0.9), 0.3, 0.1, 0, 0.9)

    # Warm spots are drawn as surfaces that differ from their panel in temperature alone.
    for name, panel, low, high in (
        ("engine_heat", "hood", 0.35, 1.0),
        ("roof_heat", "roof", 0.05, 0.95),
        ("exhaust_heat", "tailgate", 0.5, 1.0),
        ("cargo_heat", "cargo", 0.05, 0.95),
    ):
        row = list(table[panel])
        row[4] = rng.uniform(low, high)
        table[name] = tuple(row)
    return table
