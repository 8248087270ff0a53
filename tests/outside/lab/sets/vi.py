"""Persons in visible and infrared: from files (BUILDER), or drawn in memory (`load`)."""

import pathlib
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_tfds.arrays import split_of
from data_tfds.builder import Config
from data_tfds.samples import INFRARED, VISIBLE, Split
from data_tfds.sets.folder import Folder
from facenet_jax.inputs.dataset import Dataset
from lab.protocols import ALL_SEARCH, OF_FILES

SIZE = (32, 16)
CAMERAS = {VISIBLE: (1, 1, 2, 2), INFRARED: (3, 6, 3)}
"""The camera of each image of one identity."""


def pictures(identities, seed: int):
    """(modality, identity, camera, view, pixels) of every image."""
    rng = np.random.default_rng(seed)
    for identity in identities:
        colour = np.random.default_rng(identity).integers(40, 215, 3)
        for modality, cameras in CAMERAS.items():
            for camera in cameras:
                noise = rng.integers(-40, 1, (*SIZE, 3)) + rng.integers(0, 41, 3)
                base = colour if modality == VISIBLE else colour.mean()
                yield modality, identity, camera, int(rng.integers(4)), np.uint8(base + noise)


def split(identities, seed: int) -> Split:
    """Samples with one image each: 4 visible and 3 infrared ones of an identity."""
    found = list(pictures(identities, seed))
    kinds = [modality for modality, *_ in found]
    images = {m: np.stack([x[-1] for x in found if x[0] == m]) for m in CAMERAS}
    rows = [
        np.where([k == m for k in kinds], np.cumsum([k == m for k in kinds]) - 1, -1)
        for m in CAMERAS
    ]
    return split_of(
        images,
        [identity for _, identity, *_ in found],
        rows=np.array(rows),
        camera=[x[2] for x in found],
        view=[x[3] for x in found],
        weather=np.arange(len(found)) % 3,
    )


def load(data) -> Dataset:
    """Eight identities to train on, four to test with; root "second": others, to test with only."""
    if data.root == "second":
        splits = {"test": split(range(200, 205), seed=2)}
    else:
        splits = {"train": split(range(8), seed=0), "test": split(range(100, 104), seed=1)}
    return Dataset("vi", tuple(CAMERAS), splits, ALL_SEARCH)


class VI(Folder):
    """`{train,query,gallery}/<identity>/{vis,ir}/<name>_c<camera>_v<view>.png`."""

    name = "lab_vi"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First."}
    BUILDER_CONFIGS: ClassVar = [
        Config(
            name="all_search",
            description="Infrared finds visible.",
            protocol=OF_FILES,
            instructions="Draw it with lab.sets.vi.write(folder).",
        )
    ]
    NEEDS_PROTOCOL = False


BUILDER = VI


def write(root: pathlib.Path) -> None:
    """The same kind of images as a tree of files."""
    for name, identities, kinds in (
        ("train", range(8), (VISIBLE, INFRARED)),
        ("query", range(100, 104), (INFRARED,)),
        ("gallery", range(100, 104), (VISIBLE,)),
    ):
        for number, (kind, identity, camera, view, pixels) in enumerate(pictures(identities, 3)):
            if kind in kinds:
                folder = root / name / f"{identity:04d}" / ("vis" if kind == VISIBLE else "ir")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{number:04d}_c{camera}_v{view}.png")
