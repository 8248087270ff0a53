"""Small data sets with generated pixels in the real trees, for the tests of the data side."""

import pathlib

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

BANDS = ("vis", "ni", "th")


def section(name: str, root, prepared, **changes) -> ConfigDict:
    """The config section `data` of a small data set."""
    values = {
        "name": name,
        "root": str(root),
        "prepared": str(prepared),
        "image_size": (8, 6),
        "train_resize": "bicubic",
        "test_resize": "bicubic",
        "validation_identities": 0,
        "incomplete": "error",
    }
    return ConfigDict({**values, **changes})


def picture(seed: int, size=(12, 16)) -> Image.Image:
    """A smooth random RGB image of (height, width), so that JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    return corners.resize(size[::-1], Image.Resampling.BILINEAR)


def write_triplet(root: pathlib.Path, split: str, name: str, seed: int, folder=None) -> None:
    """Three different images under one name; the identity folder is the name's unless given."""
    for band, label in enumerate(BANDS):
        path = root / split / (folder or name[:4]) / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(3 * seed + band).save(path, quality=90)


def wmveid863(root: pathlib.Path, query: bool = True) -> pathlib.Path:
    """Four training identities of two views, two test identities of two views."""
    splits = {"train": (1, 2, 7, 10), "test": (3, 5)}
    if query:
        splits["query"] = (3, 5)
    for split, identities in splits.items():
        for identity in identities:
            for view in (1,) if split == "query" else (1, 4):
                name = f"{identity:04d}_v{view}_n{view % 2}_s0{identity:02d}_00{view}.jpg"
                write_triplet(root, split, name, identity * 10 + view)
    return root


def msvr310(root: pathlib.Path) -> pathlib.Path:
    """Two training and two test identities in two scenes each, and the unused folder query."""
    splits = {"bounding_box_train": (1, 4), "bounding_box_test": (2, 3), "query3": (3,)}
    for split, identities in {**splits, "query": (2, 3)}.items():
        for identity in identities:
            for scene in (5, 6):
                name = f"{identity:04d}_s{scene:03d}_v{scene - 3}_000.jpg"
                write_triplet(root, split, name, identity * 10 + scene)
    return root


def rgbnt100(root: pathlib.Path) -> pathlib.Path:
    """Two training and two test identities under two cameras each, as strips."""
    splits = {"bounding_box_train": (501, 7), "query": (502,), "bounding_box_test": (502, 600)}
    for split, identities in splits.items():
        for identity in identities:
            for camera in (1, 8):
                path = root / "rgbir" / split / f"{identity:04d}_c{camera:04d}_000.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(identity + camera, (128, 768)).save(path, quality=90)
    return root


def rgbnt201(root: pathlib.Path) -> pathlib.Path:
    """Two training and two test identities under two cameras each."""
    for split, identities in {"train_171": (9, 11), "test": (258, 40)}.items():
        for identity in identities:
            for camera in (1, 4):
                for band, label in enumerate(("RGB", "NI", "TI")):
                    path = root / split / label / f"{identity:06d}_cam{camera}_0_00.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture(10 * identity + camera + band).save(path, quality=90)
    return root


def folder(root: pathlib.Path) -> pathlib.Path:
    """Grey PNG triplets of the user's own: two identities a split, two cameras and scenes."""
    for split, identities in {"train": (1, 2), "query": (30,), "gallery": (30, 40)}.items():
        for identity in identities:
            for camera in (1, 2):
                name = f"shot_c{camera}_s{camera + 6}.png"
                for band, label in enumerate(BANDS):
                    path = root / split / str(identity) / label / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture(identity * 10 + camera + band).convert("L").save(path)
    return root
