"""The bodies of the rendered vehicles: cars of five kinds, trucks and buses, in metres.

Each function builds one body with proportions from the identity's stream and returns its `Lights`.
"""

import dataclasses
import itertools

import numpy as np

from data_tfds.rendered import details
from data_tfds.rendered.solids import Builder, upwards


@dataclasses.dataclass(frozen=True)
class Lights:
    """Where light comes from, and the size (length, width, height) of the body; metres."""

    headlamps: list
    taillamps: list
    glints: list  # points of the body where the sun may be mirrored
    size: tuple[float, float, float]


# Ranges of length, width, height and ground clearance in metres, then of hood, trunk, windscreen
# run and rear window run as shares of the length.
_CARS = {
    "sedan": ((4.2, 5.0), (1.72, 1.92), (1.36, 1.5), (0.16, 0.24),
              (0.24, 0.31), (0.12, 0.2), (0.09, 0.16), (0.08, 0.16)),
    "hatch": ((3.4, 4.2), (1.65, 1.82), (1.42, 1.62), (0.16, 0.24),
              (0.18, 0.26), (0.0, 0.03), (0.09, 0.15), (0.03, 0.12)),
    "suv": ((4.2, 5.0), (1.82, 2.05), (1.66, 1.98), (0.24, 0.36),
            (0.2, 0.28), (0.0, 0.03), (0.07, 0.12), (0.02, 0.09)),
    "van": ((4.5, 5.9), (1.82, 2.08), (1.9, 2.6), (0.2, 0.3),
            (0.07, 0.16), (0.0, 0.01), (0.07, 0.14), (0.0, 0.02)),
    "pickup": ((4.9, 5.7), (1.8, 2.05), (1.66, 1.95), (0.26, 0.4),
               (0.2, 0.27), (0.36, 0.46), (0.07, 0.12), (0.01, 0.04)),
}  # fmt: skip


def car(build: Builder, rng: np.random.Generator, kind: str) -> Lights:
    """A sedan, hatch, suv, van or pickup: a body up to the belt line and a cabin above it."""
    length, width, height, clear, *shares = (rng.uniform(*span) for span in _CARS[kind])
    hood, trunk, wind, rear = (length * share for share in shares)
    half, front, back = width / 2, length / 2, -length / 2
    belt = clear + (height - clear) * rng.uniform(0.5, 0.6) * (0.92 if kind == "van" else 1)
    nose = clear + (belt - clear) * rng.uniform(0.72, 0.9)
    radius = rng.uniform(0.145, 0.185) * (height + 0.5) * (1.1 if kind in ("suv", "pickup") else 1)
    axles = (front - length * rng.uniform(0.16, 0.2), back + length * rng.uniform(0.16, 0.21))
    cowl, deck = front - hood, back + trunk
    tail = belt if kind == "pickup" else belt - 0.06 * (trunk > 0.3)

    details.wheels(build, axles, radius, half, rng.uniform(0.55, 0.78))
    build.part(0, (0, 0, (clear + belt) / 2))
    bump = clear + 0.3 * (nose - clear)
    profile = [
        (front - 0.1, clear, half * 0.94), (front, bump, half * 0.95),
        (front - 0.06, nose, half * 0.93), (cowl, belt, half), (deck, belt, half),
        (back + 0.05, tail, half * 0.95), (back, bump, half * 0.96), (back + 0.1, clear, half),
    ]  # fmt: skip
    looks = ("bumper", "front", "hood", "belt", "deck", "back", "bumper", None)
    strips, _ = build.loft(profile, looks, "fender")
    headlamps = details.front(build, rng, *strips[1])
    details.hood(build, rng, *strips[2])
    spare = kind in ("suv", "van") and rng.random() < 0.3
    taillamps = details.back(build, rng, upwards(strips[5][0]), strips[5][1], spare)
    if kind == "pickup":
        build.patch(strips[4][0], "bed", (0.06, 0.94), (0.04, 0.95), strips[4][1])
    details.flank(build, rng, (deck, cowl - 0.05), (clear, belt), half, axles, radius)

    ends = (deck + rear, cowl - wind)
    _cabin(build, rng, (cowl, deck), ends, (belt, height), half, kind == "van")
    details.roof_load(build, rng, ends, half * 0.8, height)
    for side in (-1, 1):
        y = sorted((side * half, side * (half + 0.17)))
        build.box((cowl - 0.3, cowl - 0.18), y, (belt, belt + 0.16), "mirror", 1.5)
    glints = [(front - hood / 2, 0, (nose + belt) / 2), (cowl - wind / 2, 0, (belt + height) / 2),
              (0, half, belt), (0, -half, belt), (deck, 0, height), (back, 0, belt)]  # fmt: skip
    return Lights(headlamps, taillamps, glints, (length, width, height))


