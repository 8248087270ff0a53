"""What a file name says about its image, for every data set, in one place."""

import dataclasses
import re
from collections.abc import Callable

PLACEHOLDER_SCENE = 999
"""The scene number WMVeID863 writes where it has none."""


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The numbers in a file name; -1 where it has none."""

    identity: int
    camera: int
    scene: int = -1
    night: int = -1


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a data set names its files."""

    parse: Callable[[str], Parsed | None]  # None where a name does not follow the pattern
    pattern: str  # an example and its parts, for messages


def _wmveid863(name: str) -> Parsed | None:
    match = re.fullmatch(r"(\d+)_v(\d)_n(\d)_s(\d+)_\d+\.jpe?g", name, re.IGNORECASE)
    if match is None:
        return None
    identity, view, night, scene = map(int, match.groups())
    return Parsed(identity, view, -1 if scene == PLACEHOLDER_SCENE else scene, night)


def _rgbnt100(name: str) -> Parsed | None:
    match = re.fullmatch(r"(\d+)_c(\d+)_\d+\.jpe?g", name, re.IGNORECASE)
    if match is None or not (1 <= int(match[1]) <= 600 and 1 <= int(match[2]) <= 8):
        return None
    return Parsed(int(match[1]), int(match[2]))


def _msvr310(name: str) -> Parsed | None:
    match = re.fullmatch(r"(\d{4})_s(\d{3})_v([0-7])_\d+\.jpe?g", name, re.IGNORECASE)
    return match and Parsed(int(match[1]), int(match[3]), int(match[2]))


def _rgbnt201(name: str) -> Parsed | None:
    match = re.fullmatch(r"(\d+)_cam(\d+)_\d+_\d+\.jpe?g", name, re.IGNORECASE)
    return match and Parsed(int(match[1]), int(match[2]))


def _folder(name: str) -> Parsed:
    """Camera `_c3` or `_v3` and scene `_s012` of a name of the user's own, where it has them."""
    fields = name.rpartition(".")[0].lower().split("_")
    found = {field[0]: int(field[1:]) for field in fields if re.fullmatch(r"[cvs]\d+", field)}
    camera = found["c"] if "c" in found else found.get("v", -1)
    return Parsed(-1, camera, found.get("s", -1))


WMVEID863 = Naming(_wmveid863, "0001_v1_n1_s012_003.jpg (identity, view, night, scene, number)")
RGBNT100 = Naming(_rgbnt100, "0502_c0001_000.jpg (identity 1-600, camera 1-8, number)")
MSVR310 = Naming(_msvr310, "0002_s002_v0_000.jpg (identity, scene, view 0-7, number)")
RGBNT201 = Naming(_rgbnt201, "000258_cam1_0_00.jpg (identity, camera, track, number)")
FOLDER = Naming(_folder, "anything_c1_s12.png (camera or view, scene)")
