"""FACENet: three ViT branches, of which thermal lends tokens to the two that flare has blinded.

Zheng et al., "Flare-Aware Cross-modal Enhancement Network for Multi-spectral Vehicle
Re-identification", Information Fusion 2024. The fields of `FACENet` cover the paper's equations and
what the authors' release computes; docs/fidelity.md lists where the two differ.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_tfds.samples import BANDS
from facenet_jax.models.layers import BatchNorm, Dense, LayerNorm, attention, xavier
from facenet_jax.models.vit import LastBlock, Trunk, stacked
from facenet_jax.types import Outputs


class MFMP(nn.Module):
    """Mutual Flare Mask Prediction of one direction: M_a = softmax(Q K^T / sqrt(d)) V W_O + a.

    Eq. 1 and 2. Q comes from LN(a), K and V from the other band b as it is. W_O starts at zero, so
    that M = a at first, unless `initializer` is "torch". The release's "heads" are not heads: its
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

        def project(name: str, x: jax.Array) -> jax.Array:
            x = Dense(inner, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, name=name)(
                x
            )
            if self.split == "windows":
                return x.reshape(batch, self.heads, n, self.head_width).swapaxes(1, 2)
            return x.reshape(batch, n, self.heads, self.head_width)

        q, k, v = project("query", query), project("key", b), project("value", b)
        y = attention(q, k, v)
        if self.split == "windows":
            y = y.swapaxes(1, 2)
        y = Dense(
            width,
            dtype=self.dtype,
            kernel_init=torch_init if self.initializer == "torch" else zero_init,
            name="out",
        )(y.reshape(batch, n, inner))
        y = nn.Dropout(self.dropout, deterministic=not train)(y.astype(jnp.float32))
        return a + y


class FCE(nn.Module):
    """Flare-aware Cross-modal Enhancement: thermal tokens where the mask says flare.

    Eq. 4: patches_a' = m_a * patches_T + keep_a * patches_a with m_a = g(M_a) and keep_a = 1 - m_a,
    for the samples whose delta_a is 1; the others pass unchanged, as do class tokens. g is "soft"
    (sigmoid(M + bias)), "hard" (M + bias > 0) or "straight_through" (hard, with the gradient of
    soft). The release keeps by the near-infrared mask in both bands (`keep` = "near_infrared") and
    switches the whole batch as soon as one sample is flared (`gate` = "batch").
    """

    mask: str  # "soft" | "hard" | "straight_through"
    mask_bias: float  # added to M: negative values favour the band's own tokens
    keep: str  # "own" | "near_infrared"
    gate: str  # "sample" | "batch"

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
        """Own tokens [2, B, 1+n, D] of R and N, enhanced.

        Args:
            own: tokens of R and N.
            thermal: tokens of T [B, 1+n, D].
            predicted: M_R and M_N [2, B, n, D].
            flare: delta [B, 2] bool of R and N.
        """
        mask = self.masks(predicted)
        keep = 1.0 - (mask if self.keep == "own" else jnp.broadcast_to(mask[1:], mask.shape))
        patches = mask * thermal[None, :, 1:] + keep * own[:, :, 1:]
        enhanced = jnp.concatenate([own[:, :, :1], patches], axis=2)
        delta = flare if self.gate == "sample" else jnp.broadcast_to(flare.any(), flare.shape)
        return jnp.where(delta.T[:, :, None, None], enhanced, own)


class FlareHead(nn.Module):
    """Two flare logits from a class token and a predicted mask: S_M of Eq. 7, in training only."""

    heads: int
    drop_rate: float
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """[class token ; M_a] [B, 1+n, D] to logits [B, 2] float32."""
        last = LastBlock(self.heads, self.drop_rate, self.dtype, self.attention)
        nn.share_scope(self, last)  # parameters flare_head/block, flare_head/norm
        feature = BatchNorm(name="neck")(last(tokens, train), train)
        return Dense(
            2, use_bias=False, kernel_init=nn.initializers.normal(0.001), name="classifier"
        )(feature)


class FACENet(nn.Module):
    """The network of the paper, and every ablation of its Tables 3 and 11, by fields."""

    identities: int
    width: int
    depth: int
    heads: int
    patch: int
    stride: int
    drop_path: float  # of the last block; the first has 0
    shared_trunk: bool
    mfmp: Mapping | None  # the fields of MFMP, None: masks come from the trunk's own patches
    fce: Mapping | None  # the fields of FCE, None: no token is replaced
    flare_heads: bool
    classifier_std: float  # of the random weights that the classifiers start from
    neck_feature: str  # what is matched: "before" | "after" the BatchNorm
    dtype: jnp.dtype
    attention: str
    remat: str
    unroll: int

    @nn.compact
    def __call__(
        self, images: jax.Array, flare: jax.Array, bands: Sequence[str], train: bool
    ) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named bands and flare labels [B, 2].

        MFMP and FCE need all three bands; with fewer, each band is embedded by its branch alone.
        """
        rates = [self.drop_path * i / max(self.depth - 1, 1) for i in range(self.depth)]
        block = {"heads": self.heads, "dtype": self.dtype, "attention": self.attention}
        head = {**block, "drop_rate": rates[-1]}

        trunk = stacked(Trunk, in_axes=(0, None), copies=not self.shared_trunk)(
            **block,
            width=self.width,
            depth=self.depth - 1,
            patch=self.patch,
            stride=self.stride,
            drop_rates=tuple(rates[:-1]),
            remat=self.remat,
            unroll=self.unroll,
            name="trunk",
        )
        tokens = trunk(images, train)  # [M, B, 1+n, D]

        extras = {}
        if tuple(bands) == BANDS:
            tokens, extras = self.enhance(tokens, flare, head, train)

        features = stacked(LastBlock, in_axes=(0, None))(**head, name="last")(tokens, train)
        necks = stacked(BatchNorm, in_axes=(0, None))(name="neck")(features, train)
        classifier = stacked(Dense, in_axes=(0,))(
            self.identities,
            use_bias=False,
            kernel_init=nn.initializers.normal(self.classifier_std),
            name="classifier",
        )
        logits = classifier(necks)  # [M, B, C]
        matched = features if self.neck_feature == "before" else necks
        return Outputs(
            features=dict(zip(bands, features, strict=True)),
            logits=dict(zip(bands, logits, strict=True)),
            embedding=jnp.concatenate(list(matched), axis=-1),
            extras=extras,
        )

    def enhance(self, tokens, flare, head, train):
        """(tokens [3, B, 1+n, D] after MFMP and FCE, what they computed on the way by name)."""
        own, thermal = tokens[:2], tokens[2]
        extras = {"trunk": tokens}
        predicted = own[:, :, 1:]
        if self.mfmp is not None:
            mfmp = stacked(MFMP, in_axes=(0, 0, None))(**self.mfmp, dtype=self.dtype, name="mfmp")
            predicted = mfmp(predicted, predicted[::-1], train)
        extras["mfmp"] = predicted
        if self.fce is not None:
            own = FCE(**self.fce, name="fce")(own, thermal, predicted, flare)
            extras["fce"] = own
        if self.flare_heads and (train or self.is_initializing()):
            # The head sees the class token as the trunk left it; FCE does not touch it anyway.
            marked = jnp.concatenate([tokens[:2, :, :1], predicted], axis=2)
            flare_head = stacked(FlareHead, in_axes=(0, None))(**head, name="flare_head")
            extras["flare_logits"] = flare_head(marked, train)  # [2, B, 2]
        return jnp.concatenate([own, thermal[None]]), extras
