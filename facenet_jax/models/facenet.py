"""FACENet: three branches; where flare hides visible or near-infrared, thermal tokens help.

Zheng et al., "Flare-Aware Cross-modal Enhancement Network for Multi-spectral Vehicle
Re-identification", Information Fusion 2024. The fields of `FACENet` cover the paper's equations and
what the authors' release computes; docs/fidelity.md lists where the two differ.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from data_tfds.errors import UserError
from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE
from facenet_jax.losses import divergence, identity
from facenet_jax.models import three_stream
from facenet_jax.models.backbones import stack
from facenet_jax.models.base import Model
from facenet_jax.models.layers import BatchNorm, Dense, LayerNorm, attention, xavier
from facenet_jax.models.three_stream import ThreeStream
from facenet_jax.options import Option, Options, above, between, finite, one_of, switch, whole
from facenet_jax.types import Batch, DataSpec, Outputs

OWN_OPTIONS: Options = {
    "mfmp": {
        "enabled": Option(True, "False: masks come from the trunk's own tokens", switch()),
        "heads": Option(1, "of the attention", whole(1, 1024)),
        "head_width": Option(0, "0: the width of the tokens", whole(0, 65536)),
        "split": Option("heads", "windows: as the release", one_of("heads", "windows")),
        "norms": Option(1, "LayerNorms on the query; the release has 2", one_of(1, 2)),
        "norm_epsilon": Option(1e-6, "of these", above(0)),
        "dropout": Option(0.0, "rate behind the attention", between(0, 0.999)),
        "initializer": Option("zero_out", "torch: as the release", one_of("zero_out", "torch")),
    },
    "fce": {
        "enabled": Option(True, "False: no token is replaced", switch()),
        "mask": Option("soft", "g of Eq. 4", one_of("soft", "hard", "straight_through")),
        "mask_bias": Option(
            -4.0, "added to M before the mask; negative: masks start nearly closed", finite()
        ),
        "keep": Option(
            "own", "own: 1 - m of the modality itself | the release", one_of("own", "near_infrared")
        ),
        "gate": Option(
            "sample",
            "samples that are enhanced: the flared ones, or all | batch: all if one is, as the "
            "release",
            one_of("sample", "batch", "always"),
        ),
    },
    "flare_heads": Option(True, "needed for the losses mask_kl and flare", switch()),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "id": {"term": "id"},
    "triplet": {"term": "triplet"},
    "mask_kl": {"term": "mask_kl"},
    "mc": {"term": "mc"},
    "flare": {"term": "flare", "weight": 0.0},
    # 3M, HC and CdC, which Table 5 compares with MC.
    "mmm": {"term": "mmm", "weight": 0.0},
    "hc": {"term": "hc", "weight": 0.0},
    "cdc": {"term": "cdc", "weight": 0.0},
}

MODALITIES = (VISIBLE, NEAR_INFRARED, THERMAL)
"""R, N, T: the first two can be flared; their tokens are then mixed with those of the third."""


def mask_kl(
    outputs: Outputs, batch: Batch, *, reduction: Literal["sample", "batch"] = "sample"
) -> jax.Array:
    """The smaller KL divergence of the two flare heads' distributions (FACENet Eq. 7)."""
    return divergence.min_kl(*outputs.extras["flare_logits"], reduction, both_present(batch))


def flare(
    outputs: Outputs, batch: Batch, *, label_smoothing: Annotated[float, between(0, 1)] = 0.0
) -> jax.Array:
    """Cross-entropy of the flare heads against the flare labels, summed over both: an extension."""
    labels = batch.labels["flare"][:2].astype(jnp.int32)
    both = zip(outputs.extras["flare_logits"], labels, strict=True)
    present = both_present(batch)
    return sum(identity.cross_entropy(x, label, label_smoothing, present) for x, label in both)


def both_present(batch: Batch) -> jax.Array | None:
    """In which samples [B] R and N both have an image, which masks are made of; None: in all."""
    return None if batch.present is None else batch.present[0] & batch.present[1]


TERMS = {"mask_kl": mask_kl, "flare": flare}


