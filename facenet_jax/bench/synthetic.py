"""Random pixels in the shape and size of a data set, and a run on them: measuring without one."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data_tfds import flare
from data_tfds.arrays import split_of
from data_tfds.samples import Protocol, Split
from data_tfds.sizes import KNOWN, Size
from facenet_jax import run as runs
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.types import Batch, DataSpec

CAMERAS = 8
FLARED = 0.3
"""The share of images with flare, of the modalities that flare can blind."""

LABELS = {"camera": CAMERAS, "scene": 0, "view": 0, "night": 0}
"""How many values each label has; 0: it is not known of any sample."""


def modalities(name: str) -> tuple[str, ...]:
    """The modalities of the data set that `data.name` names."""
    if name in KNOWN:
        return KNOWN[name][0]
    from data_tfds import sets  # TFDS, which may not be installed where only speed is measured

    return sets.lookup(name)[0].MODALITIES


def size(name: str) -> Size:
    """How large the data set is that `data.name` names; UserError where that is not known."""
    if name in KNOWN:
        return KNOWN[name][1]
    from data_tfds import sets

    return sets.size(name)


def spec(data: ml_collections.ConfigDict) -> DataSpec:
    """The facts about the training split of the data set that the section `data` names.

    Raises UserError where its size is not known.
    """
    identities = size(data.name).identities
    return DataSpec(modalities(data.name), tuple(data.image_size), identities, LABELS)


def load(
    data: ml_collections.ConfigDict,
    training: bool = True,
    *,
    test: bool = True,
    pixels: bool = True,
) -> Dataset:
    """A data set of noise in the size of the one that the section `data` names.

    A gallery of unknown size (SYSU-MM01's whole one, of which a trial draws) is as large as the
    queries.

    Args:
        data: the section; its `name` and `image_size` count.
        training: whether it has the split train.
        test: whether it has query and gallery.
        pixels: False: black images that take no memory, of which only the shapes are looked at.

    Raises UserError where the size is not known.
    """
    sizes, names, counts = size(data.name), modalities(data.name), {}
    if training:
        counts["train"] = (sizes.train, sizes.identities)
    if test:
        counts["query"] = (sizes.query, sizes.test_identities)
        counts["gallery"] = (sizes.gallery or sizes.query, sizes.test_identities)
    splits = {
        name: noise(count, identities, names, data.image_size, seed, pixels)
        for seed, (name, (count, identities)) in enumerate(counts.items())
    }
    return Dataset(data.name, names, splits, Protocol("noise", "camera"))


def noise(
    count: int,
    identities: int,
    names: Sequence[str],
    image_size: Sequence[int],
    seed: int,
    pixels: bool = True,
) -> Split:
    """`count` samples of random pixels, none of them with a missing image; see `load`."""
    rng, shape = np.random.default_rng(seed), (count, *image_size, 3)
    length = int(np.prod(shape))
    images = {
        name: np.frombuffer(rng.bytes(length), np.uint8).reshape(shape)
        if pixels
        else np.broadcast_to(np.uint8(0), shape)
        for name in names
    }
    blinded = np.array([name in flare.MODALITIES for name in names])
    flared = (rng.random((count, len(names))) < FLARED) & blinded
    number = np.arange(count)
    return split_of(
        images,
        number * identities // count,
        name=np.char.zfill(number.astype(str), 8),
        camera=rng.integers(0, CAMERAS, count, np.int32),
        flare=flared,
        flare_fraction=flared.astype(np.float32),
        histogram_ratio=flared.astype(np.float32),
    )


def batch_shapes(spec: DataSpec, size: int) -> Batch:
    """The shapes of a batch of `size` samples of such data, to trace a model on."""
    shape, count = jax.ShapeDtypeStruct, len(spec.modalities)
    labels = {name: shape((count, size), jnp.int32) for name in spec.labels}
    labels["flare"] = shape((count, size), jnp.bool_)
    images = shape((count, size, *spec.image_size, 3), jnp.float32)
    return Batch(images, shape((size,), jnp.int32), labels)


def run(config: ml_collections.ConfigDict, steps: int, *, train: bool, test: bool) -> runs.Run:
    """The run of a config on noise that the devices hold: `steps` steps, or to evaluate alone.

    Only the splits that are asked for are there. The config stays as it is.
    """
    config = config.copy_and_resolve_references()
    config.train.steps, config.data.resident = steps, "always"
    loader = functools.partial(load, test=test)
    return runs.open_run(config, load=loader, spec=spec(config.data), training=train)
