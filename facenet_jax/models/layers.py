"""The layers that all models share, and the one rule about number formats.

Parameters, normalisation statistics and the residual stream are float32. `dtype` is the type that
matrix products run in (float32 or bfloat16); each product's result is cast back where it meets the
residual stream. Softmax runs in float32. Where products are in bfloat16, blocks take the variance
of their tokens as E[x^2] - E[x]^2, in one pass instead of two: its rounding, that of float32 times
1 + mean^2 / variance, is far below that of the products.
"""

import dataclasses
import math
import string
from collections.abc import Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from facenet_jax.models.attention import Parts, attention
from facenet_jax.models.product import product
from facenet_jax.models.rope import Rope, rotated
from facenet_jax.precision import wide
from facenet_jax.runtime.mesh import gathered

PRODUCT = "product"
"""The name of the results of `Dense`, for a rematerialisation that keeps only these."""

Arrays = TypeVar("Arrays", jax.Array, list[jax.Array])
"""One array or a list of them."""

normal_002 = nn.initializers.normal(0.02)
# Scaled to the widths, as in the original JAX ViT; the 0.02 that the PyTorch ones use for every
# kernel suits a width of 768.
xavier = nn.initializers.xavier_uniform()


class Dense(nn.Module):
    """x W + b over the last axis, in `dtype`; `columns` computes a slice of the outputs only.

    The parameters are those of a plain layer whatever the method: `to_heads` and `from_heads`
    order the axes inside the product, where a copy of the result would cost as much as the product.
    x may also be a list of arrays, whose results are a list: W is cast once for all of them, so
    that its gradients are added before they are summed over devices, which sends them once.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = xavier
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def weights(self, width: int, columns: slice) -> tuple[jax.Array, jax.Array | None]:
        """(kernel [width, columns], bias [columns] or None) in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (width, self.features))
        kernel = gathered(kernel[:, columns].astype(self.dtype))
        if not self.use_bias:
            return kernel, None
        bias = self.param("bias", self.bias_init, (self.features,))[columns]
        return kernel, bias.astype(self.dtype)

    def __call__(self, x: Arrays, columns: slice = slice(None)) -> Arrays:
        """[..., D] to [..., features] in `dtype`."""
        first = jax.tree.leaves(x)[0]
        kernel, bias = self.weights(first.shape[-1], columns)
        rows = string.ascii_lowercase[: first.ndim - 1]
        return self.results(f"{rows}x,xy->{rows}y", x, kernel, bias)

    def to_heads(
        self, x: Arrays, heads: int, columns: slice = slice(None), add_bias: bool = True
    ) -> Arrays:
        """[B, T, D] to [B, heads, T, d] in `dtype`: consecutive d outputs are a head.

        Without `add_bias` these columns of the bias are neither used nor trained.
        """
        kernel, bias = self.weights(jax.tree.leaves(x)[0].shape[-1], columns)
        bias = bias.reshape(heads, 1, -1) if add_bias and self.use_bias else None
        return self.results("btc,chd->bhtd", x, kernel.reshape(len(kernel), heads, -1), bias)

    def from_heads(self, x: Arrays) -> Arrays:
        """[B, heads, T, d] to [B, T, features] in `dtype`: the heads' columns side by side."""
        _, heads, _, size = jax.tree.leaves(x)[0].shape
        kernel, bias = self.weights(heads * size, slice(None))
        return self.results("bhtd,hdc->btc", x, kernel.reshape(heads, size, -1), bias)

    def results(
        self, subscripts: str, x: Arrays, kernel: jax.Array, bias: jax.Array | None
    ) -> Arrays:
        """The products with the bias, under the name that rematerialisation knows."""

        def result(x: jax.Array) -> jax.Array:
            y = product(subscripts, x.astype(self.dtype), kernel)
            if bias is not None:
                y = y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
            return checkpoint_name(y, PRODUCT)

        return jax.tree.map(result, x)


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis with scale and bias, in float32."""

    # Two passes: E[x^2] - E[x]^2 loses digits that parity tests check.
    use_fast_variance: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D] float32."""
        return super().__call__(wide(x))


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, in float32.

    y = scale (x - mean) / sqrt(var + 1e-5) + bias. Training uses the biased variance of the whole
    batch and moves the running statistics by 0.1; the running variance takes the unbiased one, as
    torch does. Statistics are over the rows where `present` [B] is true, and stay as they are where
    there is none. With `frozen_bias` (the neck of BNNeck) the bias is 0 and never trained; it is
    kept with the statistics because an imported checkpoint may bring another.
    """

    frozen_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, present: jax.Array | None = None) -> jax.Array:
        """[B, ..., D] to [B, ..., D] float32."""
        width, x = x.shape[-1:], wide(x)
        scale = self.param("scale", self.scale_init, width)
        mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        var = self.variable("batch_stats", "var", jnp.ones, width)
        if self.frozen_bias:
            bias = self.variable("batch_stats", "bias", jnp.zeros, width).value
        else:
            bias = self.param("bias", nn.initializers.zeros, width)
        mu, sigma2 = mean.value, var.value
        if train and not self.is_initializing():
            mu, sigma2, unbiased = statistics(x, present)
            changed = 0.9 * mean.value + 0.1 * mu, 0.9 * var.value + 0.1 * unbiased
            if present is not None:
                same = mean.value, var.value
                changed = (
                    jnp.where(present.any(), a, b) for a, b in zip(changed, same, strict=True)
                )
            mean.value, var.value = changed
        full = (1,) * (x.ndim - 1) + width
        gain = scale * jax.lax.rsqrt(sigma2 + 1e-5)
        return (x - mu.reshape(full)) * gain.reshape(full) + bias.reshape(full)


def statistics(x: jax.Array, present: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(mean, biased variance, unbiased variance), each [D], of x [B, ..., D].

    Over the rows where `present` [B] is true; 0 where there is none.
    """
    axes, full = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + x.shape[-1:]
    if present is None:
        count = math.prod(x.shape[:-1])
        mean = x.mean(axes)
        biased = jnp.square(x - mean.reshape(full)).mean(axes)
        return mean, biased, biased * (count / max(count - 1, 1))
    rows = present.reshape(-1, *full[1:-1], 1)
    count = jnp.sum(present, dtype=x.dtype) * math.prod(x.shape[1:-1])

    def average(y: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(rows, y, 0.0), axis=axes) / jnp.maximum(count, 1.0)

    mean = average(x)
    biased = average(jnp.square(x - mean.reshape(full)))
    return mean, biased, biased * (count / jnp.maximum(count - 1.0, 1.0))


