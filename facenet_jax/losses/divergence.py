"""Losses between distributions: Kullback-Leibler and Jeffreys divergences, and mean discrepancy.

Pure functions of arrays; whatever type comes in, the arithmetic is float32. Shapes: B batch, C
classes.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from data_tfds.errors import UserError
from facenet_jax.losses.centres import same_label
from facenet_jax.losses.identity import mean
from facenet_jax.precision import wide


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """KL(P || Q) = sum_i P_i log(P_i / Q_i) of each sample, [B] (FACENet Eq. 5).

    `p_logits`, `q_logits` [B, C]; P and Q are their softmax. From log-softmax, hence finite for
    any finite logits.
    """
    log_p = jax.nn.log_softmax(wide(p_logits))
    log_q = jax.nn.log_softmax(wide(q_logits))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def min_kl(
    a_logits: jax.Array,
    b_logits: jax.Array,
    reduction: Literal["sample", "batch"] = "sample",
    present: jax.Array | None = None,
) -> jax.Array:
    """The smaller of the two directed divergences of two distributions (FACENet Eqs. 6, 7).

    `a_logits`, `b_logits` [B, C]. `sample`: mean over samples of min(KL(a || b), KL(b || a)).
    `batch` is the release's: both directions are averaged over batch x classes and the smaller
    of the two numbers is returned. The gradient flows through the smaller direction only, into
    both arguments; of two equal ones KL(b || a) counts. With `present` [B] bool, the means are
    over those rows.
    """
    if reduction not in ("sample", "batch"):
        raise UserError(f"The KL reduction {reduction!r} is neither 'sample' nor 'batch'.")
    a_to_b = kl_divergence(a_logits, b_logits)
    b_to_a = kl_divergence(b_logits, a_logits)
    if reduction == "batch":
        classes = a_logits.shape[-1]
        a_to_b, b_to_a = mean(a_to_b, present) / classes, mean(b_to_a, present) / classes
        return jnp.where(b_to_a <= a_to_b, b_to_a, a_to_b)
    return mean(jnp.where(b_to_a <= a_to_b, b_to_a, a_to_b), present)


def multi_modal_consistency(
    logits: Sequence[jax.Array] | jax.Array,
    reduction: Literal["sample", "batch"] = "sample",
    present: Sequence[jax.Array] | jax.Array | None = None,
) -> jax.Array:
    """MC, the consistency of each modality with the next: R with N and N with T (FACENet Eq. 6).

    `logits` of two or more modalities, [B, C] each (or one array [M, B, C]); `reduction` as in
    `min_kl`; `present` [M, B] bool, where images may be missing: only rows that have both count.
    Given features [B, D] instead, it is the feature-level version of Table 6: a softmax over D.
    """
    terms = []
    for i in range(len(logits) - 1):
        # The pair in the order of the paper's sum: (R, N), then (T, N).
        first, second = (i, i + 1) if i == 0 else (i + 1, i)
        both = None if present is None else present[first] & present[second]
        terms.append(min_kl(logits[first], logits[second], reduction, both))
    return sum(terms)


def jeffreys(
    a_logits: jax.Array,
    b_logits: jax.Array,
    detach: Literal["none", "first", "targets"] = "none",
    present: jax.Array | None = None,
) -> jax.Array:
    """(KL(a || b) + KL(b || a)) / 2, half the Jeffreys divergence, mean over samples.

    `a_logits`, `b_logits` [B, C]; the mutual learning of FFDML (Eqs. 5, 6), there summed over
    classes. `detach` says what no gradient reaches: nothing, the first argument, or the target P of
    each KL(P || Q). With `present` [B] bool, the mean over those rows.
    """
    if detach not in ("none", "first", "targets"):
        raise UserError(f"detach is {detach!r} and must be 'none', 'first' or 'targets'.")
    if detach == "first":
        a_logits = jax.lax.stop_gradient(a_logits)
    targets = (a_logits, b_logits)
    if detach == "targets":
        targets = jax.lax.stop_gradient(targets)
    both = kl_divergence(targets[0], b_logits) + kl_divergence(targets[1], a_logits)
    return mean(both / 2, present)


def identity_discrepancy(
    source: jax.Array,
    target: jax.Array,
    labels: jax.Array,
    margin: float = 0.0,
    kernels: int = 5,
    multiplier: float = 2.0,
) -> jax.Array:
    """Squared maximum mean discrepancy of each identity's two sets of rows, mean over identities.

    `source`, `target` [B, D] and `labels` [B] of both, in any order and number (Jambigi et al.
    2021, MMD-ReID; MUN Eqs. 15, 16). The kernel is a sum of Gaussians whose widths are powers of
    `multiplier` times a middle one: the mean squared distance between an identity's rows, which no
    gradient reaches. With a `margin`, an identity below it adds 0 and one above it all of its
    value, as in the release.
    """
    rows = wide(jnp.concatenate([source, target]))
    side = jnp.repeat(jnp.float32([1.0, -1.0]), len(labels), total_repeat_length=len(rows))
    same = same_label(jnp.concatenate([labels, labels]))
    count = jnp.sum(same, axis=1)  # 2 N of each row's identity
    apart = jnp.sum(jnp.square(rows[:, None] - rows[None, :]), axis=-1)

    def over_identity(pairs: jax.Array) -> jax.Array:
        """The sum over all pairs of rows of an identity, for each row."""
        return jnp.matmul(same, jnp.sum(same * pairs, axis=1), precision="highest")

    width = jax.lax.stop_gradient(over_identity(apart) / (count * (count - 1.0)))
    width = width / multiplier ** (kernels // 2)
    kernel = sum(
        jnp.exp(-apart / (width * multiplier**power + 1e-9)[:, None]) for power in range(kernels)
    )
    found = over_identity(side[:, None] * side[None, :] * kernel) / jnp.square(count / 2)
    if margin:
        found = jnp.where(found > margin, found, 0.0)
    return jnp.sum(found / count) / jnp.sum(1.0 / count)