def _cabin(build, rng, base, roof, z, half: float, is_van: bool) -> None:
    """The glass house: windscreen, roof, rear window and side windows between the pillars.

    base: front and rear end at the belt line; roof: rear and front end of the roof.
    """
    build.part(1, (sum(base) / 2, 0, sum(z) / 2))
    top = half * (0.9 if is_van else rng.uniform(0.76, 0.86))
    low = half * 0.97
    profile = [(base[0], z[0], low), (roof[1], z[1], top), (roof[0], z[1], top),
               (base[1], z[0], low)]  # fmt: skip
    strips, sides = build.loft(profile, ("pillar", "roof", "pillar", None), "pillar")
    build.patch(strips[0][0], "windscreen", (0.06, 0.94), (0.08, 0.93), strips[0][1])
    sill = 0.45 if is_van and rng.random() < 0.5 else 0.1
    build.patch(upwards(strips[2][0]), "rear_glass", (0.08, 0.92), (sill, 0.9), strips[2][1])
    details.roof(build, rng, *strips[1])
    panel_van = is_van and rng.random() < 0.5
    pillar = rng.uniform(0.42, 0.6)
    for points, normal in sides:
        front_low, front_top, rear_top, rear_low = points
        quad = (rear_low, front_low, front_top, rear_top)
        build.patch(quad, "side_glass", (pillar + 0.03, 0.93), (0.1, 0.88), normal)
        if not panel_van:
            build.patch(quad, "side_glass", (0.1, pillar - 0.02), (0.1, 0.88), normal)


def truck(build: Builder, rng: np.random.Generator) -> Lights:
    """A cab and a cargo box, or a low bed, on a chassis with two or three axles."""
    length, width = rng.uniform(5.6, 7.6), rng.uniform(2.0, 2.4)
    cab, height, clear = rng.uniform(1.5, 2.0), rng.uniform(2.2, 2.7), rng.uniform(0.4, 0.55)
    half, front, back, radius = width / 2, length / 2, -length / 2, rng.uniform(0.42, 0.52)
    axles = [front - rng.uniform(0.9, 1.3), back + rng.uniform(1.0, 1.5)]
    if rng.random() < 0.4:
        axles.append(axles[1] - 2.15 * radius)
    details.wheels(build, axles, radius, half, rng.uniform(0.5, 0.7))
    build.box((back, front - 0.2), (-half * 0.9, half * 0.9), (clear, clear + 0.35), "chassis", 0)

    nose, low = rng.uniform(0.0, 0.35), clear - 0.05
    waist = low + (height - low) * rng.uniform(0.42, 0.52)
    build.part(1, (front - cab / 2, 0, height / 2))
    profile = [
        (front - 0.03, low, half * 0.97), (front, low + 0.35, half), (front - 0.04, waist, half),
        (front - 0.1 - nose, height, half * 0.92), (front - cab, height, half * 0.92),
        (front - cab, low, half),
    ]  # fmt: skip
    looks = ("bumper", "front", "pillar", "roof", "pillar", None)
    strips, sides = build.loft(profile, looks, "door_front")
    build.patch(strips[1][0], "engine_heat", (0.25, 0.75), (0.4, 1.0), strips[1][1])
    headlamps = details.front(build, rng, *strips[1])
    build.patch(strips[2][0], "windscreen", (0.05, 0.95), (0.1, 0.85), strips[2][1])
    build.patch(strips[3][0], "roof_heat", (0, 1), (0, 0.6), strips[3][1])
    rear, fore, slope = front - cab * 0.75, front - cab * 0.12, front - cab * 0.12 - nose
    glass = [(rear, waist), (fore, waist), (slope, height - 0.2), (rear, height - 0.2)]
    for _, normal in sides:
        y = np.sign(normal[1]) * half * 0.985
        build.face([(x, y, z) for x, z in glass], "side_glass", normal)
        build.disc((axles[0], y, radius), radius * 1.15, "arch", normal)

    span = (back, front - cab - rng.uniform(0.1, 0.3))
    taillamps, top = _cargo(build, rng, span, clear + 0.4, half)
    glints = [(front, 0, waist + 0.3), (0, half, top * 0.8), (0, -half, top * 0.8),
              (span[1] - 1, 0, top), (back, 0, top * 0.7)]  # fmt: skip
    return Lights(headlamps, taillamps, glints, (length, width, max(top, height)))


