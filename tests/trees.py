"""Small data sets with generated pixels in the real trees, for the tests of the data side."""

import pathlib

import numpy as np
from PIL import Image

BANDS = ("vis", "ni", "th")


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