def gelu(x: jax.Array, train: bool = True) -> jax.Array:
    """x (1 + erf(x / sqrt(2))) / 2, in float32 and back in the type of x.

    Written with erf: `jax.nn.gelu` takes erfc, with which it costs five times as much on a CPU. The
    two differ by less than 1e-6. Of bfloat16 in evaluation erf is the tanh of a polynomial, in
    fewer operations: within 3e-5 of the same, where rounding to bfloat16 changes a result of 1 by
    up to 4e-3. In training that is slower on a TPU, by its compiler's estimate.
    """
    y = x.astype(jnp.float32)
    if train or x.dtype != jnp.bfloat16:
        return (0.5 * y * (1 + jax.lax.erf(y * np.sqrt(0.5).astype(np.float32)))).astype(x.dtype)
    # Fitted over |x| < 6; beyond 7 the polynomial would turn back.
    square = jnp.minimum(y * y, 49.0)
    erf = jnp.tanh(y * (0.797497 + square * (0.0370153 - 0.000353075 * square)))
    # Without the barrier XLA:TPU computes this again in each part of the next product.
    return jax.lax.optimization_barrier((0.5 * y * (1 + erf)).astype(x.dtype))


def quick_gelu(x: jax.Array, train: bool = True) -> jax.Array:
    """x sigmoid(1.702 x), in float32 and back in the type of x: what OpenAI's CLIP computes."""
    del train  # computed alike
    y = x.astype(jnp.float32)
    return (y * jax.nn.sigmoid(1.702 * y)).astype(x.dtype)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


def drop_path(key: jax.Array, x: jax.Array, rate: jax.Array) -> jax.Array:
    """x [B, ...] with each sample zeroed at `rate` and the others scaled by 1 / (1 - rate)."""
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = 1.0 - rate
    mask = jnp.floor(keep + jax.random.uniform(key, shape))
    return x * (mask / keep).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Kind:
    """In what the blocks of published ViTs differ; the defaults are those of the first ViT."""

    layer_scale: bool = False  # each residual times a learned vector, CaiT's LayerScale
    activation: str = "gelu"  # one of ACTIVATIONS
    epsilon: float = 1e-6  # of the LayerNorms
    qkv_bias: bool = True
    key_bias: bool = True  # False: that third of the bias of qkv is not used
    rope: Rope | None = None  # rotates queries and keys of the last part, the patches


