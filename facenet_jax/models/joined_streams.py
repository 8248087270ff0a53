"""Three streams and what joins them: DeMo's experts, ProxyTTT's proxies, both, or neither.

The experts (facenet_jax/models/experts.py) are a further feature, matched beside those of the
modalities; the proxies (facenet_jax/models/proxies.py) only shape them in training.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.models import backbones, proxies, three_stream
from facenet_jax.models.backbones import branches, with_fields
from facenet_jax.models.base import Model
from facenet_jax.models.experts import DeMoHead
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.models.map_streams import check_complete
from facenet_jax.models.three_stream import ThreeStream
from facenet_jax.options import Option, Options, between, one_of, switch, whole
from facenet_jax.types import Batch, DataSpec, Outputs

EXPERTS, JOINED, MIXED = "experts", "joined", "mixed"

OWN_OPTIONS: Options = {
    "backbone": Option("vit", "what has patch tokens", one_of("vit", "dinov2", "dinov3", "clip")),
    "shared_last": Option(False, "one last block for all modalities, too", switch()),
    "classified": Option(
        "each",
        "what has a neck and a classifier: each modality, all joined, or both",
        one_of("each", "joined", "both"),
    ),
    "experts": {
        "enabled": Option(True, "DeMo's head", switch()),
        "heads": Option(8, "of the experts: 8 for vehicles, 4 for people", whole(1, 1024)),
        "attention_width": Option(64, "of a head of the queries", whole(1, 4096)),
        "drop": Option(0.1, "share of attention weights that training leaves out", between(0, 0.9)),
    },
    "proxies": {
        "enabled": Option(False, "moving centres of each identity", switch()),
        "each": Option(3, "of an identity, for all modalities together", whole(1, 64)),
        "add": Option(
            "sum", "of the features that move a proxy; sum: ProxyTTT", one_of("sum", "mean")
        ),
        "hidden": Option(0.15, "share of channels that are recovered", between(0.01, 0.9)),
    },
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "id": {"term": "id", "label_smoothing": 0.1},
    "triplet": {"term": "triplet"},
    "proxies": {"term": "draw_together", "weight": 0.0},
    "recovery": {"term": "recovery", "weight": 0.0},
}

TERMS = proxies.TERMS


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`: those of three streams and these."""
    return {**three_stream.options(choices), **OWN_OPTIONS}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, a clause each."""
    found, model = three_stream.problems(config), config.model
    parts = {name: model.experts[name] for name in ("heads", "attention_width")}
    if not found and model.experts.enabled:
        module = backbones.find(model.backbone)
        width = module.backbone(model, tuple(config.data.image_size)).width
        found += [
            f"config.model.experts.{name} is {number} and does not divide the width {width} of a "
            "feature"
            for name, number in parts.items()
            if width % number
        ]
    for label, section in config.losses.items():
        if section.term in TERMS and section.weight and not model.proxies.enabled:
            found.append(
                f"config.losses.{label}.weight is {section.weight} but "
                "config.model.proxies.enabled is False; switch them on or set the weight to 0"
            )
    return found


class JoinedStreams(ThreeStream):
    """The streams with what joins them."""

    shared_last: bool = False
    classified: str = "each"  # "each" | "joined" | "both"
    experts: functools.partial | None = None  # `DeMoHead` but for its name
    proxies: Mapping[str, Any] | None = None  # fields of `Proxies`

    @nn.compact
    def __call__(self, batch: Batch, modalities: Sequence[str], train: bool) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities.

        Features and logits are those of the modalities, "joined" and "experts", as far as there
        are any.
        """
        check_complete(batch, "The model joined_streams")
        given = self.given(batch, modalities, train)
        features = {name: tokens[:, 0] for name, tokens in given.items()}
        if self.experts is not None:
            means, found = self.experts(name=EXPERTS)(given, self.backbone.prefix, train)
            features = {**means, EXPERTS: found}
        own = [features[name] for name in modalities]
        joined, complete = jnp.concatenate(own, axis=-1), len(own) == len(self.modalities)
        if complete and (self.classified != "each" or self.proxies):
            features[JOINED] = joined
        logits, necks = {}, {}
        left_out = {"each": (JOINED,), "joined": modalities, "both": ()}[self.classified]
        for name, feature in features.items():
            if name not in left_out:
                necks[name], logits[name] = self.neck_and_logits(name, feature, train)
            elif name in modalities:  # which may be matched behind it
                necks[name] = BatchNorm(name=f"neck_{name}")(feature, train)
        matched = features if self.neck_feature == "before" else necks
        matched = {name: matched[name] for name in (*modalities, EXPERTS) if name in matched}
        ends = itertools.accumulate((x.shape[-1] for x in matched.values()), initial=0)
        return Outputs(
            {name: x for name, x in features.items() if name not in left_out},
            logits,
            jnp.concatenate(list(matched.values()), axis=-1),
            dict(zip(matched, itertools.pairwise(ends), strict=True)),
            self.extras(features, batch, modalities, train) if complete else {},
        )

    def given(self, batch: Batch, modalities: Sequence[str], train: bool) -> dict[str, jax.Array]:
        """{modality: tokens after the last LayerNorm}: [B, p + n, D], or [B, 1, D] without experts.

        Only experts look at other tokens than the class token.
        """
        tokens = self.tokens(batch, modalities, train)
        alone = self.experts is None
        head = with_fields(self.backbone.head, class_only=alone)
        name = "shared_last" if self.shared_last else "last"
        last = branches(
            head, name, modalities, shared=self.shared_last, stacked=self.backbone.stacked
        )
        found = last(tokens, train)
        found = found[:, :, None] if alone else found
        return dict(zip(modalities, found, strict=True))

    def extras(
        self,
        features: Mapping[str, jax.Array],
        batch: Batch,
        modalities: Sequence[str],
        train: bool,
    ) -> dict[str, jax.Array]:
        """The proxies and errors of recovery; nothing in evaluation."""
        if not self.proxies or not (train or self.is_initializing()):
            return {}
        mixed = Dense(features[modalities[0]].shape[-1], dtype=features[JOINED].dtype, name="mix")(
            features[JOINED]
        )
        found = {}
        for name, feature in {**{m: features[m] for m in modalities}, MIXED: mixed}.items():
            fields = {**self.proxies, "each": self.proxies["each"] if name == MIXED else 1}
            bank = proxies.Proxies(self.identities, **fields, name=f"proxies_{name}")
            table, error = bank(feature, batch.identity, train)
            found |= {f"drawn_{name}": feature, f"proxies_{name}": table, f"recovery_{name}": error}
        return found


def network(config: ml_collections.ConfigDict, spec: DataSpec) -> functools.partial:
    """The network of the section `model`, but for the fields of the baseline."""
    own = config.experts
    backbone = backbones.find(config.backbone).backbone(config, tuple(spec.image_size))
    head = functools.partial(
        DeMoHead,
        tuple(spec.modalities),
        own.heads,
        backbone.width // own.attention_width,
        own.drop,
        backbone.dtype,
    )
    fields = config.proxies.to_dict()
    return functools.partial(
        JoinedStreams,
        shared_last=config.shared_last,
        classified=config.classified,
        experts=head if own.enabled else None,
        proxies=fields if fields.pop("enabled") else None,
    )


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """The network for data like `spec`, of any modalities."""
    kept = ("neck_", "classifier_", "experts/", "mix/", "proxies_")
    fill = {"shared_last": "head"} if config.shared_last else {}
    return three_stream.streams(config, spec, network(config, spec), fill=fill, kept=kept)
