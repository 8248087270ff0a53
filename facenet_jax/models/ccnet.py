"""CCNet: three ResNet-50 whose maps are brought to one level half-way, and a loss of centres.

Zheng et al., "Cross-directional Consistency Network with Adaptive Layer Normalization for
Multi-spectral Vehicle Re-identification and a High-quality Benchmark", Information Fusion 2023. The
branches share nothing; what is matched is the concatenation behind the necks. docs/fidelity.md
lists where the paper and the authors' release differ.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.losses import centres
from facenet_jax.models import resnet, three_stream
from facenet_jax.models.backbones import Backbone
from facenet_jax.models.base import Model
from facenet_jax.models.convolution import Conv, torch_uniform
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.models.three_stream import ThreeStream
from facenet_jax.options import Option, Options, at_least, one_of
from facenet_jax.precision import wide
from facenet_jax.types import Batch, DataSpec, Outputs

OWN_OPTIONS: Options = {
    "backbone": Option("resnet", "what has maps", one_of("resnet")),
    "neck_feature": Option(
        "after", "what is matched, in relation to the BatchNorm", one_of("before", "after")
    ),
    "norm": Option(
        "alnu",
        "of the maps: adaptive, LayerNorm or InstanceNorm (Table VI), or none",
        one_of("alnu", "ln", "in", "none"),
    ),
    "norm_after": Option("layer2", "where, a stage", one_of(*resnet.STAGES)),
    "centre_rate": Option(
        0.0,
        "learning rate of the centres of the loss center, 0.5 in the release; 0: there are none",
        at_least(0),
    ),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "id": {"term": "id"},
    "cdc": {"term": "cdc", "weight": 0.3},
    # What Table VI compares with CdC.
    "hc": {"term": "hc", "weight": 0.0, "metric": "l2", "pairs": "all"},
    "center": {"term": "center", "weight": 0.0},
    # Of FACENet, which other methods take up (its Table 7).
    "mc": {"term": "mc", "weight": 0.0},
}

EPSILONS = {"alnu": 1e-6, "ln": 1e-6, "in": 1e-5}


class Level(nn.Module):
    """ALB: one number in 0..1 for each image, from its maps."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B] float32; two 3 x 3 convolutions, mean and maximum, a sigmoid."""
        for i, share in enumerate((4, 16), start=1):
            conv = Conv(
                maps.shape[-1] // (share if i == 1 else 4),
                3,
                dtype=self.dtype,
                kernel_init=torch_uniform,
                name=f"conv{i}",
            )
            maps = nn.relu(BatchNorm(frozen_bias=False, name=f"bn{i}")(conv(maps), train))
        pooled = jnp.concatenate([maps.mean((1, 2)), largest(maps)], axis=-1)
        bound = pooled.shape[-1] ** -0.5

        def bias_init(key: jax.Array, shape: Sequence[int]) -> jax.Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        last = Dense(
            1, dtype=pooled.dtype, kernel_init=torch_uniform, bias_init=bias_init, name="out"
        )
        return jax.nn.sigmoid(last(pooled)[:, 0])


def largest(maps: jax.Array) -> jax.Array:
    """The maximum of each channel [B, C] of maps [B, H, W, C]; its gradient goes to one place.

    `max` compares with its own result to find where the gradient goes. A compiler that computes the
    maps a second time, and rounds them otherwise, then finds no place at all, and 0 / 0.
    """
    rows = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    place = jnp.argmax(jax.lax.stop_gradient(rows), axis=1, keepdims=True)
    return jnp.take_along_axis(rows, place, axis=1)[:, 0]


class MapNorm(nn.Module):
    """Normalised maps; with `kind` "alnu" scaled and shifted by two numbers of the image itself.

    ALNU (Eqs. 2 to 6): gamma (F - mean) / sqrt(var + epsilon) + beta with the mean and the variance
    over all of an image's map, and gamma, beta by a `Level` each from F as it is. Eq. 4 is printed
    without its square. "ln" is the same with gamma 1 and beta 0, "in" has the statistics of each
    channel; both without learned scale and shift, about which the paper says nothing.
    """

    kind: str  # "alnu" | "ln" | "in"
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H, W, C] float32."""
        maps = wide(maps)
        axes = (1, 2) if self.kind == "in" else (1, 2, 3)
        mean = maps.mean(axes, keepdims=True)
        variance = jnp.square(maps - mean).mean(axes, keepdims=True)
        normal = (maps - mean) * jax.lax.rsqrt(variance + EPSILONS[self.kind])
        if self.kind != "alnu":
            return normal
        gamma = Level(self.dtype, name="gamma")(maps, train)
        beta = Level(self.dtype, name="beta")(maps, train)
        normal = normal * gamma[:, None, None, None] + beta[:, None, None, None]
        # For whoever asks for the collection "intermediates"; training does not.
        found = {"mean": mean[:, 0, 0, 0], "var": variance[:, 0, 0, 0], "out": normal}
        self.sow("intermediates", "alnu", {**found, "gamma": gamma, "beta": beta})
        return normal


class CCNet(ThreeStream):
    """The branches, and the centres of the centre loss (Table VI) where `centre_rate` is not 0."""

    centre_rate: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, modalities: Sequence[str], train: bool) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities."""
        outputs = super().__call__(batch, modalities, train)
        if not self.centre_rate or not (train or self.is_initializing()):
            return outputs
        features = list(outputs.features.values())
        table = self.variable(
            "centres",
            "table",
            lambda: jax.random.normal(
                self.make_rng("params"), (self.identities, features[0].shape[-1])
            ),
        )
        before = table.value
        if not self.is_initializing():
            table.value = centres.moved_centres(features, batch.identity, before, self.centre_rate)
        return dataclasses.replace(outputs, extras={**outputs.extras, "centres": before})


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`: those of three streams of a ResNet and these."""
    return {**three_stream.options({**choices, "backbone": "resnet"}), **OWN_OPTIONS}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, a clause each."""
    found = three_stream.problems(config)
    labels = [k for k, section in config.losses.items() if section.term == "center"]
    needing = [label for label in labels if config.losses[label].weight]
    if needing and not config.model.centre_rate:
        found.append(
            f"config.losses.{needing[0]}.weight is {config.losses[needing[0]].weight} but "
            "config.model.centre_rate is 0, so there are no centres; set it to 0.5"
        )
    return found


def backbone(config: ml_collections.ConfigDict, spec: DataSpec) -> Backbone:
    """The ResNet of the section `model`, with the normalisation of its maps."""
    norm = functools.partial(MapNorm, config.norm, jnp.dtype(config.dtype), name="norm")
    inserted = {} if config.norm == "none" else {config.norm_after: norm}
    return resnet.backbone(config, tuple(spec.image_size), inserted)


def network(config: ml_collections.ConfigDict, spec: DataSpec) -> CCNet:
    """The Flax module of the section `model`."""
    kind = functools.partial(CCNet, centre_rate=config.centre_rate)
    return three_stream.assembled(config, spec, kind, backbone(config, spec))


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """CCNet for data like `spec`, of any modalities."""
    halves = ("trunk", "last") if config.shared_trunk else ("last",)
    parts = [*halves, *(f"{half}_{m}" for half in ("trunk", "last") for m in spec.modalities)]
    return three_stream.streams(
        config,
        spec,
        functools.partial(CCNet, centre_rate=config.centre_rate),
        backbone=backbone(config, spec),
        kept=[f"{part}/norm/" for part in parts],
    )
