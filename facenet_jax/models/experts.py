"""The head of DeMo: queries for every subset of the modalities, and experts that weigh the answers.

Wang et al., "DeMo: Decoupled Feature-Based Mixture of Experts for Multi-Modal Object
Re-Identification", AAAI 2025, as its release computes it. f_m is the class token of a modality and
X_m are its n patch tokens, D wide.
"""

import itertools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from facenet_jax.models.convolution import torch_uniform
from facenet_jax.models.layers import BatchNorm, Dense, LayerNorm, quick_gelu
from facenet_jax.runtime.mesh import gathered

NORM = 1e-5  # epsilon of LayerNorms, torch's


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All subsets but the empty one, small ones first."""
    sizes = range(1, len(modalities) + 1)
    return [of for size in sizes for of in itertools.combinations(modalities, size)]


class PatchMean(nn.Module):
    """PIFE: g_m = QuickGELU(W [f_m ; mean of X_m] + b), with a LayerNorm of the two together."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array, prefix: int) -> jax.Array:
        """Tokens [B, prefix + n, D] to [B, D] float32."""
        width = tokens.shape[-1]
        both = jnp.concatenate([tokens[:, 0], tokens[:, prefix:].mean(1)], axis=-1)
        both = LayerNorm(NORM, name="norm")(both)
        dense = Dense(width, dtype=self.dtype, kernel_init=torch_uniform, name="dense")
        return quick_gelu(dense(both)).astype(tokens.dtype)


class Decoupled(nn.Module):
    """HDM for one subset: a learned query that attends to the tokens of its modalities."""

    heads: int
    drop: float  # share of attention weights that training sets to 0
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Tokens [B, n, D] to [B, D]; no residual and no LayerNorm."""
        width = tokens.shape[-1]
        query = self.param("query", nn.initializers.normal(width**-0.5), (1, width))
        dense = [Dense(width, dtype=self.dtype, name=name) for name in ("q", "k", "v", "out")]
        q, k, v = (
            layer.to_heads(x, self.heads)
            for layer, x in zip(dense, (query[None], tokens, tokens), strict=False)
        )
        scores = jnp.einsum("xhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * (width // self.heads) ** -0.5)
        if train and self.drop:
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.drop, weights.shape)
            weights = jnp.where(kept, weights / (1 - self.drop), 0.0)
        y = jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v)
        return dense[-1].from_heads(y)[:, 0].astype(tokens.dtype)


class Experts(nn.Module):
    """ATMoE: small networks for each head and subset, weighed by attention over the subsets.

    z = BN(QuickGELU(W [u_1; ..; u_S] + b)); for head h and subset e the gate is the softmax over e
    of (W_q z)_h . (W_k u_e)_h / sqrt(D / H), the result the gate times BN(QuickGELU(linear(u_eh))).
    """

    heads: int

    @nn.compact
    def __call__(self, answers: jax.Array, there: Sequence[bool], train: bool) -> jax.Array:
        """Answers [B, S, D] float32 of the subsets to [B, S D].

        Subsets that are not `there` have the gate 0, and those of the others add up to 1.
        """
        size, count, width = answers.shape
        flat = answers.reshape(size, -1)
        joint = Dense(width, dtype=flat.dtype, kernel_init=torch_uniform, name="joint")(flat)
        norm = BatchNorm(frozen_bias=False, name="joint_bn")
        joint = norm(quick_gelu(joint), train)
        gate = [Dense(width, use_bias=False, dtype=flat.dtype, name=name) for name in ("q", "k")]
        q = gate[0](joint).reshape(size, self.heads, -1)
        k = gate[1](answers).reshape(size, count, self.heads, -1)
        scores = jnp.einsum("bhd,behd->bhe", q, k) * (width // self.heads) ** -0.5
        weights = jax.nn.softmax(jnp.where(jnp.asarray(there)[None, None], scores, -jnp.inf))
        each = answers.reshape(size, count, self.heads, -1)
        shape = (count, self.heads, *[width // self.heads] * 2)
        kernel = self.param("kernel", torch_uniform, shape)
        bias = self.param("bias", nn.initializers.zeros, shape[:3])
        y = jnp.einsum("behi,ehio->beho", each, gathered(kernel)) + bias[None]
        norm = BatchNorm(frozen_bias=False, name="bn")
        y = norm(quick_gelu(y).reshape(size, -1), train).reshape(each.shape)
        return (y * weights.swapaxes(1, 2)[..., None]).reshape(size, -1)


class DeMoHead(nn.Module):
    """The head on the tokens of the modalities that are given."""

    modalities: tuple[str, ...]  # all that the network has
    heads: int  # of the experts
    attention_heads: int
    drop: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, given: Mapping[str, jax.Array], prefix: int, train: bool
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """({modality: g_m [B, D]}, the experts' feature [B, S D]) of tokens [B, prefix + n, D].

        A modality that is not given is left out of every subset. Columns of subsets with nothing
        left are 0.
        """
        means, tokens = {}, {}
        for name, x in given.items():
            means[name] = PatchMean(self.dtype, name=f"mean_{name}")(x, prefix)
            tokens[name] = jnp.concatenate([means[name][:, None], x[:, prefix:]], axis=1)
        answers, there = [], []
        for subset in subsets(self.modalities):
            of = [tokens[name] for name in subset if name in tokens]
            there.append(bool(of))
            query = Decoupled(
                self.attention_heads, self.drop, self.dtype, name=f"query_{'_'.join(subset)}"
            )
            first = next(iter(means.values()))
            found = query(jnp.concatenate(of, axis=1), train) if of else jnp.zeros_like(first)
            answers.append(found)
        experts = Experts(self.heads, name="experts")
        return means, experts(jnp.stack(answers, axis=1), there, train)
