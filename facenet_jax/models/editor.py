"""EDITOR: the patches that matter in some modality are kept, and the modalities meet in these.

Zhang et al., "Magic Tokens: Select Diverse Tokens for Multi-modal Object Re-Identification", CVPR
2024; a host of FACENet's Table 7. No reference numbers of it were at hand: docs/fidelity.md says
what is taken from the authors' code and what is chosen here.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from data_tfds.errors import UserError
from facenet_jax.losses import centres
from facenet_jax.models import three_stream, transreid
from facenet_jax.models.backbones import branches, stack, with_fields
from facenet_jax.models.base import Model
from facenet_jax.models.layers import (
    Dense,
    LayerNorm,
    gelu,
    joined,
    plain_attention,
)
from facenet_jax.models.map_streams import check_complete
from facenet_jax.models.patches import patches
from facenet_jax.models.transreid import TransReID
from facenet_jax.models.trunk import ScanBlock
from facenet_jax.options import Option, Options, one_of, whole
from facenet_jax.types import Batch, DataSpec, Outputs

OWN_OPTIONS: Options = {
    "backbone": Option("vit", "what has patch tokens and attention", one_of("vit")),
    "shared_trunk": Option(True, "one trunk for all modalities", one_of(True)),
    "sie": transreid.OWN_OPTIONS["sie"],
    "kept_per_head": Option(2, "patches that each head of the attention keeps", whole(1, 4096)),
    "kept_bright": Option(10, "patches that are kept for their bright pixels", whole(0, 4096)),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "id": {"term": "id"},
    "triplet": {"term": "triplet"},
    "background": {"term": "background"},
    "centres": {"term": "to_centres"},
    "mc": {"term": "mc", "weight": 0.0, "on": ("score_*",)},
}

SATURATED = 256  # bright pixels of a patch, at most
OLD_SHARE = 0.2  # of a centre that stays


def background(outputs: Outputs, batch: Batch) -> jax.Array:
    """Mean squared differences of the patches that are not kept, added up over pairs."""
    del batch
    return made(outputs, "background")


def to_centres(outputs: Outputs, batch: Batch) -> jax.Array:
    """Mean squared differences of unit class tokens and their identity's centre, added up."""
    del batch
    return made(outputs, "centres")


def made(outputs: Outputs, name: str) -> jax.Array:
    """What the network computed beside its features. UserError where it did not."""
    if name not in outputs.extras:
        raise UserError(f"The loss {name} needs the model editor in training.")
    return outputs.extras[name]


