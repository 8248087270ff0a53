"""The vehicles of the rendered set: one identity as flat faces in metres, each with its look.

x points forward, y to the left, z up; the ground is z = 0. A vehicle is a handful of convex parts.
Faces that look away from the camera are dropped, parts are painted from far to near, and inside a
part the details (windows, stripes, lamps, warm spots) follow the face they lie on, so no depth
buffer is needed.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from data_tfds import livery

KINDS = ("sedan", "hatch", "suv", "van", "pickup", "truck", "bus")
_SHARES = (0.24, 0.14, 0.18, 0.15, 0.11, 0.11, 0.07)
_IDENTITY_STREAM = 1
_CIRCLE = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 15)[:-1]]

# (length, width, height, ground clearance, hood, trunk, windscreen run, rear window run); metres,
# the last four as shares of the length; each a range.
_CAR_SHAPES = {
    "sedan": ((4.2, 5.0), (1.72, 1.92), (1.36, 1.5), (0.16, 0.24), (0.24, 0.31), (0.12, 0.2))
    + ((0.09, 0.16), (0.08, 0.16)),
    "hatch": ((3.4, 4.2), (1.65, 1.82), (1.42, 1.62), (0.16, 0.24), (0.18, 0.26), (0.0, 0.03))
    + ((0.09, 0.15), (0.03, 0.12)),
    "suv": ((4.2, 5.0), (1.82, 2.05), (1.66, 1.98), (0.24, 0.36), (0.2, 0.28), (0.0, 0.03))
    + ((0.07, 0.12), (0.02, 0.09)),
    "van": ((4.5, 5.9), (1.82, 2.08), (1.9, 2.6), (0.2, 0.3), (0.07, 0.16), (0.0, 0.01))
    + ((0.07, 0.14), (0.0, 0.02)),
    "pickup": ((4.9, 5.7), (1.8, 2.05), (1.66, 1.95), (0.26, 0.4), (0.2, 0.27), (0.36, 0.46))
    + ((0.07, 0.12), (0.01, 0.04)),
}


@dataclasses.dataclass(frozen=True)
class Vehicle:
    """One identity: F faces over V corners, ordered inside each part, and what they look like."""

    kind: str
    corners: np.ndarray  # [V, 3] metres
    ends: np.ndarray  # [F] face i owns corners ends[i-1]:ends[i]
    normals: np.ndarray  # [F, 3] outward, unit; zero for faces seen from both sides
    centres: np.ndarray  # [F, 3] metres
    parts: np.ndarray  # [F] index of the part
    levels: np.ndarray  # [parts] a higher level is painted later
    part_centres: np.ndarray  # [parts, 3] metres
    looks: np.ndarray  # [F] row of `materials`
    materials: np.ndarray  # [K, 8] columns of livery.COLUMNS
    headlamps: np.ndarray  # [2, 3] metres
    taillamps: np.ndarray  # [2, 3] metres
    glints: np.ndarray  # [G, 3] points of the body where the sun may be mirrored, metres
    footprint: tuple[float, float, float]  # length, width, height in metres


class _Builder:
    """Collects faces. A point is (x, y, z); `look` names a material of the livery."""

    def __init__(self):
        self.faces, self.parts = [], []

    def part(self, level: float, centre: Sequence[float]) -> None:
        """Starts a new convex part; the faces that follow belong to it."""
        self.parts.append((level, np.asarray(centre, float)))

    def face(self, points, look: str, normal=None) -> np.ndarray:
        """Adds a face and returns its outward normal, by default away from the part's centre."""
        points = np.asarray(points, float)
        if normal is None:
            following = np.roll(points, -1, axis=0)
            normal = np.cross(points, following).sum(0)  # Newell: also right for bent polygons
            normal /= max(np.linalg.norm(normal), 1e-9)
            if normal @ (points.mean(0) - self.parts[-1][1]) < 0:
                normal = -normal
        self.faces.append((points, np.asarray(normal, float), len(self.parts) - 1, look))
        return np.asarray(normal, float)

    def patch(self, quad, look: str, u: Sequence[float], v: Sequence[float], normal) -> None:
        """Adds the part u x v (shares in 0..1) of a face with four corners, as a detail on it."""
        a, b, c, d = (np.asarray(p, float) for p in quad)
        at = lambda s, t: (1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * d + s * c)  # noqa: E731
        corners = [at(u[0], v[0]), at(u[1], v[0]), at(u[1], v[1]), at(u[0], v[1])]
        self.face(corners, look, normal)

    def loft(self, profile, looks: Sequence[str | None], side: str) -> tuple[list, list]:
        """Adds the solid that a side view spans; returns its strips and sides with their normals.

        profile: (x, z, half width) per corner; strip i joins corners i and i + 1 from right to
        left and looks like looks[i] (None: left out).
        """
        right = [(x, -w, z) for x, z, w in profile]
        left = [(x, w, z) for x, z, w in profile]
        strips = []
        for i, look in enumerate(looks):
            j = (i + 1) % len(profile)
            quad = (right[i], left[i], left[j], right[j])
            strips.append((quad, self.face(quad, look) if look else None))
        sides = [(points, self.face(points, side)) for points in (right, left)]
        return strips, sides

    def box(self, x, y, z, look: str, level: float) -> None:
        """Adds an upright box, a part of its own, from three ranges in metres."""
        self.part(level, (sum(x) / 2, sum(y) / 2, sum(z) / 2))
        near, far = [(x[i], y[j], z[0]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))], []
        far = [(px, py, z[1]) for px, py, _ in near]
        self.face(far, look)
        for i in range(4):
            j = (i + 1) % 4
            self.face((near[i], near[j], far[j], far[i]), look)

    def disc(self, centre, radius: float, look: str, normal) -> None:
        """Adds an upright disc whose axis is y (a wheel) or x (a spare wheel)."""
        x, y, z = centre
        if abs(normal[0]) > 0.5:
            points = [(x, y + radius * c, z + radius * s) for c, s in _CIRCLE]
        else:
            points = [(x + radius * c, y, z + radius * s) for c, s in _CIRCLE]
        self.face(points, look, normal)


