"""What lies on a vehicle's faces: wheels, doors, stripes, lamps, plates, warm spots, roof loads.

Every function adds to a Builder and draws its proportions from the identity's stream. Lengths are
metres, u and v shares of a face.
"""

from collections.abc import Sequence

import numpy as np

from data_tfds.rendered import solids

_ROOF_PATTERNS = (
    ((0.0, 1.0), (0.5, 1.0)),
    ((0.0, 1.0), (0.0, 0.4)),
    ((0.0, 0.45), (0.0, 1.0)),
    ((0.25, 0.75), (0.2, 0.8)),
    ((0.0, 1.0), (0.0, 1.0)),
)
_ENGINE_PATTERNS = (
    (((0.2, 0.8), (0.15, 0.85)),),
    (((0.05, 0.48), (0.1, 0.9)),),
    (((0.05, 0.95), (0.05, 0.45)),),
    (((0.05, 0.32), (0.1, 0.9)), ((0.68, 0.95), (0.1, 0.9))),
)


def wheels(build, axles: Sequence[float], radius: float, half: float, rim: float) -> None:
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
            look = "rim_front" if i == 0 else "rim_rear"
            build.disc((x, side * half, radius), radius * rim, look, normal)
            build.disc((x, side * half, radius), radius * 0.2, "hub", normal)


def flank(build, rng, x: Sequence, z: Sequence, half: float, axles: Sequence, radius: float):
    """Doors, sill, stripe, decal and wheel arches on both sides of the body, the same on each.

    x: rear and front end of the doors; z: their lower and upper edge.
    """
    tall = z[1] - z[0]
    split = x[0] + (x[1] - x[0]) * rng.uniform(0.4, 0.6)
    stripe, decal = rng.random() < 0.45, rng.random() < 0.4
    low = z[0] + tall * rng.uniform(0.2, 0.6)
    high = low + tall * rng.uniform(0.14, 0.34)
    where = x[0] + (x[1] - x[0]) * rng.uniform(0.15, 0.55)
    long, slant = (x[1] - x[0]) * rng.uniform(0.22, 0.4), rng.uniform(-0.25, 0.25)
    top, bottom = z[1] - 0.08 * tall, z[0] + 0.3 * tall
    slanted = ((where, bottom), (where + long, bottom), (where + long + slant, top))
    for side in (-1, 1):
        y, normal = side * half, (0, side, 0)

        def add(points, look, y=y, normal=normal):
            build.face([(px, y, pz) for px, pz in points], look, normal)

        def rectangle(x0, x1, z0, z1, look, add=add):
            add([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], look)

        rectangle(split, x[1], *z, "door_front")
        rectangle(x[0], split, *z, "door_rear")
        rectangle(axles[-1] + radius, axles[0] - radius, z[0], z[0] + 0.2 * tall, "sill")
        if stripe:
            rectangle(axles[-1], axles[0], low, high, "stripe")
        if decal:
            add([*slanted, (where + slant, top)], "decal")
        for seam in (split, *x):
            rectangle(seam - 0.018, seam + 0.018, *z, "seam")
        for axle in axles:
            build.disc((axle, y, radius), radius * 1.18, "arch", normal)


def front(build, rng, quad, normal) -> list[np.ndarray]:
    """Grille, lamps and plate on the front (lower corners first); returns where the lamps are."""
    wide, tall = rng.uniform(0.16, 0.27), rng.uniform(0.3, 0.52)
    top = rng.uniform(0.8, 0.97)
    grille = rng.uniform(0.2, 0.36), rng.uniform(0.1, 0.4)
    build.patch(quad, "grille", (0.5 - grille[0], 0.5 + grille[0]), (grille[1], 0.9), normal)
    for u in ((0.03, 0.03 + wide), (0.97 - wide, 0.97)):
        build.patch(quad, "headlamp", u, (top - tall, top), normal)
    build.patch(quad, "plate", (0.38, 0.62), (0.08, 0.3), normal)
    return [solids.inside(quad, u, top - tall / 2) for u in (0.03 + wide / 2, 0.97 - wide / 2)]


def back(build, rng, quad, normal, spare_wheel: bool = False) -> list[np.ndarray]:
    """Tail lamps, plate and exhaust on the back (lower corners first); returns the lamps."""
    wide, tall = rng.uniform(0.1, 0.2), rng.uniform(0.25, 0.7)
    bottom = rng.uniform(0.12, 0.25)
    corner = 0.05 if rng.random() < 0.5 else 0.6
    build.patch(quad, "tailgate", (0.14, 0.86), (0.1, 0.98), normal)
    build.patch(quad, "exhaust_heat", (corner, corner + 0.35), (0.0, 0.3), normal)
    for u in ((0.03, 0.03 + wide), (0.97 - wide, 0.97)):
        build.patch(quad, "taillamp", u, (bottom, min(bottom + tall, 0.97)), normal)
    height = rng.uniform(0.25, 0.6)
    build.patch(quad, "plate", (0.37, 0.63), (height, height + 0.18), normal)
    if spare_wheel:
        centre = solids.inside(quad, 0.5, 0.6) - (0.03, 0, 0)
        build.disc(centre, 0.32, "tyre", (-1, 0, 0))
        build.disc(centre, 0.23, "spare", (-1, 0, 0))
    return [solids.inside(quad, u, bottom + tall / 2) for u in (0.03 + wide / 2, 0.97 - wide / 2)]


def hood(build, rng, quad, normal) -> None:
    """Stripes and the engine's warm pattern on the hood (corners from the front backwards)."""
    for u, v in _ENGINE_PATTERNS[rng.integers(len(_ENGINE_PATTERNS))]:
        build.patch(quad, "engine_heat", u, v, normal)
    if rng.random() < 0.2:
        for u in ((0.34, 0.45), (0.55, 0.66)):
            build.patch(quad, "hood_stripe", u, (0, 1), normal)


def roof(build, rng, quad, normal) -> None:
    """A warm or cold area on the roof, and perhaps a sunroof."""
    build.patch(quad, "roof_heat", *_ROOF_PATTERNS[rng.integers(len(_ROOF_PATTERNS))], normal)
    if rng.random() < 0.25:
        build.patch(quad, "sunroof", (0.2, 0.8), (0.12, 0.45), normal)


def roof_load(build, rng, x: Sequence, half: float, z: float) -> None:
    """What stands on a roof from x[0] to x[1]: a rack, a box, a sign, a light bar, or nothing."""
    what = rng.choice(["none", "rack", "box", "sign", "bar"], p=[0.32, 0.2, 0.22, 0.13, 0.13])
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
