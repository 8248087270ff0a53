"""Learning-rate tables, parameter groups by path, and the optimiser that reads both."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from data_tfds.errors import UserError


def recipe_rate(
    epoch: np.ndarray, *, base: float, value: float, epochs: int, warmup: float
) -> np.ndarray:
    """The release's learning rate of each epoch e = 1..E (spec section 4).

    e < W: 0.01 b + e (v - 0.01 b) / W; else 0.002 b + (v - 0.002 b)(1 + cos(pi e / E)) / 2, and
    0.002 b at e = E. b = `base`; v = `value` is the peak of the group (b, or twice b for biases).
    """
    e = np.asarray(epoch, np.float64)
    low, start = 0.002 * base, 0.01 * base
    cosine = low + 0.5 * (value - low) * (1 + np.cos(np.pi * e / epochs))
    rate = np.where(e < warmup, start + e * (value - start) / max(warmup, 1e-9), cosine)
    return np.where(e >= epochs, low, rate)


def cosine_rate(steps: int, *, value: float, warmup: int) -> np.ndarray:
    """Linear warm-up over `warmup` steps to `value`, then a half cosine to 0 at the last step."""
    s = np.arange(1, steps + 1, dtype=np.float64)
    cosine = 0.5 * value * (1 + np.cos(np.pi * (s - warmup) / max(steps - warmup, 1)))
    return np.where(s <= warmup, value * s / max(warmup, 1), cosine)


def rate_table(config: ml_collections.ConfigDict, epoch: np.ndarray, epochs: int) -> np.ndarray:
    """Learning rates [steps, 2] float32 of the groups (others, biases) for every step.

    Args:
        config: the section `optim`.
        epoch: the epoch of each step [steps].
        epochs: the length E of the recipe's schedule, in epochs.
    """
    if config.schedule not in ("recipe", "cosine"):
        raise UserError(
            f"config.optim.schedule is '{config.schedule}'; it must be 'recipe' or 'cosine'."
        )
    base, columns = config.learning_rate, []
    for value in (base, base * config.bias_rate):
        if config.schedule == "recipe":
            rates = recipe_rate(epoch, base=base, value=value, epochs=epochs, warmup=config.warmup)
        else:
            warmup = round(config.warmup * len(epoch) / epoch[-1])
            rates = cosine_rate(len(epoch), value=value, warmup=warmup)
        columns.append(rates)
    return np.stack(columns, axis=1).astype(np.float32)


def leaf_name(path: tuple[Any, ...]) -> str:
    """The last key of a parameter's path: "kernel", "bias", "scale", ..."""
    return path[-1].key


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Gradients to descent directions, before the learning rate.

    "sgd" is torch's: momentum on g + decay * p for every parameter, no dampening, no Nesterov.
    "adamw" decays matrices alone, decoupled from the gradient (Loshchilov and Hutter 2019).
    """
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    if config.name == "sgd":
        parts += [optax.add_decayed_weights(config.weight_decay), optax.trace(config.momentum)]
    elif config.name == "adamw":
        parts += [
            optax.scale_by_adam(*config.betas),
            optax.add_decayed_weights(
                config.weight_decay,
                mask=lambda params: jax.tree_util.tree_map_with_path(
                    lambda path, _: leaf_name(path) == "kernel", params
                ),
            ),
        ]
    else:
        raise UserError(f"config.optim.name is '{config.name}'; it must be 'sgd' or 'adamw'.")
    return optax.chain(*parts)


def descend(params: Mapping, directions: Mapping, rates: jax.Array) -> Mapping:
    """Parameters after one step: p - rate * direction, rates [2] of the groups (others, biases)."""

    def move(path, p, direction):
        rate = rates[1] if leaf_name(path) == "bias" else rates[0]
        return p - (rate * direction).astype(p.dtype)

    return jax.tree_util.tree_map_with_path(move, params, directions)


def global_norm(tree: Mapping) -> jax.Array:
    """The Euclidean norm of all leaves together, float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))
