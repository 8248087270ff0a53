"""HAMNet: maps of classes that say how much each modality counts for each identity.

Li et al., "Multi-spectral Vehicle Re-identification: A Challenge", AAAI 2020, as ported in the
release of CCNet; a host of FACENet's Table 7. What is matched is the weighted sum of the features.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.losses import centres
from facenet_jax.losses.terms import chosen
from facenet_jax.models import map_streams, resnet
from facenet_jax.models.backbones import stack
from facenet_jax.models.base import Model
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.models.map_streams import MapStreams
from facenet_jax.options import Options
from facenet_jax.types import Batch, DataSpec, Outputs

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "id": {"term": "id"},
    "triplet": {"term": "triplet", "margin": 0.3},
    "similarity": {"term": "similarity", "weight": 1e-3},
    "mc": {"term": "mc", "weight": 0.0, "on": ("score_*",)},
}


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`."""
    del choices
    return map_streams.options()


problems = resnet.problems


def similarity(outputs: Outputs, batch: Batch) -> jax.Array:
    """B - sum over samples and classes of the product of all modalities' unit scores.

    The scores [B, C] of a modality are its logits "score_<modality>"; 0 would need scores that
    point at one class and agree.
    """
    del batch
    scores = [centres.unit(x) for x in chosen(outputs.logits, ("score_*",)).values()]
    return len(scores[0]) - functools.reduce(jnp.multiply, scores).sum()


TERMS = {"similarity": similarity}


class HAMNet(MapStreams):
    """Features of all modalities, added up with weights from maps of classes."""

    @nn.compact
    def __call__(self, batch: Batch, modalities: Sequence[str], train: bool) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities."""
        maps = jnp.stack(list(self.maps(batch, modalities, train).values()))  # [M, B, h, w, D]
        neck = stack(functools.partial(BatchNorm), in_axes=(0, None))
        necks = neck(name="neck")(maps.mean((2, 3)), train)
        of_class = stack(
            functools.partial(Dense, self.identities, use_bias=False, dtype=self.backbone.dtype),
            in_axes=(0,),
        )
        found = jax.nn.sigmoid(of_class(name="class_map")(maps).astype(necks.dtype))
        weights, sums = class_weights(found)  # [M, B, C] each
        fused = (weights.sum(-1, keepdims=True) * necks).sum(0)
        fused_score = (weights * sums).sum(0)
        init = nn.initializers.normal(self.classifier_std)
        scores = Dense(self.identities, dtype=necks.dtype, kernel_init=init, name="score")(necks)
        names = [f"score_{modality}" for modality in modalities]
        if not train:  # for whoever asks for it
            self.sow("intermediates", "class_maps", found)
        return Outputs(
            features={**dict(zip(modalities, necks, strict=True)), "fused": fused_score},
            logits={**dict(zip(names, scores, strict=True)), "fused": fused_score},
            embedding=fused,
            parts={"all": (0, fused.shape[-1])},
        )


def class_weights(found: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(weights, sums over the map) [M, B, C] of maps of classes [M, B, h, w, C] in 0..1.

    A modality's weight for a class is its share of the class's sum over modalities, times the share
    that the class has among all classes in the largest values over the modalities.
    """
    sums = found.sum((2, 3))
    joint = found.max(0).sum((1, 2))  # [B, C]
    share = joint / joint.sum(-1, keepdims=True)
    return sums / sums.sum(0, keepdims=True) * share[None], sums


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """HAMNet for data like `spec`, of any modalities."""
    return map_streams.model(
        config, spec, HAMNet, per_modality=("class_map",), kept=("class_map/", "score/")
    )
