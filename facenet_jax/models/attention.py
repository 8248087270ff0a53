"""Attention over tokens that come in parts, with the number formats of its products."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from facenet_jax.precision import wide

SOFTMAX = "softmax"
"""The name of the maximum and the sum of each row of scores, for rematerialisation."""

Parts = Sequence[jax.Array]
"""Tokens in one or more arrays [B, n, D], or their heads [B, heads, n, d].

A ViT has a class token and patches, 1 + 128 of them here. Joined, their 129 take the room of 256 in
a TPU's memory and products; apart, 128 and 1.
"""


def attention(q: Parts, k: Parts, v: Parts, implementation: str = "xla") -> list[jax.Array]:
    """softmax(q k^T / sqrt(d)) v of [B, heads, n, d] each, in the type of v, a part for each of q.

    Every query attends to the keys of all parts.
    """
    if implementation == "xla":
        return [exact_attention(part, tuple(k), tuple(v)) for part in q]
    joined = (jnp.concatenate(parts, axis=2).swapaxes(1, 2) for parts in (q, k, v))
    y = jax.nn.dot_product_attention(*joined, implementation=implementation).swapaxes(1, 2)
    ends = np.cumsum([part.shape[2] for part in q])
    return jnp.split(y, ends[:-1], axis=2)


@jax.custom_vjp
def exact_attention(q: jax.Array, k: tuple[jax.Array, ...], v: tuple[jax.Array, ...]) -> jax.Array:
    """The attention of one part of queries [B, heads, T, d]: one maximum and sum over all keys."""
    return attention_forward(q, k, v)[0]


def attention_forward(
    q: jax.Array, k: tuple[jax.Array, ...], v: tuple[jax.Array, ...]
) -> tuple[jax.Array, Any]:
    """`exact_attention`, and what its gradient needs; the softmax is in float32.

    Its weights are divided by their sum after the product with v, as in fused attention kernels
    (Dao et al. 2022): n x d divisions instead of n x n.
    """
    scores = [
        jnp.einsum("bhtd,bhsd->bhts", q, part, preferred_element_type=jnp.float32)
        * q.shape[-1] ** -0.5
        for part in k
    ]
    top = functools.reduce(jnp.maximum, [x.max(-1, keepdims=True) for x in scores])
    top = checkpoint_name(top, SOFTMAX)
    weights = [jnp.exp(x - top) for x in scores]
    total = checkpoint_name(sum(x.sum(-1, keepdims=True) for x in weights), SOFTMAX)
    weights = tuple(x.astype(part.dtype) for x, part in zip(weights, v, strict=True))
    y = (products(weights, v) / total).astype(v[0].dtype)
    return y, (q, k, v, weights, total, y)


def attention_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, Any, Any]:
    """The gradients of q, k and v, as products in their own type.

    By itself JAX multiplies the float32 gradient of the softmax with a bfloat16 q or k, at the
    speed of float32. Fused attention kernels round it, and the weights, as here. With weights w,
    their sum t and y = w v / t, the gradient of scores is w (v dy / t - y dy / t): sums over the n
    columns of w become one over the d of y (Dao et al. 2022).
    """
    q, k, v, weights, total, y = saved
    # Otherwise XLA:TPU computes the exponential again inside each of the products below.
    weights = jax.lax.optimization_barrier(weights)
    gradient = (wide(gradient) / total).astype(gradient.dtype)
    mean = jnp.sum(wide(gradient) * wide(y), axis=-1, keepdims=True)
    of_weights = [jnp.einsum("bhtd,bhsd->bhts", gradient, part) for part in v]
    scale = q.shape[-1] ** -0.5
    of_scores = [
        (wide(x) * (wide(g) - mean) * scale).astype(q.dtype)
        for x, g in zip(weights, of_weights, strict=True)
    ]
    of_q = products(of_scores, k).astype(q.dtype)
    of_k = tuple(jnp.einsum("bhts,bhtd->bhsd", g, q) for g in of_scores)
    of_v = tuple(jnp.einsum("bhts,bhtd->bhsd", x, gradient) for x in weights)
    return of_q, of_k, of_v


def products(left: Parts, right: Parts) -> jax.Array:
    """The sum of the products [B, heads, T, n] x [B, heads, n, d] of two lists, in float32."""
    pairs = zip(left, right, strict=True)
    form = "bhts,bhsd->bhtd"
    return sum(jnp.einsum(form, *pair, preferred_element_type=jnp.float32) for pair in pairs)


exact_attention.defvjp(attention_forward, attention_backward)