TERMS = {"background": background, "to_centres": to_centres}


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`: those of three streams and these."""
    return {**three_stream.options(choices), **OWN_OPTIONS}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, a clause each."""
    found = three_stream.problems(config)
    model, (height, width) = config.model, config.data.image_size
    count = (height // model.patch) * (width // model.patch)
    most = max(model.kept_per_head, model.kept_bright)
    if not found and most > count:
        found.append(
            f"config.model keeps {most} patches, but config.data.image_size {(height, width)} "
            f"gives {count}; keep fewer"
        )
    return found


class RolloutBlock(ScanBlock):
    """A block of a trunk that also multiplies its attention with that of the blocks before."""

    @staticmethod
    def start(x: Sequence[jax.Array], heads: int) -> jax.Array:
        """The rollout before the first block: [B, heads, 1 + n, 1 + n], each token itself."""
        count = sum(part.shape[1] for part in x)
        eye = jnp.eye(count, dtype=jnp.float32)
        return jnp.broadcast_to(eye, (x[0].shape[0], heads, count, count))

    @nn.compact
    def __call__(self, carry, drop_rate, train):
        """As `ScanBlock`, the carry being (the parts of the tokens, the rollout)."""
        x, rolled = carry
        y, nothing = super().__call__(x, drop_rate, train)
        return (y, rolled_on(self.variables["params"], joined(x), rolled, self.heads)), nothing


def rolled_on(params: Mapping[str, Any], x: jax.Array, rolled: jax.Array, heads: int) -> jax.Array:
    """The rollout after a block with these parameters on tokens x; no gradient goes through it."""
    params, x = jax.lax.stop_gradient((params, x))
    return jnp.einsum("bhts,bhsu->bhtu", plain_attention(params, x, heads), rolled)


class MaskedBlock(nn.Module):
    """A pre-norm transformer block in which only kept tokens are attended to."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array) -> jax.Array:
        """Tokens [B, T, D] and keep [B, T] bool to tokens [B, T, D]."""
        width = x.shape[-1]
        y = LayerNorm(1e-6, name="norm1")(x)
        qkv = Dense(3 * width, dtype=self.dtype, name="qkv")
        columns = [slice(i * width, (i + 1) * width) for i in range(3)]
        q, k, v = (qkv.to_heads(y, self.heads, column) for column in columns)
        scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
        scores = scores * (width // self.heads) ** -0.5
        weights = jax.nn.softmax(jnp.where(keep[:, None, None], scores, -jnp.inf))
        y = jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v)
        x = x + Dense(width, dtype=self.dtype, name="proj").from_heads(y).astype(x.dtype)
        y = Dense(4 * width, dtype=self.dtype, name="fc1")(LayerNorm(1e-6, name="norm2")(x))
        y = Dense(width, dtype=self.dtype, name="fc2")(gelu(y))
        return x + y.astype(x.dtype)


def most(values: jax.Array, count: int) -> jax.Array:
    """Where the `count` largest of values [..., n] are, bool [..., n]; of equal ones the first."""
    _, places = jax.lax.top_k(values, count)
    return jax.nn.one_hot(places, values.shape[-1], dtype=bool).any(-2)


def bright_pixels(images: jax.Array, patch: int) -> jax.Array:
    """How many pixels of each patch are above 0 in the mean over modalities and channels.

    Normalised images [M, B, H, W, 3] to [B, n] float32, at most 256. In the authors' code this is
    what is left of a wavelet transform that is inverted whole.
    """
    bright = (images.mean((0, 4)) > 0).astype(jnp.float32)
    count = patches(jnp.repeat(bright[..., None], 3, axis=-1), patch, patch).sum(-1) / 3
    return jnp.minimum(count, SATURATED)


class EDITOR(TransReID):
    """One ViT for all modalities, the selection of patches, and the blocks in which they meet."""

    kept_per_head: int = 2
    kept_bright: int = 10

    @nn.compact
    def __call__(self, batch: Batch, modalities: Sequence[str], train: bool) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities.

        Features and logits are "met" and, of the ViT itself, "score_<modality>".
        """
        check_complete(batch, "EDITOR")
        heads, dtype = self.backbone.tokens.keywords["heads"], self.backbone.dtype
        tokens, rolled = self.tokens(batch, modalities, train)
        head = with_fields(self.backbone.head, class_only=False)
        last = branches(head, "shared_last", modalities, shared=True, stacked=True)(tokens, train)
        block = self.variables["params"]["shared_last"]["block"]
        rolled = jax.vmap(lambda x, r: rolled_on(block, x, r, heads))(tokens, rolled)
        keep = self.kept(rolled, batch)  # [B, n]
        every = jnp.concatenate([jnp.ones_like(keep[:, :1]), keep], axis=1)
        masked = stack(functools.partial(MaskedBlock, heads, dtype), in_axes=(0, None))
        own = masked(name="masked")(last, every)  # [M, B, 1 + n, D]
        met = jnp.concatenate(list(own), axis=1)
        met = MaskedBlock(heads, dtype, name="joint")(met, jnp.tile(every, (1, len(own))))
        met = met[:, :: every.shape[1]].reshape(met.shape[0], -1)  # the class tokens
        classes, names = last[:, :, 0], [f"score_{modality}" for modality in modalities]
        _, scores = self.neck_and_logits("shared", classes, train)
        features = dict(zip(names, classes, strict=True))
        logits = dict(zip(names, scores, strict=True))
        matched = met
        if len(modalities) == len(self.modalities):  # else the neck has no place for it
            neck, logits["met"] = self.neck_and_logits("met", met, train)
            features["met"] = met
            matched = met if self.neck_feature == "before" else neck
        width = matched.shape[-1] // len(modalities)
        parts = {m: (i * width, (i + 1) * width) for i, m in enumerate(modalities)}
        extras = {}
        if train or self.is_initializing():
            extras = {
                "background": differences(last[:, :, 1:], ~keep),
                "centres": self.centre_error(own[:, :, 0], modalities, batch.identity),
            }
        return Outputs(features, logits, matched, parts, extras)

    def kept(self, rolled: jax.Array, batch: Batch) -> jax.Array:
        """The patches [B, n] bool that some head of some modality, or the brightness, keeps."""
        of_class = rolled[:, :, :, 0, 1:]  # [M, B, heads, n]
        keep = most(of_class, self.kept_per_head).any((0, 2))
        if self.kept_bright:
            patch = self.backbone.tokens.keywords["patch"]
            keep = keep | most(bright_pixels(batch.images, patch), self.kept_bright)
        return keep

    def centre_error(
        self, classes: jax.Array, modalities: Sequence[str], labels: jax.Array
    ) -> jax.Array:
        """The mean squared difference of unit class tokens [M, B, D] and centres, over modalities.

        A centre becomes 0.8 of the mean of its identity's rows and 0.2 of what it was; those of
        identities that are not in the batch stay. Errors are to the new ones.
        """
        total = 0.0
        for modality, rows in zip(modalities, classes, strict=True):
            rows = centres.unit(rows)
            shape = (self.identities, rows.shape[-1])
            table = self.variable("centres", modality, jnp.zeros, shape)
            fixed = jax.lax.stop_gradient(rows)
            count = jnp.zeros(len(table.value)).at[labels].add(1.0)[:, None]
            mean = jnp.zeros(shape).at[labels].add(fixed) / jnp.maximum(count, 1.0)
            new = (1 - OLD_SHARE) * mean + OLD_SHARE * table.value
            if not self.is_initializing():
                table.value = jnp.where(count > 0, new, table.value)
            total += jnp.square(rows - table.value[labels]).mean()
        return total


def differences(tokens: jax.Array, where: jax.Array) -> jax.Array:
    """Mean squared differences of tokens [M, B, n, D] of all pairs of modalities, added up.

    Over the places `where` [B, n].
    """
    count = jnp.maximum(where.sum(dtype=tokens.dtype) * tokens.shape[-1], 1.0)
    pairs = itertools.combinations(tokens, 2)
    return sum(
        (jnp.where(where[..., None], jnp.square(a - b), 0.0).sum() / count for a, b in pairs),
        jnp.zeros((), tokens.dtype),
    )


def network(config: ml_collections.ConfigDict, spec: DataSpec) -> functools.partial:
    """The network of the section `model`, but for the fields of the baseline."""
    return functools.partial(
        EDITOR,
        sides=transreid.sides(config.sie, spec),
        coefficient=config.sie.coefficient,
        kept_per_head=config.kept_per_head,
        kept_bright=config.kept_bright,
    )


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """EDITOR for data like `spec`, of any modalities; UserError for unknown side information."""
    backbone = three_stream.backbones.find(config.backbone).backbone(config, tuple(spec.image_size))
    tokens = with_fields(backbone.tokens, rollout=RolloutBlock)
    return three_stream.streams(
        config,
        spec,
        network(config, spec),
        backbone=dataclasses.replace(backbone, tokens=tokens),
        per_modality=["masked"],
        fill={"shared_last": "head"},
        kept=("side/", "neck_", "classifier_", "masked/", "joint/"),
    )
