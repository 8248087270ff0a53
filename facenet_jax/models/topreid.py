"""TOP-ReID: class tokens that go round the patches of all modalities, and tokens made of others'.

Wang et al., "TOP-ReID: Multi-spectral Object Re-Identification with Token Permutation", AAAI 2024;
a host of FACENet's Table 7. Where a modality is missing, its tokens are the mean of what the other
ones reconstruct, so that the embedding is complete with every subset of the modalities.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from data_tfds.errors import UserError
from facenet_jax.models import three_stream, transreid
from facenet_jax.models.attention import attention
from facenet_jax.models.backbones import branches, stack, with_fields
from facenet_jax.models.base import Model
from facenet_jax.models.layers import (
    BatchNorm,
    Block,
    Dense,
    Kind,
    LayerNorm,
    apart,
    gelu,
    joined,
)
from facenet_jax.models.map_streams import check_complete
from facenet_jax.models.transreid import TransReID
from facenet_jax.options import Option, Options, one_of
from facenet_jax.types import Batch, DataSpec, Outputs

OWN_OPTIONS: Options = {
    "backbone": Option("vit", "what has patch tokens", one_of("vit", "dinov2", "clip")),
    "sie": transreid.OWN_OPTIONS["sie"],
    "heads_of": Option(
        "each",
        "classifiers of each modality's class token, or of all joined",
        one_of("each", "all"),
    ),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "id": {"term": "id", "label_smoothing": 0.1},
    "triplet": {"term": "triplet"},
    "reconstruction": {"term": "reconstruction"},
    "mc": {"term": "mc", "weight": 0.0, "on": ("score_*",)},
}

NORM = 1e-5  # epsilon of the LayerNorms that are TOP-ReID's own
PERMUTED, DIRECT = "permuted", "direct"


def reconstruction(outputs: Outputs, batch: Batch) -> jax.Array:
    """Mean squared errors of the tokens that modalities make of each other, added up."""
    del batch
    if "reconstruction" not in outputs.extras:
        raise UserError("The loss reconstruction needs the model topreid and all modalities.")
    return outputs.extras["reconstruction"]


TERMS = {"reconstruction": reconstruction}


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`: those of three streams and these."""
    return {**three_stream.options(choices), **OWN_OPTIONS}


problems = three_stream.problems


class Permutation(nn.Module):
    """One step: a class token attends to the patches of a modality; both residuals as in a ViT."""

    heads: int
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, token: jax.Array, patches: jax.Array) -> jax.Array:
        """Class tokens [B, 1, D] and patches [B, n, D] to class tokens [B, 1, D]."""
        width = token.shape[-1]
        norm = functools.partial(LayerNorm, NORM)
        dense = functools.partial(Dense, width, use_bias=False, dtype=self.dtype)
        q = dense(name="q").to_heads(norm(name="norm1")(token), self.heads)
        k = dense(name="k").to_heads(norm(name="norm_patches")(patches), self.heads)
        v = dense(name="v").to_heads(patches, self.heads)
        (y,) = attention([q], [k], [v], self.attention)
        y = Dense(width, dtype=self.dtype, name="proj").from_heads(y)
        token = token + y.astype(token.dtype)
        y = Dense(4 * width, dtype=self.dtype, name="fc1")(norm(name="norm2")(token))
        y = Dense(width, dtype=self.dtype, name="fc2")(gelu(y))
        return token + y.astype(token.dtype)


