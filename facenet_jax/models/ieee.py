"""IEEE: maps that take from the other modalities, and stripes that know of the whole image.

Wang et al., "Interact, Embed, and EnlargE: Boosting Modality-Specific Representations for
Multi-Modal Person Re-identification", AAAI 2022; a host of FACENet's Table 7. docs/fidelity.md has
what the release computes where the paper says something else.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.models import map_streams, resnet
from facenet_jax.models.base import Model
from facenet_jax.models.ccnet import largest
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.models.map_streams import MapStreams, Reduced, stripes
from facenet_jax.options import Option, Options, whole
from facenet_jax.types import Batch, DataSpec, Outputs

OWN_OPTIONS: Options = {
    "stripes": Option(6, "of the maps of a modality", whole(1, 64)),
    "reduced_width": Option(768, "of a stripe after its 1 x 1 convolution", whole(1, 4096)),
    "part_width": Option(128, "of a stripe's feature", whole(1, 4096)),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "id": {"term": "id", "label_smoothing": 0.1},
    "mmm": {"term": "mmm", "margin": 1.0},
    "mc": {"term": "mc_of_parts", "weight": 0.0},
}

TERMS = map_streams.TERMS
SQUEEZE = 16  # by how much the attention over channels is narrower than they are


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`."""
    del choices
    return {**map_streams.options(), **OWN_OPTIONS}


problems = resnet.problems


class IEEE(MapStreams):
    """Stripes of each modality's maps after the interaction, each with a classifier."""

    stripes: int = 6
    reduced_width: int = 768
    part_width: int = 128

    @nn.compact
    def __call__(self, batch: Batch, modalities: Sequence[str], train: bool) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities.

        Logits are "part<i>_<modality>", i from 1. The embedding begins with the last modality:
        T, R, N.
        """
        features, logits, init = {}, {}, nn.initializers.normal(self.classifier_std)
        maps = self.maps(batch, modalities, train)
        for name, own in maps.items():
            others = sum((x for other, x in maps.items() if other != name), jnp.zeros_like(own))
            parts = self.related(own, self.interaction(own, others, name, train), name, train)
            each = []
            for i in range(self.stripes):
                y = Dense(self.part_width, dtype=parts.dtype, name=f"part{i + 1}_{name}")(
                    parts[:, i]
                )
                y = BatchNorm(frozen_bias=False, name=f"part{i + 1}_bn_{name}")(y, train)
                each.append(nn.relu(y))
                classifier = Dense(
                    self.identities,
                    dtype=y.dtype,
                    kernel_init=init,
                    name=f"classifier{i + 1}_{name}",
                )
                logits[f"part{i + 1}_{name}"] = classifier(each[-1])
            features[name] = jnp.concatenate(each, axis=-1)
        order = [*modalities[-1:], *modalities[:-1]]
        embedding = jnp.concatenate([features[name] for name in order], axis=-1)
        width = embedding.shape[-1] // len(order)
        parts = {name: order.index(name) * width for name in modalities}
        spans = {name: (start, start + width) for name, start in parts.items()}
        return Outputs(features, logits, embedding, spans)

    def interaction(self, own: jax.Array, others: jax.Array, name: str, train: bool) -> jax.Array:
        """Maps [B, h, w, D] with what an attention over channels takes from those of the others."""
        width = own.shape[-1]
        reduced = functools.partial(Reduced, width, self.backbone.dtype)
        own = reduced(name=f"own_{name}")(own, train)
        others = reduced(name=f"others_{name}")(others, train)
        dense = functools.partial(Dense, use_bias=False, dtype=own.dtype)
        narrow = dense(width // SQUEEZE, name=f"attention1_{name}")
        pooled = jnp.stack([others.mean((1, 2)), largest(others)])  # both go the same way
        y = dense(width, name=f"attention2_{name}")(nn.relu(narrow(pooled)))
        return own + (1 + jax.nn.sigmoid(y.sum(0)))[:, None, None] * others

    def related(self, own: jax.Array, maps: jax.Array, name: str, train: bool) -> jax.Array:
        """The stripes [B, n, D'] of `maps` [B, h, w, D], with the mean of the `own` maps added.

        part + 2 gamma (W mean + b): the release's softmax runs over one entry, and is 1. Both are
        reduced by the same weights, one after the other, each with statistics of its own.
        """
        reduced = Reduced(self.reduced_width, self.backbone.dtype, name=f"reduce_{name}")
        image = reduced(own.mean((1, 2)), train)
        parts = reduced(stripes(maps, self.stripes), train)
        gamma = self.param(f"gamma_{name}", nn.initializers.zeros, (1,))
        image = Dense(self.reduced_width, dtype=image.dtype, name=f"image_{name}")(image)
        return parts + 2 * gamma[None, None] * image[:, None]


def network_kind(config: ml_collections.ConfigDict) -> functools.partial:
    """The network of the section `model`, but for the fields of the baseline."""
    fields = {name: config[name] for name in OWN_OPTIONS}
    return functools.partial(IEEE, **fields)


KEPT = ("own_", "others_", "attention", "reduce_", "gamma_", "image_", "part", "classifier")


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """IEEE for data like `spec`, of any modalities."""
    return map_streams.model(config, spec, network_kind(config), kept=KEPT)
