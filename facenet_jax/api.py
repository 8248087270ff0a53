"""A trained network as a Python object: images of any subset of modalities in, embeddings out.

import facenet_jax
network = facenet_jax.load("runs/wmveid863")
embedding = network.embed(visible=images, thermal=others)     # [N, E] float32
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from data_tfds import flare
from data_tfds.decoded import RESIZE
from data_tfds.errors import UserError
from data_tfds.paths import open_path
from facenet_jax import models, run, step, stored
from facenet_jax.optim import optimizer
from facenet_jax.types import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained model and the way its images are prepared."""

    config: ml_collections.ConfigDict
    model: models.Model
    variables: Any  # {"params": ..., "batch_stats": ...}
    step: int  # of the checkpoint

    def embed(
        self,
        batch: int = 64,
        labels: Mapping[str, np.ndarray] | None = None,
        **images: Sequence[np.ndarray],
    ) -> np.ndarray:
        """Embeddings float32 [N, E], not normalised; the columns of `parts(modalities)`.

        Args:
            batch: samples per call of the device.
            labels: what is known of the samples beside their images, for a model that looks at it,
                such as {"view": whole numbers [N]}, or [N, modalities given] in their order. What
                is not given is unknown (-1), and flare is measured.
            images: one keyword for each modality, such as `visible`, `near_infrared`, `thermal`, or
                some of them: N images of one size or many, uint8 [h, w, 3] (or [h, w]). Row i of
                every modality shows the same vehicle at the same instant.

        Raises UserError for no modality or an unknown one, for modalities that differ in number,
        and for a label that the model does not know or of another number.
        """
        known = self.model.spec.modalities
        if set(images) - set(known) or not images:
            raise UserError(
                f"embed() got the modalities {sorted(images) or 'none'}; it takes any of {known}."
            )
        counts = {modality: len(rows) for modality, rows in images.items()}
        if len(set(counts.values())) > 1 or not all(counts.values()):
            raise UserError(f"embed() needs as many images of every modality, and got {counts}.")
        modalities = tuple(modality for modality in known if modality in images)
        total = next(iter(counts.values()))
        given = self.check_labels(labels or {}, total, len(modalities))
        found = []
        for start in range(0, total, batch):
            # The last batch is filled up, so that one program serves all.
            rows = np.minimum(np.arange(start, start + batch), total - 1)
            real = np.arange(start, start + batch) < total
            pixels = np.stack([[self.prepare(images[m][i]) for i in rows] for m in modalities])
            columns = self.labels({m: [images[m][i] for i in rows] for m in modalities})
            columns |= {name: column[:, rows] for name, column in given.items()}
            columns["flare"] = columns["flare"] & real[None]
            found.append(self.forward(modalities)(self.variables, pixels, columns))
        return np.concatenate([np.asarray(part) for part in found])[:total]

    def check_labels(
        self, labels: Mapping[str, np.ndarray], total: int, modalities: int
    ) -> dict[str, np.ndarray]:
        """The labels as arrays [M, N] of the types that the model knows."""
        found = {}
        for name, values in labels.items():
            known = [*self.model.spec.labels, "flare"]
            if name not in known:
                raise UserError(
                    f"embed() got the label {name}; the model was trained with {', '.join(known)}."
                )
            values = np.asarray(values, bool if name == "flare" else np.int32)
            if values.shape not in ((total,), (total, modalities)):
                raise UserError(
                    f"embed() got the label {name} of shape {list(values.shape)} for {total} "
                    f"samples and {modalities} modalities; it must be [{total}] or "
                    f"[{total}, {modalities}]."
                )
            wide = values if values.ndim == 2 else values[:, None]
            found[name] = np.broadcast_to(wide, (total, modalities)).T
        return found

    def parts(self, modalities: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
        """{name: (start, stop)} columns of the embedding of these modalities, all for ()."""
        names = tuple(m for m in self.model.spec.modalities if not modalities or m in modalities)
        types = dict.fromkeys(self.model.spec.labels, np.int32) | {"flare": bool}
        return step.embedding_parts(self.model, names, types)[0]

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """One image as the network takes it: uint8 [H, W, 3]."""
        height, width = self.model.spec.image_size
        picture = Image.fromarray(np.asarray(image)).convert("RGB")
        return np.asarray(picture.resize((width, height), RESIZE[self.config.data.test_resize]))

    def labels(self, images: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
        """The labels [M, B] of images as they came: flare from their pixels, others unknown (-1).

        Flare is False where a modality is not given: without it nothing is enhanced.
        """
        shape = (len(images), len(next(iter(images.values()))))
        labels = {name: np.full(shape, -1, np.int32) for name in self.model.spec.labels}
        labels["flare"] = np.zeros(shape, bool)
        if len(images) < len(self.model.spec.modalities):
            return labels
        pictures = {
            modality: [Image.fromarray(np.asarray(image)).convert("RGB") for image in rows]
            for modality, rows in images.items()
        }
        statistics = (
            [[measure(picture) for picture in row] for row in pictures.values()]
            for measure in (flare.luma_fraction, flare.histogram_ratio)
        )
        data = self.config.data
        flared = flare.labels(
            *(np.float32(each).T for each in statistics),
            tuple(pictures),
            statistic=data.flare_statistic,
            rule=data.flare_rule,
            threshold=data.flare_threshold,
        )
        return labels | {"flare": flared.T}

    @functools.cache  # noqa: B019 (a network lives as long as its compiled programs)
    def forward(self, modalities: tuple[str, ...]) -> Any:
        """The compiled network for some modalities."""

        def forward(variables, pixels, labels):
            batch = Batch(None, jnp.zeros(pixels.shape[1], jnp.int32), labels)
            return step.outputs(self.model, variables, pixels, batch, modalities).embedding

        return jax.jit(forward)


def load(folder: str | os.PathLike[str], which: str = "last") -> Network:
    """The network of a workdir, from its `last` or its `best` checkpoint. No data set is needed."""
    folder = open_path(folder)
    config, spec = stored.read_config(folder), stored.read_spec(folder)
    checkpoints = run.open_checkpoints(folder)
    found = {"last": checkpoints.latest, "best": checkpoints.best}[which]()
    if found is None:
        raise UserError(f"{folder} holds no {which} checkpoint; train it first.")
    model = models.build(config.model, spec)
    create = functools.partial(step.initial_state, model, optimizer(config.optim), config.seed)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = checkpoints.restore(found, jax.eval_shape(jax.jit(create, out_shardings=device)))
    checkpoints.close()
    return Network(config, model, state.variables, found)
