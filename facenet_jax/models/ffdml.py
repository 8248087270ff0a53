"""FFDML: maps of several stages fused, and branches that learn from each other.

"Visible-Infrared Person Re-Identification via Feature Fusion and Deep Mutual Learning": a two-stem
ResNet-50 whose last map gives a global feature, whose earlier maps, fused by learned weights of
each place (ASFF, Liu et al. 2019), give a second one, and both together a joint one, which is
matched. Each has a neck and a classifier. The authors released no code; docs/fidelity.md says what
the paper leaves open and what is done here.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.models import resnet, two_stem
from facenet_jax.models.base import Model
from facenet_jax.models.convolution import Conv
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.models.two_stem import TwoStem, joined, named, parted
from facenet_jax.options import Legal, Option, Options, one_of, rising, whole
from facenet_jax.precision import wide
from facenet_jax.types import Batch, DataSpec, Outputs

LEVELS: Legal = rising(whole(1, 4))

OWN_OPTIONS: Options = {
    "fusion_levels": Option(
        (1, 2, 3), "the layers whose maps are fused; (): none, a global feature alone", LEVELS
    ),
    "fusion_width": Option(256, "channels to which each map is reduced", whole(1)),
    "fusion_join": Option(
        "concat", "weighted maps side by side, or added as in ASFF", one_of("concat", "sum")
    ),
    "fusion_weights": Option(
        "adaptive",
        "of each place: from the maps, as in ASFF, or learned",
        one_of("adaptive", "static"),
    ),
    "fusion_resize": Option(
        "nearest", "of maps to the size of the largest", one_of("nearest", "bilinear")
    ),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    # Sums over two modalities, halved: the mean over all images of the batch.
    "id_global": {"term": "id", "weight": 0.5, "on": ("global_*",)},
    "id_fusion": {"term": "id", "weight": 0.5, "on": ("fusion_*",)},
    "id_joint": {"term": "id", "weight": 0.5, "on": ("joint_*",)},
    "kd_global": {"term": "jeffreys", "weight": 0.6, "on": ("joint_*", "global_*")},
    "kd_fusion": {"term": "jeffreys", "weight": 1.8, "on": ("joint_*", "fusion_*")},
    "wrt": {"term": "wrt"},  # of what is matched, before its neck
}

NO_WEIGHTS = resnet.NO_WEIGHTS

COMPRESSED = 16  # channels from which the weights of a level are computed, in ASFF


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`."""
    return {**two_stem.of_resnet(), **OWN_OPTIONS}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, a clause each."""
    found, levels = two_stem.problems(config), tuple(config.model.fusion_levels)
    split = resnet.STAGES.index(config.model.split_after)
    if levels and levels[0] <= split:
        found.append(
            f"config.model.fusion_levels is {levels} and config.model.split_after "
            f"'{config.model.split_after}'; only the maps of shared layers can be fused, from "
            f"{split + 1} on"
        )
    for label, section in config.losses.items():
        needs = [name for name in section.get("on", ()) if name.startswith(("fusion", "joint"))]
        if section.weight and needs and not levels:
            found.append(
                f"config.losses.{label} acts on {needs[0]}, which config.model.fusion_levels = () "
                "takes away; set its weight to 0"
            )
    return found


class Fusion(nn.Module):
    """Maps of several levels, reduced to one width, brought to one size and weighted by place.

    The reduction is a 1 x 1 convolution with BatchNorm and ReLU: the pooling that follows takes
    powers, which needs what is not negative.
    """

    width: int
    join: str  # "concat" | "sum"
    weights: str  # "adaptive" | "static"
    resize: str  # "nearest" | "bilinear"
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """Maps [N, H_i, W_i, C_i], the largest first, to [N, H_1, W_1, width or width * levels]."""
        size = maps[0].shape[1:3]
        each = []
        for i, one in enumerate(maps):
            one = Conv(self.width, 1, dtype=self.dtype, name=f"reduce{i}")(one)
            one = nn.relu(BatchNorm(frozen_bias=False, name=f"reduce_bn{i}")(one, train))
            each.append(resized(one, size, self.resize))
        scores = self.scores(each, train)  # [N or 1, H, W, levels]
        weights = jnp.split(jax.nn.softmax(wide(scores)), len(each), axis=-1)
        weighted = [weight * one for weight, one in zip(weights, each, strict=True)]
        return sum(weighted) if self.join == "sum" else jnp.concatenate(weighted, axis=-1)

    def scores(self, each: Sequence[jax.Array], train: bool) -> jax.Array:
        """What the softmax over the levels makes the weights of each place from."""
        if self.weights == "static":
            shape = (1, *each[0].shape[1:3], len(each))
            return self.param("weights", nn.initializers.zeros, shape)
        small = []
        for i, one in enumerate(each):
            one = Conv(COMPRESSED, 1, dtype=self.dtype, name=f"compress{i}")(one)
            one = BatchNorm(frozen_bias=False, name=f"compress_bn{i}")(one, train)
            small.append(nn.leaky_relu(one, 0.1))
        return Dense(len(each), dtype=self.dtype, name="weights")(jnp.concatenate(small, axis=-1))


def resized(maps: jax.Array, size: tuple[int, int], how: str) -> jax.Array:
    """Maps [N, h, w, C] at `size`, which is h and w times a power of two, or a little less."""
    if maps.shape[1:3] == size:
        return maps
    if how == "bilinear":
        return jax.image.resize(maps, (maps.shape[0], *size, maps.shape[-1]), "bilinear")
    factor = 1
    while factor * maps.shape[1] < size[0]:
        factor *= 2
    maps = jnp.repeat(jnp.repeat(maps, factor, axis=1), factor, axis=2)
    return maps[:, : size[0], : size[1]]


class FFDML(TwoStem):
    """Global, fusion and joint features, with logits of each in training."""

    levels: tuple[int, ...] = ()
    fusion: functools.partial = functools.partial(Fusion)  # but for its name

    @nn.compact
    def __call__(
        self, batch: Batch, modalities: Sequence[str], train: bool, progress: jax.Array | float
    ) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities.

        Features have the name of the modality and are what is matched, before its neck; logits are
        "global_<modality>" and so on.
        """
        stages = self.shared(joined(self.stems(batch.images, modalities, train)), train)
        features = {"global": self.pooled(stages["layer4"], "pool")}
        if self.levels:
            maps = [stages[f"layer{level}"] for level in self.levels]
            fused = self.fusion(name="fusion")(maps, train)
            features["fusion"] = self.pooled(fused, "fusion_pool")
            features["joint"] = jnp.concatenate(list(features.values()), axis=-1)
        logits = {}
        for name, rows in features.items():
            necks, scores = self.branch(rows, f"_{name}", train, batch.present)
            names = [f"{name}_{modality}" for modality in modalities]
            logits |= named(names, parted(scores, len(modalities)))
        return self.outputs(  # of the last one, which is joint where there is any
            named(modalities, parted(rows, len(modalities))),
            logits,
            rows if self.neck_feature == "before" else necks,
            batch.present,
            modalities,
        )


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """FFDML for data like `spec`, of any modalities."""
    fusion = functools.partial(
        Fusion,
        config.fusion_width,
        config.fusion_join,
        config.fusion_weights,
        config.fusion_resize,
        jnp.dtype(config.dtype),
    )
    kind = functools.partial(FFDML, levels=tuple(config.fusion_levels), fusion=fusion)
    net = two_stem.network(config, spec, kind)
    return two_stem.as_model(net, config, spec, kept=("fusion",))
