"""The input and the output of models: `Batch` and `Outputs`, and `DataSpec`, facts of the data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The facts about the training data that a model is built for; stored with a run as spec.json.

    `labels` has, for each whole-number label such as "camera" or "view", the number of values
    0..n-1: the largest one in the training split plus 1, and 0 where it is unknown.
    """

    modalities: tuple[str, ...]  # in the order of every modality axis
    image_size: tuple[int, int]  # H, W in pixels
    identities: int
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch on the device, modality axis first, batch axis second.

    Column j of every modality has the same identity; in an aligned data set it is one sample.
    """

    images: jax.Array  # [M, B, H, W, 3] float32, normalised by the model's pixel mean and std
    identity: jax.Array  # [B] int32, 0..C-1 in training
    labels: Mapping[str, jax.Array]  # {name: [M, B]}, such as "camera" int32, "flare" bool
    present: jax.Array | None = None  # [M, B] bool; None: no image is missing


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model gives for a batch, under names that the model chooses.

    Losses find what they act on by these names. The mappings keep the model's order, also through
    JAX transformations (which sort a plain dict). `present` has, for names whose image may be
    missing, the rows in which it exists; a name without an entry has an image in all rows.
    """

    features: Mapping[str, jax.Array]  # {name: [B, D]} float32, what metric losses act on
    logits: Mapping[str, jax.Array]  # {name: [B, C]} float32, of the identities
    embedding: jax.Array  # [B, E] float32, not normalised: what is matched
    # {name: (start, stop)} columns of the embedding; at least one name
    parts: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)  # anything else
    present: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)  # {name: [B] bool}


ARRAYS = ("features", "logits", "extras", "present")
"""The fields of `Outputs` that map names to arrays."""


def _flatten(outputs: Outputs) -> tuple[tuple, tuple]:
    mappings = [getattr(outputs, field) for field in ARRAYS]
    names = tuple(tuple(mapping) for mapping in mappings)
    arrays = tuple(tuple(mapping.values()) for mapping in mappings)
    return (outputs.embedding, *arrays), (names, tuple(outputs.parts.items()))


def _unflatten(fixed: tuple, children: tuple[Any, ...]) -> Outputs:
    names, parts = fixed
    embedding, *arrays = children
    fields = {
        field: dict(zip(keys, values, strict=True))
        for field, keys, values in zip(ARRAYS, names, arrays, strict=True)
    }
    return Outputs(embedding=embedding, parts=dict(parts), **fields)


jax.tree_util.register_pytree_node(Outputs, _flatten, _unflatten)