PLAIN = Kind()


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(LN x), then x + MLP(LN x).

    Tokens come in parts, each of which attends to all of them. `class_only` returns the first token
    of the first part alone, the class token: keys and values come from all tokens, everything after
    them is computed for one. Same class token at about a third of the FLOPs of a block.
    """

    heads: int
    drop: bool  # whether drop path can be on at all; the rate itself is an argument
    dtype: jnp.dtype
    attention: str  # "xla" or "cudnn"
    class_only: bool = False
    kind: Kind = PLAIN

    @nn.compact
    def __call__(self, x: Parts, drop_rate: jax.Array, train: bool) -> list[jax.Array]:
        """Parts [B, n, D] float32 and a drop-path rate to such parts, or the class token."""
        width, kind = x[0].shape[-1], self.kind
        one_pass = self.dtype == jnp.bfloat16

        def residual(x: Parts, y: Parts, scale: str) -> list[jax.Array]:
            y = [part.astype(jnp.float32) for part in y]
            if kind.layer_scale:
                factor = self.param(scale, nn.initializers.ones, (width,))
                y = [part * factor[None, None] for part in y]
            if train and self.drop:
                key = self.make_rng("dropout")  # one for all parts of a sample
                y = [drop_path(key, part, drop_rate) for part in y]
            return [a + b for a, b in zip(x, y, strict=True)]

        qkv = Dense(3 * width, kind.qkv_bias, dtype=self.dtype, name="qkv")

        def heads(y: Parts, i: int) -> list[jax.Array]:
            columns, add_bias = slice(i * width, (i + 1) * width), i != 1 or kind.key_bias
            return qkv.to_heads(y, self.heads, columns, add_bias)

        def placed(y: list[jax.Array]) -> list[jax.Array]:
            return [*y[:-1], rotated(y[-1], kind.rope)] if kind.rope else y

        norm = LayerNorm(kind.epsilon, use_fast_variance=one_pass, name="norm1")
        y = [norm(part) for part in x]
        if self.class_only:
            x = [x[0][:, :1]]
            q = heads([y[0][:, :1]], 0)
        else:
            q = placed(heads(y, 0))
        y = attention(q, placed(heads(y, 1)), heads(y, 2), self.attention)
        proj = Dense(width, dtype=self.dtype, name="proj")
        x = residual(x, proj.from_heads(y), "scale1")

        norm = LayerNorm(kind.epsilon, use_fast_variance=one_pass, name="norm2")
        fc1 = Dense(4 * width, dtype=self.dtype, name="fc1")
        fc2 = Dense(width, dtype=self.dtype, name="fc2")
        activation = ACTIVATIONS[kind.activation]
        y = [activation(part, train) for part in fc1([norm(part) for part in x])]
        return residual(x, fc2(y), "scale2")


def apart(tokens: jax.Array, prefix: int = 1) -> list[jax.Array]:
    """[B, p+n, D] to the class token and registers [B, p, D] and the patches [B, n, D]."""
    return [tokens[:, :prefix], tokens[:, prefix:]]


def joined(parts: Parts) -> jax.Array:
    """Parts [B, n, D] to all tokens in one array."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def plain_block(
    params: Mapping[str, Any], x: jax.Array, heads: int, class_only: bool = False
) -> jax.Array:
    """A `Block` in evaluation mode and float32 as a function, for code outside this folder.

    [B, 1+n, D] to [B, 1+n or 1, D], with the parameter tree of the block.
    """
    block = Block(heads, False, jnp.float32, "xla", class_only)
    return joined(block.apply({"params": params}, apart(x), jnp.float32(0), False))


def plain_attention(params: Mapping[str, Any], x: jax.Array, heads: int) -> jax.Array:
    """The attention weights [B, heads, 1+n, 1+n] of a `Block` for x [B, 1+n, D], in float32."""
    y = plain_layer_norm(params["norm1"], x)
    qkv = y @ gathered(params["qkv"]["kernel"]) + params["qkv"]["bias"][None, None]
    q, k, _ = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, x.shape[-1] // heads), 2, 0)
    return jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5)


def plain_layer_norm(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """`LayerNorm` with the parameters "scale" and "bias" as a function, like `plain_block`."""
    return LayerNorm().apply({"params": params}, x)