class MFMP(nn.Module):
    """Mutual Flare Mask Prediction of one direction: M_a = softmax(Q K^T / sqrt(d)) V W_O + a.

    Eq. 1 and 2. Q comes from LN(a), K and V from the other modality b as it is. W_O starts at zero,
    so that M = a at first, unless `initializer` is "torch". The release's "heads" are no heads: its
    reshape without a transpose makes each of them a window of n / heads consecutive tokens (`split`
    = "windows"); "heads" is plain multi-head attention over all tokens.
    """

    heads: int
    head_width: int
    split: str  # "heads" | "windows"
    norms: int  # LayerNorms in series on the query: 1, or 2 as in the release
    norm_epsilon: float
    dropout: float
    initializer: str  # "zero_out" | "torch"
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array, train: bool) -> jax.Array:
        """Patch tokens a, b [B, n, D] to M_a [B, n, D] float32."""
        batch, n, width = a.shape
        inner = self.heads * self.head_width
        torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        zero_init = nn.initializers.zeros
        kernel_init = torch_init if self.initializer == "torch" else xavier

        query = LayerNorm(self.norm_epsilon, name="norm")(a)
        if self.norms == 2:
            query = LayerNorm(self.norm_epsilon, name="norm2")(query)

        def dense(features: int, name: str, use_bias: bool, init: Any) -> Dense:
            return Dense(features, use_bias, self.dtype, kernel_init=init, name=name)

        def project(name: str, x: jax.Array) -> list[jax.Array]:
            layer = dense(inner, name, False, kernel_init)
            if self.split == "windows":
                return [layer(x).reshape(batch, self.heads, n, self.head_width)]
            return [layer.to_heads(x, self.heads)]

        (y,) = attention(project("query", query), project("key", b), project("value", b))
        out = dense(width, "out", True, torch_init if self.initializer == "torch" else zero_init)
        y = out(y.reshape(batch, n, inner)) if self.split == "windows" else out.from_heads(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y.astype(jnp.float32))
        return a + y


class FCE(nn.Module):
    """Flare-aware Cross-modal Enhancement: thermal tokens where the mask is on.

    Eq. 4: patches_a' = m_a * patches_T + keep_a * patches_a with m_a = g(M_a) and keep_a = 1 - m_a,
    for the samples whose delta_a is 1; the others pass unchanged, as do class tokens and registers.
    g is "soft" (sigmoid(M + bias)), "hard" (M + bias > 0) or "straight_through" (hard, with the
    gradient of soft). The release keeps by the near-infrared mask in both modalities (`keep` =
    "near_infrared") and switches the whole batch as soon as one sample is flared (`gate` =
    "batch").
    """

    mask: str  # "soft" | "hard" | "straight_through"
    mask_bias: float  # added to M: negative values favour the modality's own tokens
    keep: str  # "own" | "near_infrared"
    gate: str  # "sample" | "batch" | "always": as "sample", of a delta that is 1 for all
    prefix: int = 1  # tokens in front of the patches: class token and registers pass unchanged

    def masks(self, predicted: jax.Array) -> jax.Array:
        """g(M + bias), elementwise in [0, 1]."""
        soft = jax.nn.sigmoid(predicted + self.mask_bias)
        if self.mask == "soft":
            return soft
        hard = (predicted + self.mask_bias > 0).astype(predicted.dtype)
        if self.mask == "hard":
            return hard
        return hard + soft - jax.lax.stop_gradient(soft)

    def __call__(
        self, own: jax.Array, thermal: jax.Array, predicted: jax.Array, flare: jax.Array
    ) -> jax.Array:
        """Own tokens [2, B, p+n, D] of R and N, enhanced, p being `prefix`.

        Args:
            own: tokens of R and N.
            thermal: tokens of T [B, p+n, D].
            predicted: M_R and M_N [2, B, n, D].
            flare: delta [B, 2] bool of R and N.
        """
        mask = self.masks(predicted)
        keep = 1.0 - (mask if self.keep == "own" else jnp.broadcast_to(mask[1:], mask.shape))
        front, patches = own[:, :, : self.prefix], own[:, :, self.prefix :]
        patches = mask * thermal[None, :, self.prefix :] + keep * patches
        enhanced = jnp.concatenate([front, patches], axis=2)
        delta = jnp.broadcast_to(flare.any(), flare.shape) if self.gate == "batch" else flare
        return jnp.where(delta.T[:, :, None, None], enhanced, own)


class FlareHead(nn.Module):
    """Two flare logits from a class token and a predicted mask: S_M of Eq. 7, in training only."""

    head: functools.partial  # of the backbone

    @nn.compact
    def __call__(
        self, tokens: jax.Array, train: bool, present: jax.Array | None = None
    ) -> jax.Array:
        """[class token ; registers ; M_a] [B, p+n, D] to logits [B, 2] float32.

        `present` [B] or None: all.
        """
        last = self.head()
        nn.share_scope(self, last)  # parameters flare_head/block, flare_head/norm
        feature = BatchNorm(name="neck")(last(tokens, train), train, present)
        return Dense(
            2, use_bias=False, kernel_init=nn.initializers.normal(0.001), name="classifier"
        )(feature)


