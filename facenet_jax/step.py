"""One training step, many of them per dispatch, and embedding: all that is compiled."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from facenet_jax import objective
from facenet_jax.inputs.augment import augment, change_samples, normalise
from facenet_jax.inputs.device import DeviceSplit, gather
from facenet_jax.models import Model, contract
from facenet_jax.optim import Groups, descend, leaf_name
from facenet_jax.runtime.mesh import divided, fsdp_shardings, kernels_divided
from facenet_jax.types import Batch, Outputs

SHORTEST = 2048
"""Steps that a schedule has room for at least."""

EMBEDDED_AT_ONCE = 64
"""Samples on each device where `evaluate.batch` is 0. With 4 to 16 a TPU embeds fewer a second."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes: the content of a checkpoint."""

    step: jax.Array  # [] int32, steps done
    params: Mapping[str, Any]
    collections: Mapping[str, Any]  # what else the model keeps, such as BatchNorm statistics
    optimizer: Any

    @property
    def variables(self) -> Mapping[str, Any]:
        """The variables that `Model.apply` takes."""
        return {"params": self.params, **self.collections}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The plan and the rates of a run as tables on the device, indexed by the step."""

    rows: jax.Array  # [S, M, B] int32, rows of each modality's images, -1 for a missing one
    rates: jax.Array  # [S, G] float32, learning rates of the parameter groups
    steps: jax.Array  # [] float32, the length of the run; S may be more


def schedule(rows: np.ndarray, rates: np.ndarray) -> Schedule:
    """The schedule of a plan [steps, M, B] and rates [steps, G], filled up with what is never read.

    The next power of two is long enough, and at least SHORTEST: another length of the run seldom
    changes a shape, so the compiled program of the last run serves again.
    """
    steps = len(rows)
    rest = max(SHORTEST, 1 << (steps - 1).bit_length()) - steps
    tables = (np.pad(x, [(0, rest)] + [(0, 0)] * (x.ndim - 1)) for x in (rows, rates))
    return Schedule(*tables, np.float32(steps))


def train_step(
    state: State,
    data: DeviceSplit,
    schedule: Schedule,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    groups: Groups,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
) -> tuple[State, dict[str, jax.Array]]:
    """(the next state, scalars float32 by name) after one step on the batch that the plan names."""
    terms, step = objective.terms(config), state.step
    augment_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))
    images, batch = gather(data, schedule.rows[step], step, mesh)
    images, batch = change_samples(
        images, batch, augment_key, config.augment, model.spec.modalities
    )
    images = augment(
        images,
        augment_key,
        config.augment,
        model.pixel_mean,
        model.pixel_std,
        model.spec.modalities,
    )
    batch = dataclasses.replace(batch, images=images)
    progress = step.astype(jnp.float32) / schedule.steps

    def loss(params):
        with kernels_divided(mesh) if is_divided(config, mesh) else contextlib.nullcontext():
            outputs, changed = contract.apply(
                model,
                {"params": params, **state.collections},
                batch,
                train=True,
                progress=progress,
                key=model_key,
            )
        total, weighted = objective.total(terms, outputs, batch, progress)
        return total, (weighted, changed)

    grad_fn = jax.value_and_grad(loss, has_aux=True)
    (total, (weighted, changed)), gradients = grad_fn(gather_params(state.params, config, mesh))
    gradients = constrain_state(gradients, config, mesh)
    directions, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    rates = schedule.rates[step]
    params = descend(state.params, directions, rates, groups)
    scalars = {
        "loss": total,
        **{f"loss_{label}": value for label, value in weighted.items()},
        "learning_rate": rates[0],
        "gradient_norm": optax.tree.norm(gradients),
        # Of the new parameters: a step that overflows shows before it can be saved.
        "parameter_norm": optax.tree.norm(params),
    }
    after = State(step + 1, params, {**state.collections, **changed}, optimizer_state)
    return constrain_state(after, config, mesh), scalars


def is_divided(config: ml_collections.ConfigDict, mesh: Mesh) -> bool:
    """Whether the devices of a mesh hold a part each of the large arrays of a state."""
    return divided(config.train.shard_state, mesh.size, mesh.devices.flat[0].platform)


def state_sharding(state: Any, config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    """The shardings of a state, or of a part of one: replicated, or divided by `train.shard_state`.

    How leaves are divided depends on their shapes alone. Takes arrays or shapes.
    """
    if is_divided(config, mesh):
        return fsdp_shardings(state, mesh, config.train.shard_above)
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), state)


def gather_params(params: Any, config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    """`params` complete on every device for the length of a step, but for kernels, inside jit.

    Otherwise the partitioner moves the activations of the batch to the divided parameters. Kernels,
    which are most of them, are gathered by the layers that multiply with them (`mesh.gathered`).
    """
    if not is_divided(config, mesh):
        return params
    whole = NamedSharding(mesh, PartitionSpec())

    def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        return x if leaf_name(path) == "kernel" else jax.lax.with_sharding_constraint(x, whole)

    return jax.tree_util.tree_map_with_path(one, params)


def constrain_state(tree: Any, config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    """`tree` with the state's shardings (FSDP), inside jit; unchanged where it is not divided."""
    if not is_divided(config, mesh):
        return tree
    return jax.lax.with_sharding_constraint(tree, state_sharding(tree, config, mesh))


