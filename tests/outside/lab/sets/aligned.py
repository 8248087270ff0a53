"""Aligned images in three modalities, drawn in memory."""

import numpy as np

from data_tfds.arrays import split_of
from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE, Protocol, Split
from facenet_jax.inputs.dataset import Dataset

MODALITIES = (VISIBLE, NEAR_INFRARED, THERMAL)


def split(identities: int, first: int, seed: int) -> Split:
    """Four samples of each identity, in cameras 0 and 1."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(60, 190, (3, identities, 1, 1, 1, 3))
    images = colour + rng.integers(-40, 41, (3, identities, 4, 32, 16, 3))
    images = images.reshape(3, -1, 32, 16, 3).astype(np.uint8)
    identity = first + np.arange(4 * identities) // 4
    camera = np.arange(4 * identities) % 2
    return split_of(dict(zip(MODALITIES, images, strict=True)), identity, camera=camera)


def load(data) -> Dataset:
    """Eight identities to train on, four that query themselves across cameras."""
    seed = 5 if data.root == "second" else 0
    splits = {"train": split(8, 0, seed), "gallery": split(4, 50, seed + 1)}
    return Dataset("aligned", MODALITIES, splits, Protocol("aligned/camera", "camera"))
