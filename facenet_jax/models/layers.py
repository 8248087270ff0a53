"""The layers that all models share, and the one rule about number formats.

Parameters, normalisation statistics and the residual stream are float32. `dtype` is the type that
matrix products run in (float32 or bfloat16); each product's result is cast back where it meets the
residual stream. Softmax runs in float32.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from facenet_jax.precision import wide

PRODUCT = "product"
"""The name of the results of `Dense`, for a rematerialisation that keeps only these."""

normal_002 = nn.initializers.normal(0.02)
# Scaled to the widths, as in the original JAX ViT; the 0.02 that the PyTorch ones use for every
# kernel suits a width of 768.
xavier = nn.initializers.xavier_uniform()


class Dense(nn.Module):
    """x W + b over the last axis, in `dtype`; `columns` computes a slice of the outputs only."""

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = xavier
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, columns: slice = slice(None)) -> jax.Array:
        """[..., D] to [..., features] in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel[:, columns].astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))[columns].astype(self.dtype)
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return checkpoint_name(y, PRODUCT)


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis with scale and bias, in float32."""

    # Two passes: the shortcut E[x^2] - E[x]^2 loses digits that parity tests check.
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


def gelu(x: jax.Array) -> jax.Array:
    """x (1 + erf(x / sqrt(2))) / 2, in float32 and back in the type of x.

    Written with erf: `jax.nn.gelu` takes erfc, with which it costs five times as much on a CPU. The
    two differ by less than 1e-6.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * np.sqrt(0.5).astype(np.float32)))).astype(x.dtype)


def drop_path(key: jax.Array, x: jax.Array, rate: jax.Array) -> jax.Array:
    """x [B, ...] with each sample zeroed at `rate` and the others scaled by 1 / (1 - rate)."""
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = 1.0 - rate
    mask = jnp.floor(keep + jax.random.uniform(key, shape))
    return x * (mask / keep).astype(x.dtype)


@jax.custom_vjp
def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """q k^T of [B, T, heads, d] and [B, S, heads, d]: [B, heads, T, S] float32."""
    return jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32)


def scores_forward(q: jax.Array, k: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`scores`, and what its gradient needs."""
    return scores(q, k), (q, k)


def scores_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of q and k, as products in their own type.

    By itself JAX multiplies the float32 gradient of the softmax with a bfloat16 q or k, at the
    speed of float32. Fused attention kernels round it as here.
    """
    q, k = saved
    gradient = gradient.astype(q.dtype)
    return (
        jnp.einsum("bhts,bshd->bthd", gradient, k),
        jnp.einsum("bhts,bthd->bshd", gradient, q),
    )


scores.defvjp(scores_forward, scores_backward)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "xla") -> jax.Array:
    """softmax(q k^T / sqrt(d)) v of [B, T or S, heads, d], as [B, T, heads, d] in the type of v."""
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    weights = jax.nn.softmax(scores(q, k) * q.shape[-1] ** -0.5)
    return jnp.einsum("bhts,bshd->bthd", weights.astype(v.dtype), v)


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(LN x), then x + MLP(LN x), with exact GELU.

    `class_only` returns the class token alone: keys and values come from all tokens, everything
    after them is computed for one. Same class token at about a third of the FLOPs of a block.
    """

    heads: int
    drop: bool  # whether drop path can be on at all; the rate itself is an argument
    dtype: jnp.dtype
    attention: str  # "xla" or "cudnn"
    class_only: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array, train: bool) -> jax.Array:
        """[B, 1+n, D] float32 and a drop-path rate to [B, 1+n or 1, D] float32."""
        batch, width = x.shape[0], x.shape[-1]

        def residual(x: jax.Array, y: jax.Array) -> jax.Array:
            y = y.astype(jnp.float32)
            if train and self.drop:
                y = drop_path(self.make_rng("dropout"), y, drop_rate)
            return x + y

        def heads(y: jax.Array, parts: int) -> list[jax.Array]:
            y = y.reshape(batch, y.shape[1], parts, self.heads, width // self.heads)
            return [y[:, :, i] for i in range(parts)]

        qkv = Dense(3 * width, dtype=self.dtype, name="qkv")
        y = LayerNorm(name="norm1")(x)
        if self.class_only:
            x = x[:, :1]
            (q,) = heads(qkv(y[:, :1], slice(0, width)), 1)
            k, v = heads(qkv(y, slice(width, None)), 2)
        else:
            q, k, v = heads(qkv(y), 3)
        y = attention(q, k, v, self.attention)
        y = y.reshape(batch, y.shape[1], width)
        x = residual(x, Dense(width, dtype=self.dtype, name="proj")(y))

        y = Dense(4 * width, dtype=self.dtype, name="fc1")(LayerNorm(name="norm2")(x))
        y = Dense(width, dtype=self.dtype, name="fc2")(gelu(y))
        return residual(x, y)


def plain_block(
    params: Mapping[str, Any], x: jax.Array, heads: int, class_only: bool = False
) -> jax.Array:
    """A `Block` in evaluation mode and float32 as a function, for code outside this folder.

    [B, 1+n, D] to [B, 1+n or 1, D], with the parameter tree of the block.
    """
    block = Block(heads, False, jnp.float32, "xla", class_only)
    return block.apply({"params": params}, x, jnp.float32(0), False)


def plain_attention(params: Mapping[str, Any], x: jax.Array, heads: int) -> jax.Array:
    """The attention weights [B, heads, 1+n, 1+n] of a `Block` for x [B, 1+n, D], in float32."""
    y = plain_layer_norm(params["norm1"], x)
    qkv = y @ params["qkv"]["kernel"] + params["qkv"]["bias"][None, None]
    q, k, _ = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, x.shape[-1] // heads), 2, 0)
    return jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5)


def plain_layer_norm(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """`LayerNorm` with the parameters "scale" and "bias" as a function, like `plain_block`."""
    return LayerNorm().apply({"params": params}, x)