def identity_generator(seed: int, identity: int) -> np.random.Generator:
    """The random stream of an identity's body and livery, apart from those of its samples."""
    key = np.random.SeedSequence((seed, identity, _IDENTITY_STREAM))
    return np.random.Generator(np.random.Philox(key))


@functools.lru_cache(maxsize=64)
def vehicle(seed: int, identity: int) -> Vehicle:
    """The vehicle of an identity: the same for the same (seed, identity) on every machine."""
    rng = identity_generator(seed, identity)
    kind = KINDS[rng.choice(len(KINDS), p=_SHARES)]
    build = _Builder()
    if kind == "truck":
        lamps, glints, footprint = _truck(build, rng)
    elif kind == "bus":
        lamps, glints, footprint = _bus(build, rng)
    else:
        lamps, glints, footprint = _car(build, rng, kind)
    names = sorted({look for *_, look in build.faces})
    # The livery draws for every name it knows, so a detail more or less leaves the paint alone.
    table = livery.draw(rng)
    return Vehicle(
        kind=kind,
        corners=np.concatenate([points for points, *_ in build.faces]),
        ends=np.cumsum([len(points) for points, *_ in build.faces]),
        normals=np.stack([normal for _, normal, *_ in build.faces]),
        centres=np.stack([points.mean(0) for points, *_ in build.faces]),
        parts=np.array([part for *_, part, _ in build.faces]),
        levels=np.array([level for level, _ in build.parts]),
        part_centres=np.stack([centre for _, centre in build.parts]),
        looks=np.array([names.index(look) for *_, look in build.faces]),
        materials=np.array([table[name] for name in names]),
        headlamps=np.array(lamps[0]),
        taillamps=np.array(lamps[1]),
        glints=np.array(glints),
        footprint=footprint,
    )


