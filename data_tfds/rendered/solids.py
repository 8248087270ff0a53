"""A builder of vehicles from flat faces: convex parts, and details that lie on their faces.

x points forward, y to the left, z up; metres; the ground is z = 0. Faces that look away from the
camera are dropped, parts are painted from far to near, and inside a part the details follow the
face they lie on, so no depth buffer is needed.
"""

import math
from collections.abc import Sequence

import numpy as np

Points = Sequence[Sequence[float]]
_CIRCLE = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 15)[:-1]]


class Builder:
    """Collects `faces` (corners, outward normal, part, look) and `parts` (level, centre).

    `look` names a row of the livery. A part with a higher level is painted later.
    """

    def __init__(self):
        self.faces, self.parts = [], []

    def part(self, level: float, centre: Sequence[float]) -> None:
        """Starts a new convex part; the faces that follow belong to it."""
        self.parts.append((level, np.asarray(centre, float)))

    def face(self, points: Points, look: str, normal: Sequence[float] | None = None) -> np.ndarray:
        """Adds a face and returns its outward normal, by default away from the part's centre.

        A normal of zero makes a face that is seen from both sides.
        """
        points = np.asarray(points, float)
        if normal is None:
            following = np.roll(points, -1, axis=0)
            normal = np.cross(points, following).sum(0)  # Newell: also right for bent polygons
            normal /= max(np.linalg.norm(normal), 1e-9)
            if normal @ (points.mean(0) - self.parts[-1][1]) < 0:
                normal = -normal
        normal = np.asarray(normal, float)
        self.faces.append((points, normal, len(self.parts) - 1, look))
        return normal

    def patch(self, quad: Points, look: str, u: Points, v: Points, normal) -> None:
        """Adds the part u x v (ranges in 0..1) of a face with four corners, as a detail on it."""
        corners = [inside(quad, s, t) for s, t in zip((*u, *u[::-1]), np.repeat(v, 2), strict=True)]
        self.face(corners, look, normal)

    def loft(self, profile: Points, looks: Sequence[str | None], side: str) -> tuple[list, list]:
        """Adds the solid that a side view spans; returns its strips and sides with their normals.

        profile: (x, z, half width) per corner; strip i joins corners i and i + 1, its corners run
        right, left, left, right, and it looks like looks[i] (None: left out).
        """
        right = [(x, -w, z) for x, z, w in profile]
        left = [(x, w, z) for x, z, w in profile]
        strips = []
        for i, look in enumerate(looks):
            j = (i + 1) % len(profile)
            quad = (right[i], left[i], left[j], right[j])
            strips.append((quad, self.face(quad, look) if look else None))
        return strips, [(points, self.face(points, side)) for points in (right, left)]

    def box(self, x: Sequence, y: Sequence, z: Sequence, look: str, level: float) -> None:
        """Adds an upright box, a part of its own, from three ranges."""
        self.part(level, (sum(x) / 2, sum(y) / 2, sum(z) / 2))
        low = [(x[i], y[j], z[0]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
        high = [(px, py, z[1]) for px, py, _ in low]
        self.face(high, look)
        for i in range(4):
            j = (i + 1) % 4
            self.face((low[i], low[j], high[j], high[i]), look)

    def disc(self, centre: Sequence[float], radius: float, look: str, normal) -> None:
        """Adds an upright disc; its axis is x where the normal says so, else y (a wheel).

        What would lie under the ground is cut off.
        """
        x, y, z = centre
        heights = [max(z + radius * s, 0.0) for _, s in _CIRCLE]
        if abs(normal[0]) > 0.5:
            points = [(x, y + radius * c, h) for (c, _), h in zip(_CIRCLE, heights, strict=True)]
        else:
            points = [(x + radius * c, y, h) for (c, _), h in zip(_CIRCLE, heights, strict=True)]
        self.face(points, look, normal)


def inside(quad: Points, u: float, v: float) -> np.ndarray:
    """The point at share u along the first edge and v towards the opposite one."""
    a, b, c, d = (np.asarray(p, float) for p in quad)
    return (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * d + u * c)


def upwards(quad: Points) -> Points:
    """The same four corners with the lower pair first, so that v runs up."""
    return quad if quad[0][2] <= quad[3][2] else (quad[3], quad[2], quad[1], quad[0])
