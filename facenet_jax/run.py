"""What a run is made of, put together in one place for training, evaluation, benchmarks and tests.

    open_run(config) = check(config), load its data set, assemble(config, dataset)
    compile_step(run, data) -> Program, a chunk of training steps

A `Run` has the facts that follow from config and data; the config itself is never changed.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from data_tfds.errors import UserError
from data_tfds.samples import Split
from facenet_jax import config as configs
from facenet_jax import models
from facenet_jax.inputs import dataset as datasets
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.inputs.device import DeviceSplit, image_labels, with_images
from facenet_jax.inputs.sampler import Plan, make_plan
from facenet_jax.inputs.stream import IN_FLIGHT, OnDiskSplit, shapes
from facenet_jax.models import contract
from facenet_jax.optim import Groups, check_groups, optimizer, parameter_groups, rate_table
from facenet_jax.runtime import fit, memory
from facenet_jax.runtime.checkpoint import Checkpoints
from facenet_jax.runtime.mesh import check_divides, device_put, make_mesh, replicate, replicated
from facenet_jax.step import Schedule, State, initial_state, make_chunk, schedule, state_sharding
from facenet_jax.types import DataSpec


@dataclasses.dataclass(frozen=True)
class Run:
    """A config and its data set, and what follows from them."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    mesh: Mesh
    model: models.Model
    optimizer: optax.GradientTransformation
    groups: Groups  # parameter groups with a learning rate of their own
    plan: Plan | None  # None: only to evaluate
    streams: bool  # whether images come from disk while the run goes, not from the devices' memory
    epochs: Mapping[int, int] = dataclasses.field(default_factory=dict)  # of steps without a plan

    @functools.cached_property
    def rates(self) -> np.ndarray:
        """Learning rates [steps, G] float32 of all steps."""
        epoch, train = self.plan.epoch, self.config.train
        epochs = int(epoch[-1]) if train.steps else train.epochs
        return rate_table(self.config.optim, epoch, epochs, self.groups)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The plan and the rates on the devices."""
        return replicate(schedule(self.plan.rows, self.rates), self.mesh)

    def when(self, step: int) -> dict[str, int]:
        """The step and, where it is known, the epoch that it belongs to, 0 before the first."""
        if self.plan and step:
            return {"step": step, "epoch": int(self.plan.epoch[step - 1])}
        epochs = {0: 0, **self.epochs}
        return {"step": step, "epoch": epochs[step]} if step in epochs else {"step": step}


def open_run(
    config: ml_collections.ConfigDict,
    *,
    load: Callable[..., Dataset] = datasets.load,
    spec: DataSpec | None = None,
    training: bool = True,
) -> Run:
    """The run of a config. Raises UserError for what is wrong, options before any data is loaded.

    Args:
        config: the config; it stays as it is.
        load: gives the data set of the section `data`, and whether for training.
        spec: what the model was trained on, where that is not this data set.
        training: False: only to evaluate, so that no training split is needed.
    """
    configs.check(config)
    mesh, train = make_mesh(), config.train
    batch = train.identities_per_batch * train.samples_per_identity
    if training and config.sampler.name == "pk":  # another one makes batches of its own size
        check_divides("config.train.identities_per_batch * samples_per_identity", batch, mesh)
    check_divides("config.evaluate.batch", config.evaluate.batch, mesh)
    return assemble(config, load(config.data, training), mesh=mesh, spec=spec, training=training)


def assemble(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    *,
    mesh: Mesh | None = None,
    spec: DataSpec | None = None,
    plan: Plan | None = None,
    training: bool = True,
) -> Run:
    """The run of a config on a data set that is already loaded.

    Args:
        config: a checked config.
        dataset: the data.
        mesh: the devices; all of them by default.
        spec: what the model was trained on, where that is not this data set.
        plan: the order of training, instead of the config's sampler.
        training: False: only to evaluate.
    """
    mesh = mesh or make_mesh()
    spec = spec or data_spec(config, dataset)
    unknown = set(dataset.modalities) - set(spec.modalities)
    if unknown:
        raise UserError(
            f"{dataset.name} has the modalities {', '.join(dataset.modalities)}, but the model was "
            f"trained on {', '.join(spec.modalities)}."
        )
    if dataset.modalities != tuple(m for m in spec.modalities if m in dataset.modalities):
        raise UserError(
            f"{dataset.name} lists its modalities as {', '.join(dataset.modalities)}, but the "
            f"model was trained on {', '.join(spec.modalities)}; list them in that order."
        )
    model = models.build(config.model, spec)
    refused = model.refuses(jax.default_backend(), training)
    if refused:
        raise UserError(refused)
    if training and plan is None:
        plan = make_plan(
            config.sampler.to_dict(),
            dataset.split("train"),
            seed=config.seed,
            options=config.train.to_dict(),
            epochs=config.train.epochs,
            steps=config.train.steps,
        )
        check_divides(f"A batch of the sampler {config.sampler.name}", plan.batch, mesh)
    return Run(
        config=config,
        dataset=dataset,
        mesh=mesh,
        model=model,
        optimizer=optimizer(config.optim),
        groups=parameter_groups(model.groups, config.optim.bias_lr_factor),
        plan=plan if training else None,
        streams=memory.streams(config, *datasets.image_bytes(dataset, config, training), mesh),
    )


def data_spec(config: ml_collections.ConfigDict, dataset: Dataset) -> DataSpec:
    """The facts about a training split that a model is built for."""
    train = dataset.split("train")
    labels = {
        name: max(0, int(column.max()) + 1)
        for name, column in train.labels.items()
        if np.issubdtype(column.dtype, np.integer)
    }
    identities = len(np.unique(train.identity))
    return DataSpec(dataset.modalities, tuple(config.data.image_size), identities, labels)


def on_devices(
    run: Run, *splits: Split, read: np.ndarray | None = None
) -> tuple[DeviceSplit | OnDiskSplit, np.ndarray]:
    """(splits, one after another, for the devices; the rows [M, N] of their samples' images).

    All of them on every device, or their labels alone where the images stream. Identities are
    numbered 0..C-1 in sorted order. Labels are the whole-number and true/false ones that all
    splits have. `read` are the rows that will be read, [..., M, ...] of any shape, where those are
    not the rows of the samples: images are missing where it has -1.
    """
    modalities = splits[0].modalities
    _, numbered = np.unique(np.concatenate([s.identity for s in splits]), return_inverse=True)
    parts = np.split(numbered.astype(np.int32), np.cumsum([len(s) for s in splits])[:-1])
    kept = [
        name
        for name, column in splits[0].labels.items()
        if column.dtype == bool or np.issubdtype(column.dtype, np.integer)
        if all(name in split.labels for split in splits)
    ]

    def by_image(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return tuple(
            np.concatenate([image_labels(s, c, m) for s, c in zip(splits, columns, strict=True)])
            for m in range(len(modalities))
        )

    rows, first = [], np.zeros((len(modalities), 1), np.int32)
    for split in splits:
        rows.append(np.where(split.rows < 0, -1, split.rows + first))
        first = first + np.int32([[len(images)] for images in split.images.values()])
    rows = np.concatenate(rows, axis=1)

    labels = DeviceSplit(
        images=(),
        identity=by_image(parts),
        labels={name: by_image([split.labels[name] for split in splits]) for name in kept},
        missing=bool(((rows if read is None else read) < 0).any()),
    )
    labels = replicate(labels, run.mesh)
    images = [[split.images[modality] for split in splits] for modality in modalities]
    if run.streams:
        return OnDiskSplit(labels, tuple(tuple(each) for each in images)), rows
    joined = (each[0] if len(each) == 1 else np.concatenate(each) for each in images)
    return with_images(labels, joined, tuple(images[0][0].shape[1:3]), run.mesh), rows


def training_images(run: Run) -> DeviceSplit | OnDiskSplit:
    """The training split for the devices.

    Images are missing where the plan has -1, not where a sample lacks one: a sampler may put images
    of several samples side by side, so that none is missing.
    """
    return on_devices(run, run.dataset.split("train"), read=run.plan.rows)[0]


@dataclasses.dataclass(frozen=True)
class Program:
    """A chunk of training steps, compiled."""

    compiled: jax.stages.Compiled
    run: Run
    reads: DeviceSplit  # the data that it was compiled for, arrays or shapes
    compile_seconds: float
    remat: str = ""  # where config.model.remat is "auto", what was found

    def __call__(
        self, state: State, data: DeviceSplit, count: int
    ) -> tuple[State, dict[str, jax.Array]]:
        """(the state after `count` more steps, their scalars); the state given is used up."""
        return self.compiled(state, data, self.run.schedule, np.int32(count))

    def budget(self, state: Any, others: Sequence[DeviceSplit | OnDiskSplit]) -> memory.Budget:
        """Bytes of memory that training needs on one device.

        `state` is the state or its shapes, `others` what evaluations read.
        """
        images = memory.bytes_of(self.reads.images) * (IN_FLIGHT if self.reads.windowed else 1)
        images += sum(memory.bytes_of(x.images) for x in others if isinstance(x, DeviceSplit))
        return memory.Budget(
            memory.bytes_of((state.params, state.collections)),
            memory.bytes_of(state.optimizer),
            images,
            self.compiled.memory_analysis().temp_size_in_bytes,
            memory.of_device(self.run.mesh),
            self.remat,
        )


def trace_step(run: Run, state: Any, reads: Any, schedule: Any) -> jax.stages.Traced:
    """A chunk of training steps, traced; takes arrays or shapes with shardings."""
    chunk = make_chunk(run.model, run.optimizer, run.groups, run.config, run.mesh)
    return chunk.trace(state, reads, schedule, np.int32(0))


def fitted_step(
    run: Run, state: Any, reads: Any, schedule: Any, *, others: int = 0, limit: int | None
) -> tuple[str, jax.stages.Compiled]:
    """(what was taken for config.model.remat=auto or "", the compiled chunk), see `fit.compiled`.

    `others` are bytes of images for evaluations, `limit` those of a device's memory, if known.
    """
    if run.config.model.get("remat") != "auto":
        return "", trace_step(run, state, reads, schedule).lower().compile()

    def trace(remat: str) -> jax.stages.Traced:
        config = run.config.copy_and_resolve_references()
        config.model.remat = remat
        model = models.build(config.model, run.model.spec)
        return trace_step(dataclasses.replace(run, model=model), state, reads, schedule)

    held, gradients = memory.bytes_of((state, reads)) + others, memory.bytes_of(state.params)
    return fit.compiled(trace, held, gradients, run.mesh.size, math.inf if limit is None else limit)


def compile_step(
    run: Run, data: DeviceSplit | OnDiskSplit, others: Sequence[DeviceSplit | OnDiskSplit] = ()
) -> Program:
    """The training step of a run for its training images, beside what evaluations read."""
    reads = shapes(data, run.config.train.steps_per_dispatch, run.plan.batch, run.mesh)
    start, limit = time.perf_counter(), memory.of_device(run.mesh)
    resident = sum(memory.bytes_of(x.images) for x in others if isinstance(x, DeviceSplit))
    state = state_shapes(run)
    remat, step = fitted_step(run, state, reads, run.schedule, others=resident, limit=limit)
    return Program(step, run, reads, time.perf_counter() - start, remat)


def untrained_state(run: Run) -> Callable[[], State]:
    """A jitted function that makes the random state of the config's seed, sharded as in the run."""
    create = functools.partial(initial_state, run.model, run.optimizer, run.config.seed)
    shapes = jax.eval_shape(create)
    check_groups(run.groups, shapes.params)
    sharding = state_sharding(shapes, run.config, run.mesh)
    return jax.jit(create, out_shardings=sharding)


def state_shapes(run: Run) -> State:
    """The shapes and shardings of a state."""
    return jax.eval_shape(untrained_state(run))


def start_state(run: Run) -> State:
    """The state at step 0 on the devices, from pretrained weights if the config names some."""
    state, model = untrained_state(run)(), run.config.model
    if "pretrained" not in model or model.pretrained == "none":
        return state
    if run.model.load is None:
        raise UserError(
            f"config.model.pretrained is {model.pretrained}, but the model {model.name} takes no "
            "weights; set --config.model.pretrained=none."
        )
    random = jax.tree.map(np.asarray, replicated(state.variables, run.mesh))
    variables, report = run.model.load(random, model.pretrained)
    logging.info("%s", report)
    contract.check_loaded(random, variables)
    variables = device_put(variables, state_sharding(variables, run.config, run.mesh))
    params = variables.pop("params")
    return dataclasses.replace(state, params=params, collections=variables)


def saved_state(run: Run, checkpoints: Checkpoints, step: int) -> State:
    """The state of a checkpoint, on the devices of this run (which may be others than it had)."""
    return checkpoints.restore(step, state_shapes(run))