def _wheels(build: _Builder, axles, radius: float, half: float, rim: float) -> None:
    """Wheels with some depth: dark discs behind the body, tyre and rim in front of it."""
    build.part(-1, (0, 0, radius))
    for x in axles:
        for side in (-1, 1):
            for depth in (0.3, 0.2, 0.1, 0.0):
                build.disc((x, side * (half - depth), radius), radius, "tyre", (0, 0, 0))
    build.part(0.5, (0, 0, radius))
    for i, x in enumerate(axles):
        for side in (-1, 1):
            normal = (0, side, 0)
            build.disc((x, side * half, radius), radius, "tyre", normal)
            name = "rim_front" if i == 0 else "rim_rear"
            build.disc((x, side * half, radius), radius * rim, name, normal)
            build.disc((x, side * half, radius), radius * 0.2, "hub", normal)


def _side_details(build, rng, x, z, half, axles, radius) -> None:
    """Doors, sill, stripe, decal and wheel arches on both sides of the body.

    x: rear and front end of the doors; z: sill and belt; all in metres, mirrored left and right.
    """
    split = x[0] + (x[1] - x[0]) * rng.uniform(0.4, 0.6)
    stripe, decal = rng.random() < 0.4, rng.random() < 0.35
    low = z[0] + (z[1] - z[0]) * rng.uniform(0.2, 0.6)
    high = low + (z[1] - z[0]) * rng.uniform(0.14, 0.34)
    where = x[0] + (x[1] - x[0]) * rng.uniform(0.15, 0.55)
    long = (x[1] - x[0]) * rng.uniform(0.22, 0.4)
    slant = rng.uniform(-0.25, 0.25)
    for side in (-1, 1):
        y, normal = side * half, (0, side, 0)
        flat = lambda points, look, y=y, normal=normal: build.face(  # noqa: E731
            [(px, y, pz) for px, pz in points], look, normal
        )
        flat([(split, z[0]), (x[1], z[0]), (x[1], z[1]), (split, z[1])], "door_front")
        flat([(x[0], z[0]), (split, z[0]), (split, z[1]), (x[0], z[1])], "door_rear")
        edge, sill = 0.08 * half, z[0] + 0.2 * (z[1] - z[0])
        ends = (axles[-1] + radius, axles[0] - radius)
        flat([(ends[0], z[0]), (ends[1], z[0]), (ends[1], sill), (ends[0], sill)], "sill")
        if stripe:
            flat([(axles[-1], low), (axles[0], low), (axles[0], high), (axles[-1], high)], "stripe")
        if decal:
            top = z[1] - 0.08 * (z[1] - z[0])
            bottom = z[0] + 0.3 * (z[1] - z[0])
            flat(
                [(where, bottom), (where + long, bottom)]
                + [(where + long + slant, top), (where + slant, top)],
                "decal",
            )
        for seam in (split, x[1], x[0]):
            flat(
                [(seam - edge / 4, z[0]), (seam + edge / 4, z[0])]
                + [(seam + edge / 4, z[1]), (seam - edge / 4, z[1])],
                "seam",
            )
        for axle in axles:
            build.disc((axle, y, radius), radius * 1.18, "arch", normal)


def _front(build, rng, quad, normal) -> list:
    """Grille, lamps and plate on the front strip (corners right, left at the bottom); the lamps."""
    wide, tall = rng.uniform(0.16, 0.27), rng.uniform(0.3, 0.52)
    top = rng.uniform(0.8, 0.97)
    grille = rng.uniform(0.2, 0.36), rng.uniform(0.1, 0.4)
    build.patch(quad, "grille", (0.5 - grille[0], 0.5 + grille[0]), (grille[1], 0.9), normal)
    for u in ((0.03, 0.03 + wide), (0.97 - wide, 0.97)):
        build.patch(quad, "headlamp", u, (top - tall, top), normal)
    build.patch(quad, "plate", (0.38, 0.62), (0.08, 0.3), normal)
    return [_inside(quad, u, top - tall / 2) for u in (0.03 + wide / 2, 0.97 - wide / 2)]