class TOPReID(TransReID):
    """The streams, the reconstruction of tokens and the permutation of class tokens."""

    heads_of: str = "each"  # "each" | "all"

    @nn.compact
    def __call__(self, batch: Batch, modalities: Sequence[str], train: bool) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities.

        The embedding has a part for every modality of the network, whichever are given. Features
        and logits are "permuted" and, of the class tokens as the branches give them,
        "score_<modality>" or "direct".
        """
        check_complete(batch, "TOP-ReID")
        tokens = self.tokens(batch, modalities, train)
        head = with_fields(self.backbone.head, class_only=False)
        last = branches(head, "last", modalities, shared=False, stacked=self.backbone.stacked)
        given = dict(zip(modalities, last(tokens, train), strict=True))  # [B, p + n, D] each
        every, extras = self.reconstructed(given, train)
        features = {PERMUTED: self.permuted(every)}
        classes = {name: tokens[:, 0] for name, tokens in given.items()}
        if self.heads_of == "all" and len(classes) == len(self.modalities):
            features[DIRECT] = jnp.concatenate(list(classes.values()), axis=-1)
        necks, logits = {}, {}
        for name, feature in features.items():
            necks[name], logits[name] = self.neck_and_logits(name, feature, train)
        if self.heads_of == "each":
            init = nn.initializers.normal(self.classifier_std)
            classifier = functools.partial(Dense, self.identities, use_bias=False, kernel_init=init)
            rows = jnp.stack(list(classes.values()))
            each = stack(functools.partial(BatchNorm), in_axes=(0, None))(name="neck")(rows, train)
            scores = stack(classifier, in_axes=(0,))(name="classifier")(each)
            names = [f"score_{name}" for name in classes]
            features |= dict(zip(names, rows, strict=True))
            logits |= dict(zip(names, scores, strict=True))
        matched = features[PERMUTED] if self.neck_feature == "before" else necks[PERMUTED]
        width = matched.shape[-1] // len(self.modalities)
        parts = {m: (i * width, (i + 1) * width) for i, m in enumerate(self.modalities)}
        return Outputs(features, logits, matched, parts, extras)

    def reconstructed(
        self, given: Mapping[str, jax.Array], train: bool
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """({modality: tokens [B, p + n, D]} of all modalities, {"reconstruction": the error}).

        The error is there where all modalities are given, in training.
        """
        keywords = self.backbone.tokens.keywords
        block = functools.partial(
            Block,
            keywords["heads"],
            False,
            self.backbone.dtype,
            keywords["attention"],
            kind=Kind(qkv_bias=False),
        )
        made: dict[str, list[jax.Array]] = {name: [] for name in self.modalities}
        missing = [name for name in self.modalities if name not in given]
        wanted = self.modalities if train or self.is_initializing() else missing
        for source, tokens in given.items():
            for target in wanted:
                if target != source:
                    one = block(name=f"reconstruct_{source}_{target}")
                    parts = apart(tokens, self.backbone.prefix)
                    made[target].append(joined(one(parts, jnp.float32(0), train)))
        errors = [
            jnp.square(one - given[target]).mean()
            for target, found in made.items()
            for one in found
            if target in given
        ]
        every = {
            name: given[name] if name in given else sum(made[name]) / len(made[name])
            for name in self.modalities
        }
        return every, {"reconstruction": sum(errors)} if errors else {}

    def permuted(self, every: Mapping[str, jax.Array]) -> jax.Array:
        """The joined class tokens [B, M D] after they met the patches of the others and their own.

        Each step takes the next modality's patches, so that after M steps a token has met all; the
        step's weights are the same for all tokens.
        """
        names, keywords = list(every), self.backbone.tokens.keywords
        prefix = self.backbone.prefix
        classes = {name: tokens[:, :1] for name, tokens in every.items()}
        for step in range(1, len(names) + 1):
            turn = Permutation(
                keywords["heads"], self.backbone.dtype, keywords["attention"], name=f"turn{step}"
            )
            classes = {
                name: turn(classes[name], every[names[(i + step) % len(names)]][:, prefix:])
                for i, name in enumerate(names)
            }
        return jnp.concatenate([token[:, 0] for token in classes.values()], axis=-1)


def network(config: ml_collections.ConfigDict, spec: DataSpec) -> functools.partial:
    """The network of the section `model`, but for the fields of the baseline."""
    return functools.partial(
        TOPReID,
        sides=transreid.sides(config.sie, spec),
        coefficient=config.sie.coefficient,
        heads_of=config.heads_of,
    )


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """TOP-ReID for data like `spec`, of any modalities; UserError for unknown side information."""
    per_modality = [] if config.shared_trunk else ["side"]
    kept = ("side/", "neck_", "classifier_", "reconstruct_", "turn")
    made = three_stream.streams(
        config, spec, network(config, spec), per_modality=per_modality, kept=kept
    )
    return dataclasses.replace(made, mixes=tuple(spec.modalities))
