"""What flows between the parts: a batch goes into a model, `Outputs` come out."""

import dataclasses
from collections.abc import Mapping

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch on the device, modality axis first, batch axis second."""

    images: jax.Array  # [M, B, H, W, 3] float in [-1, 1]
    identity: jax.Array  # [B] int32, 0..C-1 in training
    camera: jax.Array  # [B] int32
    scene: jax.Array  # [B] int32, -1 where the data set has none
    flare: jax.Array  # [B, 2] bool: delta of the visible and of the near-infrared image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model says about a batch. The keys of `features` and `logits` are band names."""

    features: Mapping[str, jax.Array]  # {name: [B, D]} float32, before the neck
    logits: Mapping[str, jax.Array]  # {name: [B, C]} float32
    embedding: jax.Array  # [B, E] float32, not normalised
    extras: Mapping[str, jax.Array]  # whatever else a loss or a test wants, by name