def _back(build, rng, quad, normal) -> list:
    """Tail lamps, plate, warm exhaust corner and perhaps a spare wheel on the back strip."""
    wide, tall = rng.uniform(0.1, 0.2), rng.uniform(0.25, 0.7)
    bottom = rng.uniform(0.12, 0.25)
    corner = 0.05 if rng.random() < 0.5 else 0.6
    build.patch(quad, "tailgate", (0.14, 0.86), (0.1, 0.98), normal)
    # The back strip runs from the upper edge down: v is measured from its lower end here.
    build.patch(quad, "exhaust_heat", (corner, corner + 0.35), (0.0, 0.3), normal)
    for u in ((0.03, 0.03 + wide), (0.97 - wide, 0.97)):
        build.patch(quad, "taillamp", u, (bottom, min(bottom + tall, 0.97)), normal)
    height = rng.uniform(0.25, 0.6)
    build.patch(quad, "plate", (0.37, 0.63), (height, height + 0.18), normal)
    if rng.random() < 0.18:
        centre = _inside(quad, 0.5, 0.55) + np.asarray(normal) * 0.12
        build.disc(centre, 0.32, "tyre", (-1, 0, 0))
        build.disc(centre, 0.22, "spare", (-1, 0, 0))
    return [_inside(quad, u, bottom + tall / 2) for u in (0.03 + wide / 2, 0.97 - wide / 2)]


def _inside(quad, u: float, v: float) -> np.ndarray:
    a, b, c, d = (np.asarray(p, float) for p in quad)
    return (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * d + u * c)


def _upwards(quad):
    """The same four corners with the lower pair first."""
    return quad if quad[0][2] <= quad[3][2] else (quad[3], quad[2], quad[1], quad[0])


def _hood_details(build, rng, quad, normal) -> None:
    """Racing stripes and the engine's warm pattern on the hood (corners from front to cowl)."""
    pattern = rng.integers(4)
    spots = {
        0: [((0.2, 0.8), (0.15, 0.85))],
        1: [((0.05, 0.48), (0.1, 0.9))],
        2: [((0.05, 0.95), (0.05, 0.45))],
        3: [((0.05, 0.32), (0.1, 0.9)), ((0.68, 0.95), (0.1, 0.9))],
    }[int(pattern)]
    for u, v in spots:
        build.patch(quad, "engine_heat", u, v, normal)
    if rng.random() < 0.2:
        for u in ((0.34, 0.45), (0.55, 0.66)):
            build.patch(quad, "hood_stripe", u, (0, 1), normal)


def _on_roof(build, rng, x, half: float, z: float) -> None:
    """What stands on the roof: a rack, a box, a sign, a light bar, or nothing."""
    what = rng.choice(["none", "rack", "box", "sign", "bar"], p=[0.46, 0.2, 0.14, 0.1, 0.1])
    middle, length = (x[0] + x[1]) / 2, x[1] - x[0]
    if what == "rack":
        for side in (-1, 1):
            y = sorted((side * half * 0.92, side * half * 0.8))
            build.box((x[0] + 0.08 * length, x[1] - 0.08 * length), y, (z, z + 0.1), "rack", 2)
        for share in (0.2, 0.5, 0.8):
            at = x[0] + share * length
            build.box((at, at + 0.08), (-half * 0.9, half * 0.9), (z + 0.08, z + 0.13), "rack", 3)
    elif what == "box":
        y = (-half * 0.75, half * rng.uniform(0.0, 0.75))
        build.box((x[0] + 0.1 * length, x[1] - 0.2 * length), y, (z, z + 0.32), "roof_box", 2)
    elif what == "sign":
        build.box((middle - 0.15, middle + 0.15), (-0.35, 0.35), (z, z + 0.2), "sign", 2)
    elif what == "bar":
        build.box((middle, middle + 0.25), (-half * 0.9, half * 0.9), (z, z + 0.14), "light_bar", 2)


