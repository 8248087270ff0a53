"""PFNet: each modality, and the first one together with each other one, in two stripes.

Zheng et al., "Robust Multi-Modality Person Re-identification", AAAI 2021, as ported in the release
of IEEE; a host of FACENet's Table 7.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from facenet_jax.models import map_streams, resnet
from facenet_jax.models.base import Model
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.models.map_streams import MapStreams, Reduced, stripes
from facenet_jax.options import Option, Options, whole
from facenet_jax.types import Batch, DataSpec, Outputs

OWN_OPTIONS: Options = {
    "reduced_width": Option(768, "of a stripe after its 1 x 1 convolution", whole(1, 4096)),
    "part_width": Option(256, "of a stripe's feature", whole(1, 4096)),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "id": {"term": "id"},
    "mc": {"term": "mc_of_parts", "weight": 0.0},
}

TERMS = map_streams.TERMS
STRIPES = 2


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`."""
    del choices
    return {**map_streams.options(), **OWN_OPTIONS}


problems = resnet.problems


class PFNet(MapStreams):
    """Two stripes of each of the streams, their classifiers, and one of all of them joined."""

    reduced_width: int = 768
    part_width: int = 256

    @nn.compact
    def __call__(self, batch: Batch, modalities: Sequence[str], train: bool) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities.

        Logits are "part1_<modality>" of the upper stripe, "pair1_<stream>" where two modalities are
        added, and "all", which needs all modalities of the network.
        """
        features, logits, init = {}, {}, nn.initializers.normal(self.classifier_std)
        maps = self.maps(batch, modalities, train)
        for stream, of in streams(self.modalities, modalities).items():
            x = stripes(sum(maps[modality] for modality in of), STRIPES)
            reduced = Reduced(self.reduced_width, self.backbone.dtype, name=f"reduce_{stream}")
            x = reduced(x, train)
            parts = []
            for i in range(STRIPES):
                y = Dense(self.part_width, dtype=x.dtype, name=f"part{i + 1}_{stream}")(x[:, i])
                bn = BatchNorm(frozen_bias=False, name=f"part{i + 1}_bn_{stream}")
                parts.append(nn.relu(bn(y, train)))
                classifier = Dense(
                    self.identities,
                    dtype=x.dtype,
                    kernel_init=init,
                    name=f"classifier{i + 1}_{stream}",
                )
                kind = "part" if len(of) == 1 else "pair"
                logits[f"{kind}{i + 1}_{stream}"] = classifier(parts[-1])
            features[stream] = jnp.concatenate(parts, axis=-1)
        embedding = jnp.concatenate(list(features.values()), axis=-1)
        if tuple(modalities) == self.modalities:
            classifier = Dense(
                self.identities, dtype=x.dtype, kernel_init=init, name="classifier_all"
            )
            logits["all"] = classifier(embedding)
        width = STRIPES * self.part_width
        parts = {name: (i * width, (i + 1) * width) for i, name in enumerate(features)}
        return Outputs(features, logits, embedding, parts)


def streams(every: Sequence[str], given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{stream: its modalities} in the order of the embedding: T, RT, R, RN, N.

    `every` modality of the network; the first one is added to each of the others. Of the `given`
    modalities only the streams that they suffice for.
    """
    first, *others = every
    order = [(first,)]
    for other in others[:-1]:
        order += [(first, other), (other,)]
    for other in others[-1:]:
        order = [(other,), (first, other), *order]
    return {"_".join(of): of for of in order if {*of} <= {*given}}


def network_kind(config: ml_collections.ConfigDict) -> functools.partial:
    """The network of the section `model`, but for the fields of the baseline."""
    return functools.partial(
        PFNet, reduced_width=config.reduced_width, part_width=config.part_width
    )


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """PFNet for data like `spec`, of any modalities."""
    kept = ("reduce_", "part", "classifier")
    return map_streams.model(config, spec, network_kind(config), kept=kept)
