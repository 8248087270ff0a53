"""Learning-rate tables, parameter groups by path, and the optimiser that reads both."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from data_tfds.errors import UserError
from facenet_jax.models.base import Group


def recipe_rate(
    epoch: np.ndarray,
    *,
    base: float,
    value: float,
    epochs: int,
    warmup: float,
    start: float = 0.01,
    floor: float = 0.002,
) -> np.ndarray:
    """The release's learning rate of each epoch e = 1..E, timm's cosine with warm-up.

    e < W: s + e (v - s) / W; else f + (v - f)(1 + cos(pi e / E)) / 2, and f at e = E. v = `value`
    is the peak of the group (b = `base`, or twice b for biases); s = `start` b and f = `floor` b
    are those of all groups, so that a group of a small peak starts above it.
    """
    e = np.asarray(epoch, np.float64)
    low, start = floor * base, start * base
    cosine = low + 0.5 * (value - low) * (1 + np.cos(np.pi * e / epochs))
    rate = np.where(e < warmup, start + e * (value - start) / max(warmup, 1e-9), cosine)
    return np.where(e >= epochs, low, rate)


def multistep_rate(
    epoch: np.ndarray,
    *,
    value: float,
    milestones: Sequence[float],
    gamma: float,
    warmup: float,
    start: float = 0.01,
    by_step: bool = False,
) -> np.ndarray:
    """The learning rate of each step: `value` times `gamma` for each milestone <= its epoch.

    `epoch` e = 1..E of each step. For e < W the rate is multiplied with s (1 - e / W) + e / W as
    well, where s is `start` (Luo et al. 2019 have 0.01, AGW 0); `by_step` takes for e the time in
    epochs at the beginning of the step.
    """
    e = np.asarray(epoch, np.float64)
    passed = np.searchsorted(np.sort(np.asarray(milestones, np.float64)), e, side="right")
    at = since_start(epoch) if by_step else e
    share = np.minimum(at / max(warmup, 1e-9), 1.0)
    return value * gamma**passed * np.where(at < warmup, start * (1 - share) + share, 1.0)


def since_start(epoch: np.ndarray) -> np.ndarray:
    """The time in epochs at which each step begins, from its epoch 1..E, which only rises."""
    _, first, count = np.unique(epoch, return_index=True, return_counts=True)
    within = np.arange(len(epoch)) - np.repeat(first, count)
    return np.asarray(epoch, np.float64) - 1 + within / np.repeat(count, count)


def cosine_rate(steps: int, *, value: float, warmup: int) -> np.ndarray:
    """Linear warm-up over `warmup` steps to `value`, then a half cosine to 0 at the last step."""
    s = np.arange(1, steps + 1, dtype=np.float64)
    cosine = 0.5 * value * (1 + np.cos(np.pi * (s - warmup) / max(steps - warmup, 1)))
    return np.where(s <= warmup, value * s / max(warmup, 1), cosine)


Groups = Mapping[str, Group]
"""Parameter groups by name. A parameter belongs to the first that matches it, or to the others."""


def parameter_groups(own: Groups, bias_lr_factor: float) -> Groups:
    """The groups of a run: the model's own, then the biases. Others have the factor 1."""
    return {**own, "biases": Group(r"(.*/)?bias$", bias_lr_factor)}


def rate_table(
    config: ml_collections.ConfigDict, epoch: np.ndarray, epochs: int, groups: Groups
) -> np.ndarray:
    """Learning rates [steps, G] float32 of the groups (others first) for every step.

    Args:
        config: the section `optim`.
        epoch: the epoch of each step [steps].
        epochs: the length E of the recipe's schedule, in epochs.
        groups: the parameter groups besides the others.
    """
    base, columns = config.learning_rate, []
    for factor in (1.0, *(group.factor for group in groups.values())):
        value = base * factor
        if config.schedule == "recipe":
            rates = recipe_rate(
                epoch,
                base=base,
                value=value,
                epochs=epochs,
                warmup=config.warmup,
                start=config.warmup_start,
                floor=config.floor,
            )
        elif config.schedule == "multistep":
            rates = multistep_rate(
                epoch,
                value=value,
                milestones=config.milestones,
                gamma=config.gamma,
                warmup=config.warmup,
                start=config.warmup_start,
                by_step=config.warmup_each == "step",
            )
        else:
            warmup = round(config.warmup * len(epoch) / epoch[-1])
            rates = cosine_rate(len(epoch), value=value, warmup=warmup)
        columns.append(rates)
    return np.stack(columns, axis=1).astype(np.float32)


def leaf_name(path: tuple[Any, ...]) -> str:
    """The last key of a parameter's path: "kernel", "bias", "scale", ..."""
    return path[-1].key


def group_of(path: tuple[Any, ...], groups: Groups) -> int:
    """The column of a parameter's rate in a table of rates: 0 for the others."""
    name = "/".join(str(key.key) for key in path)
    found = [i for i, group in enumerate(groups.values(), start=1) if group.holds(name)]
    return found[0] if found else 0


def check_groups(groups: Groups, params: Mapping) -> None:
    """Raises UserError for a group of the model without a parameter; takes arrays or shapes."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    used = {group_of(path, groups) for path in paths}
    for number, (name, group) in enumerate(groups.items(), start=1):
        if number not in used and name != "biases":
            tops = ", ".join(sorted({str(path[0].key) for path in paths}))
            raise UserError(
                f"The model's parameter group {name} holds no parameter: no path begins with "
                f"{group.pattern!r} (or an earlier group holds it); paths begin with {tops}."
            )


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Gradients to descent directions, before the learning rate.

    "sgd" is torch's: momentum on g + decay * p for every parameter, no dampening.
    "adam" is torch's: g + decay * p for every parameter enters the moments.
    "adamw" decays matrices alone, decoupled from the gradient (Loshchilov and Hutter 2019).
    """
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    if config.name == "sgd":
        parts += [
            optax.add_decayed_weights(config.weight_decay),
            optax.trace(config.momentum, config.nesterov),
        ]
    elif config.name == "adam":
        parts += [
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_adam(*config.betas),
        ]
    else:
        parts += [
            optax.scale_by_adam(*config.betas),
            optax.add_decayed_weights(
                config.weight_decay,
                mask=lambda params: jax.tree_util.tree_map_with_path(
                    lambda path, _: leaf_name(path) == "kernel", params
                ),
            ),
        ]
    return optax.chain(*parts)


def descend(params: Mapping, directions: Mapping, rates: jax.Array, groups: Groups) -> Mapping:
    """Parameters after one step: p - rate * direction, with the rates [G] of the groups."""

    def move(path, p, direction):
        rate = rates[group_of(path, groups)]
        return p - (rate * direction).astype(p.dtype)

    return jax.tree_util.tree_map_with_path(move, params, directions)