def _car(build, rng, kind):
    draw = [rng.uniform(*span) for span in _CAR_SHAPES[kind]]
    length, width, height, clear, hood, trunk, wind, rear = draw
    hood, trunk, wind, rear = (length * share for share in (hood, trunk, wind, rear))
    half, front, back = width / 2, length / 2, -length / 2
    belt = clear + (height - clear) * rng.uniform(0.5, 0.6) * (0.92 if kind == "van" else 1)
    nose = clear + (belt - clear) * rng.uniform(0.72, 0.9)
    radius = rng.uniform(0.145, 0.185) * (height + 0.5) * (1.1 if kind in ("suv", "pickup") else 1)
    axles = (front - length * rng.uniform(0.16, 0.2), back + length * rng.uniform(0.16, 0.21))
    cowl, deck = front - hood, back + trunk
    tail = belt if kind == "pickup" else belt - 0.06 * (trunk > 0.3)

    _wheels(build, axles, radius, half, rng.uniform(0.55, 0.78))
    build.part(0, (0, 0, (clear + belt) / 2))
    bump = clear + 0.3 * (nose - clear)
    profile = [
        (front - 0.1, clear, half * 0.94), (front, bump, half * 0.95),
        (front - 0.06, nose, half * 0.93), (cowl, belt, half), (deck, belt, half),
        (back + 0.05, tail, half * 0.95), (back, bump, half * 0.96), (back + 0.1, clear, half),
    ]  # fmt: skip
    looks = ("bumper", "front", "hood", "belt", "deck", "back", "bumper", None)
    strips, _ = build.loft(profile, looks, "fender")
    lamps = [_front(build, rng, *strips[1])]
    _hood_details(build, rng, *strips[2])
    lamps.append(_back(build, rng, _upwards(strips[5][0]), strips[5][1]))
    if kind == "pickup":
        build.patch(strips[4][0], "bed", (0.06, 0.94), (0.04, 0.95), strips[4][1])
    _side_details(build, rng, (deck if kind != "pickup" else deck, cowl - 0.05), (clear, belt),
                  half, axles, radius)  # fmt: skip

    roof = (deck + rear, cowl - wind)
    _cabin(build, rng, (cowl, deck), roof, (belt, height), half, kind)
    _on_roof(build, rng, roof, half * 0.8, height)
    for side in (-1, 1):
        y = sorted((side * half, side * (half + 0.17)))
        build.box((cowl - 0.3, cowl - 0.18), y, (belt, belt + 0.16), "mirror", 1.5)
    glints = [(front - hood / 2, 0, (nose + belt) / 2), (cowl - wind / 2, 0, (belt + height) / 2)]
    glints += [(0, side * half, belt) for side in (-1, 1)] + [(deck, 0, height), (back, 0, belt)]
    return lamps, glints, (length, width, height)


def _cabin(build, rng, base, roof, z, half, kind) -> None:
    """The glass house: windscreen, roof, rear window and side windows between the pillars."""
    build.part(1, ((base[0] + base[1]) / 2, 0, sum(z) / 2))
    top = half * (0.9 if kind == "van" else rng.uniform(0.76, 0.86))
    low = half * 0.97
    profile = [
        (base[0], z[0], low),
        (roof[1], z[1], top),
        (roof[0], z[1], top),
        (base[1], z[0], low),
    ]
    looks = ("pillar", "roof", "pillar", None)
    strips, sides = build.loft(profile, looks, "pillar")
    build.patch(strips[0][0], "windscreen", (0.06, 0.94), (0.08, 0.93), strips[0][1])
    lower = 0.45 if kind == "van" and rng.random() < 0.5 else 0.1
    build.patch(_upwards(strips[2][0]), "rear_glass", (0.08, 0.92), (lower, 0.9), strips[2][1])
    quad, normal = strips[1]
    if rng.random() < 0.3:
        build.patch(quad, "sunroof", (0.2, 0.8), (0.12, 0.45), normal)
    build.patch(quad, "roof_heat", *_ROOF_PATTERNS[rng.integers(len(_ROOF_PATTERNS))], normal)
    panel_van = kind == "van" and rng.random() < 0.5
    pillar = rng.uniform(0.42, 0.6)
    for points, normal in sides:
        front_low, front_top, rear_top, rear_low = points
        quad = (rear_low, front_low, front_top, rear_top)
        build.patch(quad, "side_glass", (pillar + 0.03, 0.93), (0.1, 0.88), normal)
        if not panel_van:
            build.patch(quad, "side_glass", (0.1, pillar - 0.02), (0.1, 0.88), normal)


