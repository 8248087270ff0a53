"""What a file name says about its image, for every data set, in one place."""

import dataclasses
import re
from collections.abc import Callable

PLACEHOLDER_SCENE = 999
"""The scene number WMVeID863 writes where it has none."""


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The numbers in a file name; -1 where the data set has none."""

    identity: int
    camera: int
    scene: int = -1
    night: int = -1


Parser = Callable[[str], Parsed | None]
"""From a file name to its numbers, or None where the name does not follow the pattern."""

_WMVEID863 = re.compile(r"(\d+)_v(\d)_n(\d)_s(\d+)_\d+\.jpe?g", re.IGNORECASE)
WMVEID863_PATTERN = "0001_v1_n1_s012_003.jpg: identity, view, night, scene, number"


def wmveid863(name: str) -> Parsed | None:
    """Identity, view digit as camera, scene (s999 is -1) and night digit of a WMVeID863 name."""
    match = _WMVEID863.fullmatch(name)
    if match is None:
        return None
    identity, view, night, scene = map(int, match.groups())
    return Parsed(identity, view, -1 if scene == PLACEHOLDER_SCENE else scene, night)