class FACENet(ThreeStream):
    """The network of the paper, and every ablation of its Tables 3 and 11, by fields."""

    mfmp: Mapping | None = None  # the fields of MFMP, None: masks come from the trunk's own patches
    fce: Mapping | None = None  # the fields of FCE, None: no token is replaced
    flare_heads: bool = True

    def exchange(
        self, tokens: jax.Array, batch: Batch, modalities: Sequence[str], train: bool
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """(tokens [3, B, p+n, D] after MFMP and FCE, their intermediate results by name).

        MFMP and FCE need all three modalities; with fewer, each is embedded by its branch alone,
        and so is each of a sample that lacks an image.
        """
        if tuple(modalities) != MODALITIES:
            return tokens, {}
        own, thermal = tokens[:2], tokens[2]
        delta = batch.labels["flare"][:2].T  # [B, 2]
        if self.fce is not None and self.fce["gate"] == "always":
            delta = jnp.ones_like(delta)
        if batch.present is not None:
            delta = delta & batch.present.all(axis=0)[:, None]
        extras = {"trunk": tokens}
        prefix = self.backbone.prefix
        predicted = own[:, :, prefix:]
        if self.mfmp is not None:
            fields = {**self.mfmp, "head_width": self.mfmp["head_width"] or own.shape[-1]}
            mfmp = functools.partial(MFMP, **fields, dtype=self.backbone.dtype)
            mfmp = stack(mfmp, in_axes=(0, 0, None))(name="mfmp")
            predicted = mfmp(predicted, jnp.roll(predicted, 1, axis=0), train)
        extras["mfmp"] = predicted
        if self.fce is not None:
            own = FCE(**self.fce, prefix=prefix, name="fce")(own, thermal, predicted, delta)
            extras["fce"] = own
        if self.flare_heads and (train or self.is_initializing()):
            # The class token and registers of the trunk; FCE changes patch tokens only.
            marked = jnp.concatenate([tokens[:2, :, :prefix], predicted], axis=2)
            head = functools.partial(FlareHead, self.backbone.head)
            flare_head = stack(head, in_axes=(0, None, None))(name="flare_head")
            extras["flare_logits"] = flare_head(marked, train, both_present(batch))  # [2, B, 2]
        return jnp.concatenate([own, thermal[None]]), extras


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`: those of the baseline and these."""
    return {**three_stream.options(choices), **OWN_OPTIONS}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, a clause each."""
    found = three_stream.problems(config) + problems_of_heads(config)
    if config.model.fce.enabled and config.model.fce.gate == "batch" and not config.evaluate.batch:
        found.append(
            "config.model.fce.gate is 'batch', so that embeddings depend on config.evaluate.batch, "
            "which is 0; set it (the release's is 64)"
        )
    return found


def problems_of_heads(config: ml_collections.ConfigDict) -> list[str]:
    """A clause where a loss needs flare heads that the model does not have."""
    needing = [label for label, x in config.losses.items() if x.weight and x.term in TERMS]
    if not needing or config.model.flare_heads:
        return []
    return [
        f"config.losses.{needing[0]}.weight is {config.losses[needing[0]].weight} but "
        "config.model.flare_heads is False; switch the heads on or set the weight to 0"
    ]


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """FACENet with its parameters as named in docs/architecture.md.

    Raises UserError for data with other modalities than visible, near-infrared and thermal.
    """
    check_modalities(spec)
    network = functools.partial(FACENet, **fields(config))
    model = three_stream.streams(config, spec, network, fill=fill(config), kept=KEPT)
    return dataclasses.replace(model, mixes=mixes(config))


def check_modalities(spec: DataSpec) -> None:
    """Raises UserError for data with other modalities than those of FACENet."""
    if tuple(spec.modalities) != MODALITIES:
        raise UserError(
            f"The data set has the modalities {', '.join(spec.modalities)}, but FACENet needs "
            f"{', '.join(MODALITIES)}; take config.model.name = 'three_stream' or a set that has "
            "them."
        )


def fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `FACENet` has beside the fields of the baseline, of the section `model`."""
    mfmp, fce = config.mfmp.to_dict(), config.fce.to_dict()
    use_mfmp, use_fce = mfmp.pop("enabled"), fce.pop("enabled")
    return {
        "mfmp": mfmp if use_mfmp else None,
        "fce": fce if use_fce else None,
        "flare_heads": config.flare_heads,
    }


def mixes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The modalities whose part of the embedding may hold thermal tokens."""
    return MODALITIES[:2] if config.fce.enabled else ()


def fill(config: ml_collections.ConfigDict) -> dict[str, str]:
    """What starts from pretrained weights beside the branches, see `three_stream.streams`."""
    return {"flare_head": "head"} if config.flare_heads else {}


KEPT = ("mfmp/", "flare_head/neck/", "flare_head/classifier/")
"""What no pretrained backbone can fill."""