_ROOF_PATTERNS = (
    ((0.0, 1.0), (0.5, 1.0)), ((0.0, 1.0), (0.0, 0.4)), ((0.0, 0.45), (0.0, 1.0)),
    ((0.25, 0.75), (0.2, 0.8)), ((0.0, 1.0), (0.0, 1.0)),
)  # fmt: skip


def _truck(build, rng):
    length, width = rng.uniform(5.6, 7.6), rng.uniform(2.0, 2.4)
    cab_height, clear = rng.uniform(2.2, 2.7), rng.uniform(0.4, 0.55)
    cab, half = rng.uniform(1.5, 2.0), width / 2
    front, back = length / 2, -length / 2
    radius = rng.uniform(0.42, 0.52)
    axles = [front - rng.uniform(0.9, 1.3), back + rng.uniform(1.0, 1.5)]
    if rng.random() < 0.4:
        axles.append(axles[1] - 2.15 * radius)
    _wheels(build, axles, radius, half, rng.uniform(0.5, 0.7))
    build.box((back, front - 0.2), (-half * 0.9, half * 0.9), (clear, clear + 0.35), "chassis", 0)

    nose, low = rng.uniform(0.0, 0.35), clear - 0.05
    waist = low + (cab_height - low) * rng.uniform(0.42, 0.52)
    build.part(1, (front - cab / 2, 0, cab_height / 2))
    profile = [
        (front - 0.03, low, half * 0.97), (front, low + 0.35, half), (front - 0.04, waist, half),
        (front - 0.1 - nose, cab_height, half * 0.92), (front - cab, cab_height, half * 0.92),
        (front - cab, low, half),
    ]  # fmt: skip
    looks = ("bumper", "front", "pillar", "roof", "pillar", None)
    strips, sides = build.loft(profile, looks, "door_front")
    lamps = [_front(build, rng, *strips[1])]
    build.patch(strips[2][0], "windscreen", (0.05, 0.95), (0.1, 0.85), strips[2][1])
    build.patch(strips[1][0], "engine_heat", (0.25, 0.75), (0.4, 1.0), strips[1][1])
    build.patch(strips[3][0], "roof_heat", (0, 1), (0, 0.6), strips[3][1])
    for _, normal in sides:
        y = normal[1] / abs(normal[1]) * half * 0.985
        glass = [(front - cab * 0.75, waist), (front - cab * 0.12, waist)]
        glass += [
            (front - cab * 0.12 - nose, cab_height - 0.2),
            (front - cab * 0.75, cab_height - 0.2),
        ]
        build.face([(x, y, z) for x, z in glass], "side_glass", normal)
        build.disc((axles[0], y, radius), radius * 1.15, "arch", normal)

    start, floor = front - cab - rng.uniform(0.1, 0.3), clear + 0.4
    low_bed = rng.random() < 0.3
    height = floor + rng.uniform(0.4, 0.8) if low_bed else rng.uniform(2.5, 3.3)
    build.part(1, ((start + back) / 2, 0, (floor + height) / 2))
    profile = [
        (start, floor, half),
        (start, height, half),
        (back, height, half),
        (back, floor, half),
    ]
    strips, sides = build.loft(profile, ("cargo_front", "cargo_top", "cargo_back", None), "cargo")
    if low_bed:
        build.patch(strips[1][0], "bed", (0.04, 0.96), (0.02, 0.98), strips[1][1])
    else:
        build.patch(strips[1][0], "roof_heat", (0, 1), (0.4, 0.8), strips[1][1])
    panels = rng.uniform(0.25, 0.45), rng.uniform(0.55, 0.75)
    band = sorted(rng.uniform(0.1, 0.9, 2))
    stripe, decal = rng.random() < 0.5, rng.random() < 0.4
    for points, normal in sides:
        quad = (points[3], points[0], points[1], points[2])
        build.patch(quad, "cargo_panel", panels, (0, 1), normal)
        build.patch(quad, "cargo_heat", (0, panels[0]), (0, 0.6), normal)
        if stripe:
            build.patch(quad, "stripe", (0, 1), (band[0], max(band[1], band[0] + 0.15)), normal)
        if decal:
            build.patch(quad, "decal", (panels[0] + 0.05, panels[1] + 0.15), (0.3, 0.75), normal)
    lamps.append(_back(build, rng, _upwards(strips[2][0]), strips[2][1]))
    glints = [(front, 0, waist + 0.3), (0, half, height * 0.8), (0, -half, height * 0.8)]
    glints += [(start - 1, 0, height), (back, 0, height * 0.7)]
    return lamps, glints, (length, width, max(height, cab_height))


