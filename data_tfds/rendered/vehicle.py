"""The vehicles of the rendered set: one identity as arrays of flat faces, each with its look."""

import dataclasses
import functools

import numpy as np

from data_tfds.rendered import bodies, livery
from data_tfds.rendered.solids import Builder

_KINDS = ("sedan", "hatch", "suv", "van", "pickup", "truck", "bus")
_SHARES = (0.2, 0.14, 0.16, 0.15, 0.13, 0.13, 0.09)
_IDENTITY_STREAM = 1


@dataclasses.dataclass(frozen=True)
class Vehicle:
    """One identity: F faces over V corners in metres, ordered inside each part, and their looks."""

    kind: str
    corners: np.ndarray  # [V, 3]
    ends: np.ndarray  # [F] face i owns corners ends[i - 1]:ends[i]
    normals: np.ndarray  # [F, 3] outward, unit; zero for faces seen from both sides
    centres: np.ndarray  # [F, 3]
    parts: np.ndarray  # [F] index of the part
    levels: np.ndarray  # [parts] a part with a higher level is painted later
    part_centres: np.ndarray  # [parts, 3]
    looks: np.ndarray  # [F] row of `materials`
    materials: np.ndarray  # [K, 8] columns of livery.COLUMNS
    headlamps: np.ndarray  # [2, 3]
    taillamps: np.ndarray  # [2, 3]
    glints: np.ndarray  # [G, 3] points of the body where the sun may be mirrored
    size: tuple[float, float, float]  # length, width, height


def identity_generator(seed: int, identity: int) -> np.random.Generator:
    """The random stream of an identity's body and livery, apart from those of its samples."""
    key = np.random.SeedSequence((seed, identity, _IDENTITY_STREAM))
    return np.random.Generator(np.random.Philox(key))


@functools.lru_cache(maxsize=64)
def vehicle(seed: int, identity: int, infrared_follows_paint: float = 0.0) -> Vehicle:
    """The vehicle of an identity: the same for the same arguments on every machine.

    `infrared_follows_paint` is the share of livery.infrared_of_paint.
    """
    rng = identity_generator(seed, identity)
    kind = _KINDS[rng.choice(len(_KINDS), p=_SHARES)]
    build = Builder()
    if kind == "truck":
        lights = bodies.truck(build, rng)
    elif kind == "bus":
        lights = bodies.bus(build, rng)
    else:
        lights = bodies.car(build, rng, kind)
    points, normals, parts, looks = zip(*build.faces, strict=True)
    names = sorted(set(looks))
    table = livery.draw(rng)
    materials = np.array([table[name] for name in names])
    return Vehicle(
        kind=kind,
        corners=np.concatenate(points),
        ends=np.cumsum([len(corners) for corners in points]),
        normals=np.stack(normals),
        centres=np.stack([corners.mean(0) for corners in points]),
        parts=np.array(parts),
        levels=np.array([level for level, _ in build.parts]),
        part_centres=np.stack([centre for _, centre in build.parts]),
        looks=np.array([names.index(look) for look in looks]),
        materials=livery.infrared_of_paint(materials, infrared_follows_paint),
        headlamps=np.array(lights.headlamps),
        taillamps=np.array(lights.taillamps),
        glints=np.array(lights.glints),
        size=lights.size,
    )
