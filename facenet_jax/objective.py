"""The loss that is minimised: the terms of the config, weighted and added."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from data_tfds.errors import UserError
from facenet_jax import losses, models
from facenet_jax.types import Batch, Outputs

Weight = float | Sequence
"""A number, or ((progress, weight), ...)."""

Terms = Mapping[str, tuple[Weight, Callable[[Outputs, Batch], jax.Array]]]
"""The losses of a run: {label: (weight, function of outputs and batch)}."""


def terms(config: ml_collections.ConfigDict) -> Terms:
    """The losses with a weight other than 0, their parameters bound.

    Raises UserError where there is none, or one cannot be found.
    """
    own, found = models.own_terms(config.model.name), {}
    # The recipe's order: a ConfigDict sorts by name, and the order of a sum decides its last digit.
    first = [label for label in models.default_losses(config.model.name) if label in config.losses]
    for label in [*first, *sorted(set(config.losses) - set(first))]:
        values = config.losses[label].to_dict()
        weight, function = values.pop("weight"), losses.find(values.pop("term"), own)
        if weight:
            found[label] = (weight, bound(function, values))
    if not found:
        raise UserError("Every weight in config.losses is 0, so there is nothing to learn.")
    return found


def bound(function: Callable, values: Mapping) -> Callable[[Outputs, Batch], jax.Array]:
    """A term with its parameters, a function of outputs and batch alone."""
    return lambda outputs, batch: function(outputs, batch, **values)


def weight_at(weight: Weight, progress: jax.Array) -> jax.Array:
    """A loss weight, constant or piecewise linear in the progress 0..1 of the run."""
    if isinstance(weight, int | float):
        return jnp.float32(weight)
    at, value = (jnp.array(column, jnp.float32) for column in zip(*weight, strict=True))
    return jnp.interp(progress, at, value)


def total(
    terms: Terms, outputs: Outputs, batch: Batch, progress: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(their weighted sum, {label: weight times term}), so that what is logged adds up."""
    weighted = {
        label: weight_at(weight, progress) * number(function(outputs, batch), label)
        for label, (weight, function) in terms.items()
    }
    return sum(weighted.values()), weighted


def number(value: Any, label: str) -> jax.Array:
    """The value of a term, which must be one floating number."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", type(value))
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        kind = f"{dtype} {list(shape)}" if shape is not None else f"a {dtype.__name__}"
        raise UserError(
            f"The loss {label} of config.losses gives {kind}; it must give one floating number."
        )
    return value
