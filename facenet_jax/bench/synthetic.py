"""A run on noise in the shape and the size of a data set, for measuring without one."""

import dataclasses
from collections.abc import Sequence

import ml_collections
import numpy as np

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax import models
from facenet_jax.inputs.dataset import Dataset, Split
from facenet_jax.inputs.sampler import pk_plan
from facenet_jax.optim import optimizer
from facenet_jax.run import Run
from facenet_jax.runtime.mesh import check_divides, make_mesh


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a data set is, in triplets and identities."""

    train: int
    identities: int
    query: int
    gallery: int
    test_identities: int


SIZES = {
    "wmveid863": Size(3482, 603, 1228, 1228, 272),
    "wmveid863/clean": Size(3441, 596, 1228, 1228, 272),
    "rgbnt100": Size(8675, 50, 1715, 8575, 50),
    "msvr310": Size(1032, 155, 591, 1055, 155),
    "rgbnt201": Size(3951, 171, 836, 836, 30),
    "rendered": Size(3520, 176, 300, 800, 50),
}
"""By config.data.name; WMVeID863 with its incomplete triplets, whose whole test set queries."""


def noise(count: int, identities: int, image_size: Sequence[int], seed: int) -> Split:
    """A split of `count` triplets of random pixels; three in ten images of R and N are flared."""
    rng = np.random.default_rng(seed)
    shape = (3, count, *image_size, 3)
    pixels = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
    row = np.arange(count, dtype=np.int32)
    flared = np.where(rng.random((count, 2)) < 0.3, 1.0, 0.0).astype(np.float32)
    return Split(
        images=pixels,
        identity=row * identities // count,
        camera=rng.integers(0, 8, count, np.int32),
        scene=np.full(count, -1, np.int32),
        night=np.full(count, -1, np.int32),
        name=row.astype(str),
        flare_fraction=flared,
        histogram_ratio=flared,
    )


def dataset(config: ml_collections.ConfigDict, *, train: bool, test: bool) -> Dataset:
    """Noise of the size that the config's data set has; a split that is not wanted holds little."""
    if config.data.name not in SIZES:
        raise UserError(
            f"config.data.name is '{config.data.name}', whose size is not known here; measure with "
            f"one of {', '.join(SIZES)}."
        )
    size, few = SIZES[config.data.name], 8
    shape = config.data.image_size
    first = noise(size.train if train else size.identities, size.identities, shape, 0)
    query, gallery = (
        noise(count if test else few, size.test_identities if test else few, shape, seed)
        for seed, count in ((1, size.query), (2, size.gallery))
    )
    return Dataset(config.data.name, Protocol("noise", "camera"), first, query, gallery, None)


def run(config: ml_collections.ConfigDict, steps: int, *, train: bool, test: bool) -> Run:
    """The run of a config on noise, with a plan of so many steps and the images on the devices."""
    mesh, options = make_mesh(), config.train
    batch = options.identities_per_batch * options.samples_per_identity
    check_divides("config.train.identities_per_batch * samples_per_identity", batch, mesh)
    check_divides("config.evaluate.batch", config.evaluate.batch, mesh)
    noises = dataset(config, train=train, test=test)
    identities = SIZES[config.data.name].identities
    plan = pk_plan(
        noises.train.identity,
        seed=config.seed,
        p=options.identities_per_batch,
        k=options.samples_per_identity,
        epochs=0,
        steps=steps,
    )
    return Run(
        config=config,
        dataset=noises,
        mesh=mesh,
        model=models.build(config.model, config.data.image_size, identities),
        optimizer=optimizer(config.optim),
        plan=plan,
        streams=False,
    )