def make_chunk(
    model: Model,
    optimizer: optax.GradientTransformation,
    groups: Groups,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """chunk(state, data, schedule, count): `count` <= K steps in one dispatch; donates the state.

    K = config.train.steps_per_dispatch. The scalars come back as arrays [K] of which the first
    `count` are filled. `count` is a value, not a shape: one program serves every length, so where a
    run is cut (evaluation, a kill) cannot change its arithmetic.
    """
    step = functools.partial(
        train_step, model=model, optimizer=optimizer, groups=groups, config=config, mesh=mesh
    )
    step = jax.jit(step, inline=True)  # traced once, for its shapes and in the loop

    def chunk(state, data, schedule, count):
        shapes = jax.eval_shape(step, state, data, schedule)[1]
        logs = {name: jnp.zeros(config.train.steps_per_dispatch) for name in shapes}

        def body(i, carry):
            state, logs = carry
            state, scalars = step(state, data, schedule)
            return state, {name: logs[name].at[i].set(scalars[name]) for name in logs}

        state, logs = jax.lax.fori_loop(0, count, body, (state, logs))
        # What a model keeps of a batch, such as a prototype for each of its rows, would stay
        # divided as the batch is, and the next call takes the state only as this one took it.
        places = state_sharding(state, config, mesh)
        return jax.lax.with_sharding_constraint(state, places), logs

    return jax.jit(chunk, donate_argnums=0)


def untrained(model: Model, key: jax.Array) -> Mapping[str, Any]:
    """The random variables of a model; traced once, however many functions ask for them."""
    return jax.jit(model.init, inline=True)(key)


def initial_state(model: Model, optimizer: optax.GradientTransformation, seed: int) -> State:
    """An untrained state. Pure; jit it with `out_shardings` to create the state in place."""
    variables = dict(untrained(model, jax.random.key(seed)))
    params = variables.pop("params")
    return State(jnp.int32(0), params, variables, optimizer.init(params))


def outputs(
    model: Model, variables: Mapping[str, Any], images: jax.Array, batch: Batch, modalities: tuple
) -> Outputs:
    """The outputs of a model for uint8 images [M, B, H, W, 3] in evaluation mode.

    `batch` has all but the images; `modalities` names them. Pure, so it can be jitted or exported.
    """
    images = normalise(images, model.pixel_mean, model.pixel_std)
    batch = dataclasses.replace(batch, images=images)
    return contract.apply(model, variables, batch, train=False, modalities=modalities)[0]


def embedding_batch(config: ml_collections.ConfigDict, devices: int = 1) -> int:
    """How many samples a call of what `make_extract` gives embeds, on all devices together."""
    return config.evaluate.batch or EMBEDDED_AT_ONCE * devices


@functools.lru_cache(maxsize=16)  # a run evaluates many times and compiles once
def make_extract(
    model: Model, mesh: Mesh, modalities: tuple[str, ...]
) -> Callable[[Mapping, DeviceSplit, jax.Array, jax.Array], jax.Array]:
    """extract(variables, data, rows [M, B], real [B]) -> embeddings [B, E] float32 of these rows.

    `data` has the images of just these modalities, or a window with the one batch of these rows.
    `real` is False for the rows that only fill up the last batch: they must not switch on a gate
    that depends on all samples of the batch.
    """

    def extract(variables, data, rows, real):
        images, batch = gather(data, rows, jnp.int32(0), mesh)
        labels = {
            name: label & real[None] if label.dtype == bool else label
            for name, label in batch.labels.items()
        }
        batch = dataclasses.replace(batch, labels=labels)
        embedding = outputs(model, variables, images, batch, modalities).embedding
        return jax.lax.with_sharding_constraint(embedding, NamedSharding(mesh, PartitionSpec()))

    return jax.jit(extract)


def embedding_parts(
    model: Model, modalities: tuple[str, ...], labels: Mapping[str, Any]
) -> tuple[dict[str, tuple[int, int]], int]:
    """({name: (start, stop)} columns of the embedding of these modalities, its width).

    `labels` are the types of a split's labels by name. Nothing is computed.
    """
    return _embedding_parts(
        model, modalities, tuple(sorted((k, np.dtype(x)) for k, x in labels.items()))
    )


@functools.lru_cache(maxsize=64)  # tracing a large model takes seconds, and each evaluation asks
def _embedding_parts(
    model: Model, modalities: tuple[str, ...], labels: tuple[tuple[str, np.dtype], ...]
) -> tuple[dict[str, tuple[int, int]], int]:
    shape = (len(modalities), 1)

    def one(key):
        images = jnp.zeros((*shape, *model.spec.image_size, 3), jnp.uint8)
        columns = {name: jnp.zeros(shape, dtype) for name, dtype in labels}
        batch = Batch(None, jnp.zeros(1, jnp.int32), columns)
        return outputs(model, untrained(model, key), images, batch, modalities)

    found = jax.eval_shape(one, jax.random.key(0))
    return dict(found.parts), found.embedding.shape[-1]
