"""A trained network as a Python object: images of any subset of modalities in, embeddings out.

import facenet_jax
network = facenet_jax.load("runs/wmveid863")
embedding = network.embed(visible="car.jpg", thermal="car.png")     # [1, E] float32
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
from data_tfds.images import picture, pictures
from data_tfds.paths import Place, open_path
from facenet_jax import config as configs
from facenet_jax import models, step, stored
from facenet_jax.optim import optimizer
from facenet_jax.retrieval import Embeddings
from facenet_jax.runtime import compile_cache, form
from facenet_jax.runtime.checkpoint import has_checkpoint, open_checkpoints
from facenet_jax.runtime.progress import Bar
from facenet_jax.runtime.workdir import read_json
from facenet_jax.types import Batch
from facenet_jax.weights import hub


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained model and the way its images are prepared."""

    config: ml_collections.ConfigDict
    model: models.Model
    variables: Any  # {"params": ..., "batch_stats": ...}
    step: int  # of the checkpoint
    folder: Place  # the workdir

    def __repr__(self) -> str:
        spec, size = self.model.spec, " x ".join(map(str, self.model.spec.image_size))
        modalities = ", ".join(spec.modalities)
        return f"<Network {self.config.model.name}: {modalities}; {size} pixels; step {self.step}>"

    def embed(
        self,
        batch: int = 64,
        labels: Mapping[str, np.ndarray] | None = None,
        **images: Any,
    ) -> np.ndarray:
        """Embeddings float32 [N, E], not normalised; the columns of `parts(modalities)`.

        Args:
            batch: samples per call of the device, at most; the last call takes as many as the next
                power of two.
            labels: what is known of the samples beside their images, for a model that looks at it,
                such as {"view": whole numbers [N]}, or [N, modalities given] in their order. What
                is not given is unknown (-1), and flare is measured.
            images: one keyword for each modality, such as `visible`, `near_infrared`, `thermal`, or
                some of them: one image or N of them, of one size or many. An image is the path of
                a file, a Pillow image, or an array [h, w, 3] or [h, w], uint8 or floats in 0..1.
                Image i of every modality shows the same vehicle at the same instant.

        Raises UserError for no modality or an unknown one, for modalities that differ in number,
        for what is no image of 8 bits, and for a label that the model does not know or of another
        number.
        """
        known = self.model.spec.modalities
        if set(images) - set(known) or not images:
            raise UserError(
                f"embed() got the modalities {sorted(images) or 'none'}; it takes any of {known}."
            )
        if not isinstance(batch, int) or batch < 1:
            raise UserError(f"embed() got batch = {batch!r}; it is a whole number of 1 or more.")
        modalities = tuple(modality for modality in known if modality in images)
        rows = {modality: pictures(images[modality], modality) for modality in modalities}
        counts = {modality: len(each) for modality, each in rows.items()}
        if len(set(counts.values())) > 1 or not all(counts.values()):
            raise UserError(f"embed() needs as many images of every modality, and got {counts}.")
        total = counts[modalities[0]]
        given = self.check_labels(labels or {}, total, len(modalities))
        found = []
        with Bar("embedding", total, "samples") as bar:
            for start in range(0, total, batch):
                some = slice(start, min(start + batch, total))
                found.append(self.embed_some({m: rows[m][some] for m in modalities}, given, some))
                bar.update(len(found[-1]))
        return np.concatenate(found)

    def embed_some(
        self, images: Mapping[str, Sequence[Any]], given: Mapping[str, np.ndarray], some: slice
    ) -> np.ndarray:
        """The embeddings [n, E] of the samples `some`, whose images and given labels these are."""
        first = some.start
        opened = {
            modality: [picture(each, f"{modality}[{i}]") for i, each in enumerate(row, first)]
            for modality, row in images.items()
        }
        pixels = np.stack(
            [[self.prepare(each, modality) for each in row] for modality, row in opened.items()]
        )
        columns = self.labels(opened) | {name: column[:, some] for name, column in given.items()}
        # A power of two of samples, so that few programs serve all numbers. The last sample fills
        # up, without its flare: a gate may depend on all samples of the batch.
        count = pixels.shape[1]
        rest = (1 << (count - 1).bit_length()) - count
        pixels = np.pad(pixels, [(0, 0), (0, rest), *[(0, 0)] * 3], mode="edge")
        fill = {name: "constant" if name == "flare" else "edge" for name in columns}
        columns = {k: np.pad(x, [(0, 0), (0, rest)], mode=fill[k]) for k, x in columns.items()}
        return np.asarray(self.forward(tuple(images))(self.variables, pixels, columns))[:count]

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

    @functools.cached_property
    def centre(self) -> dict[str, np.ndarray]:
        """The mean embedding of the gallery that the run was scored on, by part.

        Raises UserError where the workdir has no exported embeddings of this checkpoint.
        """
        folder = self.folder / "embeddings"
        path, of = folder / "checkpoint.json", None
        if path.exists():
            of = read_json(path, self.folder, form.OF_STEP)["step"]
        if of != self.step:
            has = "none" if of is None else f"those of step {of}"
            raise UserError(
                f"similarity() needs the embeddings of step {self.step} in {folder}, which has "
                f"{has}; write them with facenet embed --workdir {self.folder} "
                "--config.evaluate.export=last (or best)."
            )
        gallery = Embeddings.read(folder / "gallery.npz")
        mean = gallery.embedding.mean(axis=0)
        return {name: mean[start:stop] for name, (start, stop) in gallery.parts.items()}

    def similarity(
        self, first: np.ndarray, second: np.ndarray, modalities: Sequence[str] = ()
    ) -> np.ndarray:
        """Cosines [N, K] in -1..1 of embeddings [N, E] and [K, E] less their mean, `centre`.

        Above 0 means more alike than two vehicles are on average. Cosines of embeddings as they are
        all lie near 1, for they share an offset. `modalities` are those both were made from, all
        for (). Raises UserError for embeddings of another width.
        """
        parts = self.parts(modalities)
        mean = np.concatenate([self.centre[name] for name in parts])
        for rows in (first, second):
            if np.ndim(rows) != 2 or np.shape(rows)[1] != len(mean):
                raise UserError(
                    f"similarity() got embeddings of shape {list(np.shape(rows))}; those of "
                    f"{', '.join(parts)} are [N, {len(mean)}]. Name their modalities."
                )
        first, second = (np.asarray(rows, np.float32) - mean for rows in (first, second))
        first, second = (
            rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            for rows in (first, second)
        )
        return first @ second.T

    @functools.cached_property
    def thresholds(self) -> dict[str, Any]:
        """What embeddings/threshold.json says, see `retrieval.calibration.calibrate`.

        Raises UserError where the workdir has none of this checkpoint.
        """
        path = self.folder / "embeddings" / "threshold.json"
        found = read_json(path, self.folder, form.THRESHOLDS) if path.exists() else None
        if found is None or found["step"] != self.step:
            has = "none" if found is None else f"those of step {found['step']}"
            raise UserError(
                f"same() needs the thresholds of step {self.step} in {path}, which has {has}; "
                f"write them with facenet evaluate --workdir {self.folder} "
                "--config.evaluate.export=last (or best)."
            )
        return found

    def same(self, first: np.ndarray, second: np.ndarray, at: str = "eer") -> np.ndarray:
        """Whether embeddings [N, E] and [K, E] are of the same vehicle, bool [N, K].

        Where `similarity` is at least the threshold `at`: "eer", at which errors of both kinds are
        as many, or "0.001", "0.0001": so few of the pairs of different vehicles are accepted. It
        was found on pairs of the data that the run was scored on, `thresholds` says which and at
        what rates, for embeddings from all modalities. Raises UserError for other embeddings, and
        for a threshold that those pairs were too few to find.
        """
        known = self.thresholds["thresholds"]
        if at not in known:
            raise UserError(f"same() got at = {at!r}; it is one of {', '.join(known)}.")
        if known[at] is None:
            pairs = self.thresholds["impostor_pairs"]
            raise UserError(
                f"same() got at = {at!r}, but {pairs} pairs of different vehicles are too few to "
                "find that threshold; take another, or score the run on more data."
            )
        measured = tuple(self.thresholds["modalities"])
        return self.similarity(first, second, measured) >= known[at]["cosine"]

    def prepare(self, image: Any, modality: str) -> np.ndarray:
        """One image, as `embed` takes them, as the network takes it: uint8 [H, W, 3]."""
        height, width = self.model.spec.image_size
        opened = picture(image, "The image")
        if self.config.data.flare_removal != "none" and modality in flare.MODALITIES:
            opened = flare.removed(opened, self.config.data.flare_removal)
        return np.asarray(opened.resize((width, height), RESIZE[self.config.data.test_resize]))

    def labels(self, images: Mapping[str, Sequence[Image.Image]]) -> dict[str, np.ndarray]:
        """The labels [M, B] of images as they came: flare from their pixels, others unknown (-1).

        Flare is False where a modality is not given: without it nothing is enhanced.
        """
        shape = (len(images), len(next(iter(images.values()))))
        labels = {name: np.full(shape, -1, np.int32) for name in self.model.spec.labels}
        labels["flare"] = np.zeros(shape, bool)
        if len(images) < len(self.model.spec.modalities):
            return labels
        statistics = (
            [[measure(image) for image in row] for row in images.values()]
            for measure in (flare.luma_fraction, flare.histogram_ratio)
        )
        data = self.config.data
        flared = flare.labels(
            *(np.float32(each).T for each in statistics),
            tuple(images),
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


def load(
    folder: str | os.PathLike[str],
    which: str = "last",
    compiled: str | os.PathLike[str] | None = None,
) -> Network:
    """The network of a workdir, from its `last` or its `best` checkpoint. No data set is needed.

    `folder` is a path, gs://bucket/path, or hf://OWNER/NAME[/FOLDER] on the Hugging Face hub.

    `compiled` is a folder that keeps compiled programs, so that the first `embed` of the next
    process need not compile; "" is none. By default it is the one that JAX is set to, or else
    `compile_cache.default()`.
    """
    if compiled is not None or not jax.config.jax_compilation_cache_dir:
        compile_cache.use(compile_cache.default() if compiled is None else compiled)
    if which not in ("last", "best"):
        raise UserError(f"load() got which = {which!r}; it is 'last' or 'best'.")
    folder = hub.fetched(str(folder)) if hub.is_hub(str(folder)) else open_path(folder)
    config, spec = stored.read_config(folder), stored.read_spec(folder)
    configs.check(config)
    nothing = f"{folder} holds no {which} checkpoint; train it first."
    if not has_checkpoint(folder):
        raise UserError(nothing)
    checkpoints = open_checkpoints(folder)
    found = {"last": checkpoints.latest, "best": checkpoints.best}[which]()
    if found is None:
        raise UserError(nothing)
    model = models.build(config.model, spec)
    create = functools.partial(step.initial_state, model, optimizer(config.optim), config.seed)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = checkpoints.restore(found, jax.eval_shape(jax.jit(create, out_shardings=device)))
    checkpoints.close()
    return Network(config, model, state.variables, found, folder)