def _bus(build, rng):
    length, width, height = rng.uniform(7.0, 10.5), rng.uniform(2.2, 2.5), rng.uniform(2.7, 3.2)
    clear, half, radius = rng.uniform(0.3, 0.4), width / 2, rng.uniform(0.42, 0.5)
    front, back = length / 2, -length / 2
    axles = (front - length * rng.uniform(0.16, 0.28), back + length * rng.uniform(0.2, 0.32))
    waist = clear + (height - clear) * rng.uniform(0.38, 0.5)
    _wheels(build, axles, radius, half, rng.uniform(0.5, 0.7))
    build.part(0, (0, 0, height / 2))
    slope = rng.uniform(0.05, 0.5)
    profile = [
        (front - 0.05, clear, half), (front, clear + 0.4, half), (front - 0.03, waist, half),
        (front - slope, height, half * 0.95), (back + 0.1, height, half * 0.95),
        (back, waist, half), (back, clear, half),
    ]  # fmt: skip
    looks = ("bumper", "front", "pillar", "roof", "pillar", "back", None)
    strips, _ = build.loft(profile, looks, "fender")
    lamps = [_front(build, rng, *strips[1])]
    build.patch(strips[2][0], "windscreen", (0.04, 0.96), (0.03, 0.9), strips[2][1])
    build.patch(strips[3][0], "roof_heat", *_ROOF_PATTERNS[rng.integers(5)], strips[3][1])
    build.patch(_upwards(strips[4][0]), "rear_glass", (0.12, 0.88), (0.15, 0.8), strips[4][1])
    quad = _upwards(strips[5][0])
    lamps.append(_back(build, rng, quad, strips[5][1]))
    build.patch(quad, "engine_heat", (0.2, 0.8), (0.3, 0.9), strips[5][1])
    _side_details(build, rng, (axles[1], axles[0]), (clear, waist), half, axles, radius)
    count, top = int(rng.integers(4, 8)), height - rng.uniform(0.35, 0.7)
    edges = np.linspace(back + 0.3, front - slope - 0.1, count + 1)
    for side in (-1, 1):
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            rect = [(a + 0.06, waist), (b - 0.06, waist), (b - 0.06, top), (a + 0.06, top)]
            build.face([(x, side * half * 0.985, z) for x, z in rect], "side_glass", (0, side, 0))
    _on_roof(build, rng, (back * 0.6, back * 0.1), half * 0.9, height)
    glints = [(front, 0, waist + 0.5), (0, half, waist), (0, -half, waist), (back, 0, waist)]
    return lamps, [*glints, (front / 2, 0, height)], (length, width, height)
