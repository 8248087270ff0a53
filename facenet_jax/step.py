"""One training step, many of them per dispatch, and feature extraction: all that is compiled."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_tfds.errors import UserError
from data_tfds.samples import BANDS
from facenet_jax import losses
from facenet_jax.inputs.augment import augment, normalise
from facenet_jax.models import Model
from facenet_jax.optim import descend, global_norm
from facenet_jax.runtime.mesh import divided, split_batch
from facenet_jax.types import Batch, Outputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes; what a checkpoint holds."""

    step: jax.Array  # [] int32, steps done
    params: Mapping[str, Any]
    collections: Mapping[str, Any]  # what else the model keeps, such as BatchNorm statistics
    optimizer: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Resident:
    """A split on the device. One array of images per band; they may differ in length."""

    images: tuple[jax.Array, ...]  # M arrays [N, H, W, 3] uint8
    identity: jax.Array  # [N] int32
    camera: jax.Array  # [N] int32
    scene: jax.Array  # [N] int32
    flare: jax.Array  # [N, 2] bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window(Resident):
    """Labels of a split on the device, and the images of the next K batches alone, in a ring.

    What a stream gives instead of a `Resident`: the images are M arrays [K, B, H, W, 3], split over
    the devices along B, and the batch of step s lies at s % K.
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The whole run as tables on the device, indexed by the step."""

    rows: jax.Array  # [steps, M, B] int32, rows of each band's images
    rates: jax.Array  # [steps, 2] float32, learning rates of (others, biases)


def gather(data: Resident, rows: jax.Array, step: jax.Array, mesh: Mesh) -> tuple[jax.Array, Batch]:
    """(images uint8 [M, B, H, W, 3], the batch without them) at rows [M, B], split over devices.

    Row j of every band shares its identity; camera, scene and flare are those of the first band.
    `step` finds the batch in a `Window`, which has the images of these rows already.
    """
    rows = split_batch(rows, mesh, 1)
    if isinstance(data, Window):
        images = jnp.stack([band[step % len(band)] for band in data.images])
    else:
        images = jnp.stack([band[row] for band, row in zip(data.images, rows, strict=True)])
    first = rows[0]
    fields = (data.identity[first], data.camera[first], data.scene[first], data.flare[first])
    return images, Batch(None, *fields)


LOSSES = ("id", "triplet", "mask_kl", "mc", "flare", "mmm", "hc", "cdc")


def weight_at(weight: float | Sequence, progress: jax.Array) -> jax.Array:
    """A loss weight, constant or piecewise linear in the progress 0..1 of the run."""
    if isinstance(weight, int | float):
        return jnp.float32(weight)
    at, value = (jnp.array(column, jnp.float32) for column in zip(*weight, strict=True))
    return jnp.interp(progress, at, value)


def check_weight(name: str, weight: object) -> None:
    """Raise UserError unless `weight_at` takes this weight."""
    try:
        table = np.asarray(weight, np.float64)
        good = np.isfinite(table).all() and (
            table.ndim == 0
            or (table.ndim == 2 and table.shape[1] == 2 and (np.diff(table[:, 0]) > 0).all())
        )
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(
            f"config.losses.{name} is {weight!r}; it must be a number or "
            "((progress, weight), ...) with rising progress from 0 to 1."
        )


def loss_terms(
    outputs: Outputs, batch: Batch, names: Sequence[str], options: ml_collections.ConfigDict
) -> dict[str, jax.Array]:
    """The named losses, unweighted, each a scalar; sums over bands where a loss is per band."""
    # By name: the order of a dict that went through a JAX transformation is alphabetical.
    features, logits = (
        [named[band] for band in BANDS] for named in (outputs.features, outputs.logits)
    )
    terms = {
        "id": lambda: sum(
            losses.cross_entropy(x, batch.identity, options.label_smoothing) for x in logits
        ),
        "triplet": lambda: sum(
            losses.batch_hard_triplet(x, batch.identity, options.margin or None) for x in features
        ),
        "mask_kl": lambda: losses.min_kl(*outputs.extras["flare_logits"], options.kl_reduction),
        "mc": lambda: losses.multi_modal_consistency(logits, options.kl_reduction),
        "flare": lambda: sum(
            losses.cross_entropy(x, delta.astype(jnp.int32))
            for x, delta in zip(outputs.extras["flare_logits"], batch.flare.T, strict=True)
        ),
        "mmm": lambda: losses.mmm(features, batch.identity),
        "hc": lambda: losses.hc(features, batch.identity),
        "cdc": lambda: losses.cdc(features, batch.identity),
    }
    return {name: terms[name]() for name in names}


