"""Tiny visible-infrared systems: data in which each image is a sample of its own, and configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from configs.agw import demo as agw
from configs.ffdml import demo as ffdml
from configs.mun import demo as mun
from data_tfds.samples import INFRARED, VISIBLE, Protocol, Side, Split
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.types import Batch, DataSpec
from tests.support import tiny_run as tiny

MODALITIES = (VISIBLE, INFRARED)
SPEC = DataSpec(MODALITIES, tiny.SIZE, tiny.IDENTITIES, {"camera": 1})
DEMOS = {"two_stem": agw, "ffdml": ffdml, "mun": mun}
PROTOCOL = Protocol(
    "tiny/infrared_to_visible",
    query=Side("query", (INFRARED,)),
    gallery=Side("gallery", (VISIBLE,)),
)


def config(name: str, row: str = "", **changes):
    """The demo of a system, or of a row of its ablations, on a ResNet of a few channels."""
    c = DEMOS[name].get_config(row or name)
    c.data.image_size = tiny.SIZE
    c.model.variant, c.model.width, c.model.depths = "", 2, (1, 1, 1, 1)
    c.augment.pad = 2
    c.train.identities_per_batch, c.train.samples_per_identity = 4, 2
    c.train.steps_per_dispatch = 3
    c.train.steps = 0
    c.train.evaluate_every = c.train.save_every = 0
    c.evaluate.batch = 8
    c.evaluate.sanity_baselines = False
    if name == "ffdml":
        c.model.fusion_width = 4
    if name == "mun":
        c.model.pool_sizes, c.model.prototype_rows = (2, 4), 8
    c.update_from_flattened_dict({name.replace("__", "."): x for name, x in changes.items()})
    return c


def jitted(model):
    """The model's apply in one program for each kind of call."""
    return jax.jit(model.apply, static_argnames=("train", "modalities"))


def batch(size: int = 8, seed: int = 0) -> Batch:
    """A batch of noise."""
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(-1, 1, (2, size, *tiny.SIZE, 3)), jnp.float32)
    return Batch(images, jnp.asarray(np.arange(size) // 2, jnp.int32), {})


def unpaired(split: Split) -> Split:
    """The visible and infrared images of an aligned split, each as a sample of its own."""
    count = len(split)
    rows = np.full((2, 2 * count), -1, np.int32)
    rows[0, 0::2] = rows[1, 1::2] = np.arange(count)
    images = list(split.images.values())[:2]
    twice = np.arange(count).repeat(2)
    order = np.argsort(split.identity[twice], kind="stable")
    made = tiny.split(dict(zip(MODALITIES, images, strict=True)), split.identity[twice], rows)
    return made.take(order)


def dataset() -> Dataset:
    """A data set of arrays."""
    found = tiny.dataset()
    splits = {name: unpaired(split) for name, split in found.splits.items()}
    splits["query"] = unpaired(tiny.training_split(4, seed=6))
    return dataclasses.replace(found, modalities=MODALITIES, splits=splits, protocol=PROTOCOL)
