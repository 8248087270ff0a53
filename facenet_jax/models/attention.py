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
    """`exact_attention`, and what its gradient needs; the softmax is in float32."""
    scores = [
        jnp.einsum("bhtd,bhsd->bhts", q, part, preferred_element_type=jnp.float32)
        * q.shape[-1] ** -0.5
        for part in k
    ]
    top = functools.reduce(jnp.maximum, [x.max(-1, keepdims=True) for x in scores])
    top = checkpoint_name(top, SOFTMAX)
    weights = [jnp.exp(x - top) for x in scores]
    total = checkpoint_name(sum(x.sum(-1, keepdims=True) for x in weights), SOFTMAX)
    weights = tuple((x / total).astype(part.dtype) for x, part in zip(weights, v, strict=True))
    return added("bhts,bhsd->bhtd", weights, v), (q, k, v, weights)


def attention_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, Any, Any]:
    """The gradients of q, k and v, as products in their own type.

    By itself JAX multiplies the float32 gradient of the softmax with a bfloat16 q or k, at the
    speed of float32. Fused attention kernels round it, and the weights, as here.
    """
    q, k, v, weights = saved
    # Otherwise XLA:TPU computes the exponential again inside each of the products below.
    weights = jax.lax.optimization_barrier(weights)
    of_weights = [jnp.einsum("bhtd,bhsd->bhts", gradient, part) for part in v]
    both = [(wide(x), wide(g)) for x, g in zip(weights, of_weights, strict=True)]
    mean = sum(jnp.sum(x * g, axis=-1, keepdims=True) for x, g in both)
    scale = q.shape[-1] ** -0.5
    of_scores = [(x * (g - mean) * scale).astype(q.dtype) for x, g in both]
    of_q = added("bhts,bhsd->bhtd", of_scores, k)
    of_k = tuple(jnp.einsum("bhts,bhtd->bhsd", g, q) for g in of_scores)
    of_v = tuple(jnp.einsum("bhts,bhtd->bhsd", x, gradient) for x in weights)
    return of_q, of_k, of_v


def added(subscripts: str, left: Parts, right: Parts) -> jax.Array:
    """The products of two lists of parts, summed in float32, in the type of the parts."""
    pairs = zip(left, right, strict=True)
    each = (jnp.einsum(subscripts, *pair, preferred_element_type=jnp.float32) for pair in pairs)
    return sum(each).astype(right[0].dtype)


exact_attention.defvjp(attention_forward, attention_backward)