def _cargo(build, rng, x, floor: float, half: float):
    """A cargo box or low bed from x[0] to x[1]; returns its tail lamps and its upper edge."""
    low_bed = rng.random() < 0.3
    top = floor + rng.uniform(0.4, 0.8) if low_bed else rng.uniform(2.5, 3.3)
    build.part(1, (sum(x) / 2, 0, (floor + top) / 2))
    profile = [(x[1], floor, half), (x[1], top, half), (x[0], top, half), (x[0], floor, half)]
    looks = ("cargo_front", "cargo_top", "cargo_back", None)
    strips, sides = build.loft(profile, looks, "cargo")
    if low_bed:
        build.patch(strips[1][0], "bed", (0.04, 0.96), (0.02, 0.98), strips[1][1])
    else:
        build.patch(strips[1][0], "cargo_heat", (0, 1), (0.4, 0.8), strips[1][1])
    panel = rng.uniform(0.25, 0.45), rng.uniform(0.55, 0.75)
    strip = sorted(rng.uniform(0.1, 0.9, 2))
    stripe, decal = rng.random() < 0.5, rng.random() < 0.4
    for points, normal in sides:
        quad = (points[3], points[0], points[1], points[2])
        build.patch(quad, "cargo_panel", panel, (0, 1), normal)
        build.patch(quad, "cargo_heat", (0, panel[0]), (0, 0.6), normal)
        if stripe:
            build.patch(quad, "stripe", (0, 1), (strip[0], max(strip[1], strip[0] + 0.15)), normal)
        if decal:
            build.patch(quad, "decal", (panel[0] + 0.05, panel[1] + 0.15), (0.3, 0.75), normal)
    return details.back(build, rng, upwards(strips[2][0]), strips[2][1]), top


def bus(build: Builder, rng: np.random.Generator) -> Lights:
    """One long body with a row of windows, its engine at the back."""
    length, width, height = rng.uniform(7.0, 10.5), rng.uniform(2.2, 2.5), rng.uniform(2.7, 3.2)
    clear, half, radius = rng.uniform(0.3, 0.4), width / 2, rng.uniform(0.42, 0.5)
    front, back = length / 2, -length / 2
    axles = (front - length * rng.uniform(0.16, 0.28), back + length * rng.uniform(0.2, 0.32))
    waist = clear + (height - clear) * rng.uniform(0.38, 0.5)
    details.wheels(build, axles, radius, half, rng.uniform(0.5, 0.7))
    build.part(0, (0, 0, height / 2))
    slope = rng.uniform(0.05, 0.5)
    profile = [
        (front - 0.05, clear, half), (front, clear + 0.4, half), (front - 0.03, waist, half),
        (front - slope, height, half * 0.95), (back + 0.1, height, half * 0.95),
        (back, waist, half), (back, clear, half),
    ]  # fmt: skip
    looks = ("bumper", "front", "pillar", "roof", "pillar", "back", None)
    strips, _ = build.loft(profile, looks, "fender")
    headlamps = details.front(build, rng, *strips[1])
    build.patch(strips[2][0], "windscreen", (0.04, 0.96), (0.03, 0.9), strips[2][1])
    details.roof(build, rng, *strips[3])
    build.patch(upwards(strips[4][0]), "rear_glass", (0.12, 0.88), (0.15, 0.8), strips[4][1])
    quad = upwards(strips[5][0])
    taillamps = details.back(build, rng, quad, strips[5][1])
    build.patch(quad, "engine_heat", (0.25, 0.75), (0.3, 0.9), strips[5][1])
    details.flank(build, rng, (axles[1], axles[0]), (clear, waist), half, axles, radius)
    top = height - rng.uniform(0.35, 0.7)
    edges = np.linspace(back + 0.3, front - slope - 0.1, int(rng.integers(4, 8)) + 1)
    for side, (a, b) in itertools.product((-1, 1), itertools.pairwise(edges)):
        pane = [(a + 0.06, waist), (b - 0.06, waist), (b - 0.06, top), (a + 0.06, top)]
        build.face([(x, side * half * 0.985, z) for x, z in pane], "side_glass", (0, side, 0))
    details.roof_load(build, rng, (back * 0.6, back * 0.1), half * 0.9, height)
    glints = [(front, 0, waist + 0.5), (0, half, waist), (0, -half, waist), (back, 0, waist),
              (front / 2, 0, height)]  # fmt: skip
    return Lights(headlamps, taillamps, glints, (length, width, height))
