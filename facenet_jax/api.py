"""A trained network as a Python object: images of any subset of bands in, embeddings out.

import facenet_jax
network = facenet_jax.load("runs/wmveid863")
embedding = network.embed(visible=images, thermal=others)     # [N, E] float32
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from data_tfds import flare
from data_tfds.errors import UserError
from data_tfds.paths import locate
from data_tfds.samples import BANDS
from facenet_jax import models, run
from facenet_jax.inputs.augment import normalise
from facenet_jax.inputs.dataset import RESIZE
from facenet_jax.optim import optimizer
from facenet_jax.runtime import workdir
from facenet_jax.step import initial_state
from facenet_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained model and the way its images are prepared."""

    config: ml_collections.ConfigDict
    model: models.Model
    variables: Any  # {"params": ..., "batch_stats": ...}
    step: int  # of the checkpoint

    def embed(self, batch: int = 64, **images: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings float32 [N, bands * D], not normalised, bands in the order R, N, T.

        Args:
            batch: triplets per call of the device.
            images: `visible`, `near_infrared`, `thermal`, or some of them: for each band N images
                of one size or many, uint8 [h, w, 3] (or [h, w]). Row i of every band shows the
                same vehicle at the same instant.

        Raises:
            UserError: no band, an unknown band, or bands that differ in number.
        """
        unknown = set(images) - set(BANDS)
        if unknown or not images:
            raise UserError(
                f"embed() got the bands {sorted(images) or 'none'}; it takes any of {BANDS}."
            )
        counts = {band: len(rows) for band, rows in images.items()}
        if len(set(counts.values())) > 1 or not all(counts.values()):
            raise UserError(f"embed() needs as many images of every band, and got {counts}.")
        bands = tuple(band for band in BANDS if band in images)
        total = next(iter(counts.values()))
        parts = []
        for start in range(0, total, batch):
            # The last batch is filled up, so that one program serves all.
            rows = np.minimum(np.arange(start, start + batch), total - 1)
            pixels = np.stack([[self.prepare(images[band][i]) for i in rows] for band in bands])
            delta = self.delta(images, rows) & (np.arange(start, start + batch) < total)[:, None]
            parts.append(self.forward(bands)(self.variables, pixels, delta))
        return np.concatenate([np.asarray(part) for part in parts])[:total]

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """One image as the network takes it: uint8 [H, W, 3]."""
        height, width = self.model.image_size
        picture = Image.fromarray(np.asarray(image)).convert("RGB")
        return np.asarray(picture.resize((width, height), RESIZE[self.config.data.test_resize]))

    def delta(self, images: dict[str, Sequence[np.ndarray]], rows: np.ndarray) -> np.ndarray:
        """The flare labels [B, 2] of R and N, computed from the images as they came.

        All False unless the three bands are there: without them nothing is enhanced.
        """
        if len(images) < len(BANDS):
            return np.zeros((len(rows), 2), bool)
        pictures = [
            [np.asarray(Image.fromarray(np.asarray(images[band][i])).convert("RGB")) for i in rows]
            for band in BANDS[:2]
        ]
        statistics = (
            np.array([[statistic(image) for image in band] for band in pictures], np.float32).T
            for statistic in (flare.luma_fraction, flare.histogram_ratio)
        )
        data = self.config.data
        return flare.labels(
            *statistics,
            statistic=data.flare_statistic,
            rule=data.flare_rule,
            threshold=data.flare_threshold,
        )

    @functools.cache  # noqa: B019 (a network lives as long as its compiled programs)
    def forward(self, bands: tuple[str, ...]) -> Any:
        """The compiled network for some bands."""

        def forward(variables, pixels, delta):
            nothing = jnp.zeros(len(delta), jnp.int32)
            batch = Batch(normalise(pixels), nothing, nothing, nothing, delta)
            return self.model.apply(variables, batch, train=False, bands=bands)[0].embedding

        return jax.jit(forward)

    __hash__ = object.__hash__


def load(folder: str | os.PathLike[str], which: str = "last") -> Network:
    """The network of a workdir, from its `last` or its `best` checkpoint. No data set is needed."""
    folder = locate(folder)
    config = workdir.read_config(folder)
    checkpoints = run.open_checkpoints(folder)
    step = {"last": checkpoints.latest, "best": checkpoints.best}[which]()
    if step is None:
        raise UserError(f"{folder} holds no {which} checkpoint; train it first.")
    model = models.build(config.model, config.data.image_size, config.model.identities)
    create = functools.partial(initial_state, model, optimizer(config.optim), config.seed)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = checkpoints.restore(step, jax.eval_shape(jax.jit(create, out_shardings=here)))
    checkpoints.close()
    return Network(config, model, {"params": state.params, **state.collections}, step)