def used_losses(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The names of the losses with a weight other than 0, after a check that the model has them."""
    for name in LOSSES:
        check_weight(name, config.losses[name])
    names = tuple(name for name in LOSSES if config.losses[name])
    for name in ("mask_kl", "flare"):
        if name in names and not config.model.flare_heads:
            raise UserError(
                f"config.losses.{name} is {config.losses[name]} but config.model.flare_heads is "
                "False; switch the heads on or set the weight to 0."
            )
    if not names:
        raise UserError("Every weight in config.losses is 0, so there is nothing to learn.")
    return names


def train_step(
    state: State,
    data: Resident,
    schedule: Schedule,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
) -> tuple[State, dict[str, jax.Array]]:
    """(the next state, scalars float32 by name) after one step on the batch that the plan names."""
    names, step = used_losses(config), state.step
    augment_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))
    images, batch = gather(data, schedule.rows[step], step, mesh)
    batch = dataclasses.replace(batch, images=augment(images, augment_key, config.augment))
    progress = step.astype(jnp.float32) / schedule.rows.shape[0]

    def objective(params):
        outputs, changed = model.apply(
            {"params": params, **state.collections},
            batch,
            train=True,
            progress=progress,
            key=model_key,
        )
        terms = loss_terms(outputs, batch, names, config.loss_options)
        total = sum(weight_at(config.losses[name], progress) * terms[name] for name in names)
        return total, (terms, changed)

    grad_fn = jax.value_and_grad(objective, has_aux=True)
    (total, (terms, changed)), gradients = grad_fn(gathered(state.params, config, mesh))
    gradients = held(gradients, config, mesh)
    directions, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    rates = schedule.rates[step]
    params = descend(state.params, directions, rates)
    scalars = {
        "loss": total,
        **{f"loss_{name}": value for name, value in terms.items()},
        "learning_rate": rates[0],
        "gradient_norm": global_norm(gradients),
        # Of the new parameters: a step that overflows tells so before it can be saved.
        "parameter_norm": global_norm(params),
    }
    after = State(step + 1, params, changed, optimizer_state)
    return held(after, config, mesh), scalars


def state_sharding(state: State, config: ml_collections.ConfigDict, mesh: Mesh) -> State:
    """How a state, or a part of one, lies on the devices: whole, or divided by `train.shard_state`.

    Dividing is a matter of shapes alone, outside the model. Takes arrays or shapes and gives
    shardings.
    """
    if config.train.shard_state:
        return divided(state, mesh, config.train.shard_above)
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), state)


def gathered(params: Any, config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    """`params` whole on every device for the length of a step, inside jit.

    Left to itself the partitioner moves activations of the whole batch to the divided parameters.
    """
    if not config.train.shard_state:
        return params
    return jax.lax.with_sharding_constraint(params, NamedSharding(mesh, PartitionSpec()))


def held(tree: Any, config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    """`tree` kept in its place by `state_sharding`, inside jit."""
    if not config.train.shard_state:
        return tree
    return jax.lax.with_sharding_constraint(tree, state_sharding(tree, config, mesh))


def make_chunk(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """chunk(state, data, schedule, count): `count` <= K steps in one dispatch; donates the state.

    K = config.train.steps_per_dispatch. The scalars come back as arrays [K] of which the first
    `count` are filled. `count` is a value, not a shape: one program serves every length, so where a
    run is cut (evaluation, a kill) cannot change its arithmetic.
    """
    step = functools.partial(train_step, model=model, optimizer=optimizer, config=config, mesh=mesh)

    def chunk(state, data, schedule, count):
        shapes = jax.eval_shape(step, state, data, schedule)[1]
        logs = {name: jnp.zeros(config.train.steps_per_dispatch) for name in shapes}

        def body(i, carry):
            state, logs = carry
            state, scalars = step(state, data, schedule)
            return state, {name: logs[name].at[i].set(scalars[name]) for name in logs}

        return jax.lax.fori_loop(0, count, body, (state, logs))

    return jax.jit(chunk, donate_argnums=0)


def initial_state(model: Model, optimizer: optax.GradientTransformation, seed: int) -> State:
    """An untrained state. Pure, to be jitted to where it shall live."""
    variables = dict(model.init(jax.random.key(seed)))
    params = variables.pop("params")
    return State(jnp.int32(0), params, variables, optimizer.init(params))


@functools.lru_cache(maxsize=8)  # a run evaluates many times and shall compile once
def make_extract(
    model: Model, mesh: Mesh, bands: tuple[str, ...] = BANDS
) -> Callable[[Mapping, Resident, jax.Array, jax.Array], jax.Array]:
    """extract(variables, data, rows [B], real [B]) -> embeddings [B, E] float32 of these rows.

    `data` is a Resident, or a Window with the one batch of these rows. `real` is False for the rows
    that only fill up the last batch: they must not open a gate that looks at the whole batch.
    """
    index = [BANDS.index(band) for band in bands]

    def extract(variables, data, rows, real):
        data = dataclasses.replace(data, images=tuple(data.images[i] for i in index))
        rows = jnp.broadcast_to(rows[None], (len(index), *rows.shape))
        images, batch = gather(data, rows, jnp.int32(0), mesh)
        batch = dataclasses.replace(
            batch, images=normalise(images), flare=batch.flare & real[:, None]
        )
        outputs, _ = model.apply(variables, batch, train=False, bands=bands)
        return jax.lax.with_sharding_constraint(
            outputs.embedding, NamedSharding(mesh, PartitionSpec())
        )

    return jax.jit(extract)
