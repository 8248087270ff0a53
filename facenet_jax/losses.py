"""Losses as pure functions of arrays: values in, one float32 number out.

Nothing here knows models, data or configs. Whatever type comes in, the arithmetic is float32.
Shapes: B batch, C classes, D feature width, M modalities in the order R, N, T.
Sources: Zheng et al. 2024 (FACENet), Eqs. 5-9; the comparison losses of its Table 5 (3M, HC, CdC)
as their own papers define them, and, with the suffix `_official`, as the FACENet release has them.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from data_tfds.errors import UserError

_SMALLEST_SQUARED_DISTANCE = 1e-12


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy, mean over the batch (FACENet Eq. 8).

    `logits` [B, C], `labels` [B] integers. The target is (1 - smoothing) one-hot + smoothing / C.
    A label outside 0..C-1 gives NaN, which stops a training run; it never counts as a loss of 0.
    """
    classes = logits.shape[-1]
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32))
    target = (1.0 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes
    loss = -jnp.sum(target * log_probability, axis=-1)
    known = (labels >= 0) & (labels < classes)
    return jnp.mean(jnp.where(known, loss, jnp.nan))


def batch_hard_triplet(
    features: jax.Array, labels: jax.Array, margin: float | None = None
) -> jax.Array:
    """Batch-hard triplet loss, mean over the valid anchors, 0 where there is none (FACENet Eq. 9).

    `features` [B, D] as they are (not normalised), `labels` [B] in any order and number. Per anchor
    the farthest sample of its label and the nearest of another one, Euclidean; the loss is
    softplus(d_ap - d_an), or max(0, margin + d_ap - d_an) if a margin is given.

    An anchor is valid if the batch holds another sample of its label and a sample of another label;
    the others add 0 and no gradient. Where all are valid, as in a P x K batch, this is the
    release's mean over the batch.
    """
    features = features.astype(jnp.float32)
    farthest, nearest, valid = hardest(features, labels)
    to_positive = _distance(features, features[farthest])
    to_negative = _distance(features, features[nearest])

    gap = to_positive - to_negative
    loss = jax.nn.softplus(gap) if margin is None else jnp.maximum(0.0, margin + gap)
    loss = jnp.where(valid, loss, 0.0)
    return jnp.sum(loss) / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)


def hardest(features: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each anchor: its hardest positive and negative, rows int32 [B], and whether it is valid.

    Of features [B, D] and labels [B]; see `batch_hard_triplet`. Where an anchor is not valid the
    rows mean nothing.
    """
    same = labels[:, None] == labels[None, :]
    positive = same & ~jnp.eye(labels.shape[0], dtype=bool)
    # Mining needs no gradient, and a distance that sums squared differences, not a Gram matrix,
    # loses no digits to cancellation. Only the two mined distances per anchor are differentiated.
    fixed = jax.lax.stop_gradient(features.astype(jnp.float32))
    squared = jnp.sum(jnp.square(fixed[:, None, :] - fixed[None, :, :]), axis=-1)
    farthest = jnp.argmax(jnp.where(positive, squared, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(same, jnp.inf, squared), axis=1)
    return farthest, nearest, positive.any(axis=1) & ~same.all(axis=1)


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """KL(P || Q) = sum_i P_i log(P_i / Q_i) of each sample, [B] (FACENet Eq. 5).

    `p_logits`, `q_logits` [B, C]; P and Q are their softmax. From log-softmax, hence finite for
    any finite logits.
    """
    log_p = jax.nn.log_softmax(p_logits.astype(jnp.float32))
    log_q = jax.nn.log_softmax(q_logits.astype(jnp.float32))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def min_kl(
    a_logits: jax.Array, b_logits: jax.Array, reduction: Literal["sample", "batch"] = "sample"
) -> jax.Array:
    """The smaller of the two directed divergences of two distributions (FACENet Eqs. 6, 7).

    `a_logits`, `b_logits` [B, C]. `sample`: mean over samples of min(KL(a || b), KL(b || a)).
    `batch` is the release's: both directions are averaged over batch x classes and the smaller
    of the two numbers is returned. The gradient flows through the smaller direction only, into
    both arguments; of two equal ones KL(b || a) counts.
    """
    a_to_b = kl_divergence(a_logits, b_logits)
    b_to_a = kl_divergence(b_logits, a_logits)
    if reduction == "batch":
        classes = a_logits.shape[-1]
        a_to_b, b_to_a = jnp.mean(a_to_b) / classes, jnp.mean(b_to_a) / classes
    elif reduction != "sample":
        raise UserError(f"The KL reduction {reduction!r} is neither 'sample' nor 'batch'.")
    return jnp.mean(jnp.where(b_to_a <= a_to_b, b_to_a, a_to_b))


def multi_modal_consistency(
    logits: Sequence[jax.Array] | jax.Array, reduction: Literal["sample", "batch"] = "sample"
) -> jax.Array:
    """MC, the consistency of R with N and of N with T (FACENet Eq. 6).

    `logits` R, N, T of shape [B, C] each (or one array [3, B, C]); `reduction` as in `min_kl`.
    Given features [B, D] instead, it is the feature-level version of Table 6: a softmax over D.
    """
    visible, near_infrared, thermal = logits
    return min_kl(visible, near_infrared, reduction) + min_kl(thermal, near_infrared, reduction)


def mmm(
    features: Sequence[jax.Array] | jax.Array,
    labels: jax.Array,
    margin: float = 1.0,
    normalise: bool = True,
) -> jax.Array:
    """3M: sum over identities of the largest |margin - |c_m - c_n|^2| over pairs of modalities.

    `features` M arrays [B, D], `labels` [B] in any order and number; c_m is an identity's mean
    feature in modality m. The absolute value is meant: distances are drawn *to* the margin (Wang
    et al. 2022, IEEE). Its shipped setting is the default: L2-normalised features and margin 1.
    """
    features = _stack(features)
    if normalise:
        features = _unit(features)
    same = _same_label(labels)
    per_row = _largest_margin_gap(_centres(features, same), margin)
    return jnp.sum(per_row / jnp.sum(same, axis=1))


def hc(
    features: Sequence[jax.Array] | jax.Array,
    labels: jax.Array,
    metric: Literal["cosine", "l2"] = "cosine",
    margin: float = 0.0,
) -> jax.Array:
    """Hetero-centre loss: sum over identities of the distance of the R and N centres.

    `features` M >= 2 arrays [B, D], the first two count; `labels` [B] in any order and number.
    `cosine`: max(0, 1 - cos - margin), FACENet's form; `l2`: max(0, |c_R - c_N|^2 - margin), the
    original of Zhu et al. 2020.
    """
    same = _same_label(labels)
    distance = _centre_distance(_centres(_stack(features[:2]), same), metric)
    return jnp.sum(jnp.maximum(0.0, distance - margin) / jnp.sum(same, axis=1))


def cdc(
    features: Sequence[jax.Array] | jax.Array,
    labels: jax.Array,
    alpha: float = 0.6,
    norm: Literal["paper", "code"] = "code",
) -> jax.Array:
    """Cross-directional centre loss L_S + alpha L_M of CCNet (Zheng et al. 2023, Eqs. 8, 10, 15).

    `features` M >= 2 arrays [B, D] before the neck, `labels` [B] in any order and number. L_S are
    the squared distances between the sample centres (means over modalities) of an identity, L_M
    those between its modality centres (means over samples).
    `paper`: 1 / (2 n (n - 1)) of the sum over pairs, summed over identities; `code`: the mean over
    pairs, averaged over the identities of the batch, with which lambda = 0.3 was chosen. An
    identity with one sample has no pair and adds 0 to L_S.
    """
    features = _stack(features)
    same = _same_label(labels)
    count = jnp.sum(same, axis=1)
    centres = _centres(features, same)  # [M, B, D]: row b has the centre of b's identity
    middle = jnp.mean(centres, axis=0)
    modalities = features.shape[0]

    # The sum over pairs |x_i - x_j|^2 is n times the sum of |x_i - mean|^2, so 1 / (2 n (n - 1))
    # of it is 1 / (2 (n - 1)) of the latter. A row carries 1 / count of its identity's L_M.
    spread = jnp.sum(jnp.square(jnp.mean(features, axis=0) - middle), axis=-1)
    of_samples = jnp.sum(jnp.where(count > 1, spread / jnp.maximum(count - 1, 1.0), 0.0)) / 2
    spread = jnp.sum(jnp.square(centres - middle[None]), axis=(0, 2))
    of_modalities = jnp.sum(spread / count) / (modalities - 1) / 2

    loss = of_samples + alpha * of_modalities
    if norm == "paper":
        return loss
    if norm == "code":
        return 4.0 * loss / jnp.sum(1.0 / count)
    raise UserError(f"The CdC norm {norm!r} is neither 'paper' nor 'code'.")


def mmm_official(
    features: Sequence[jax.Array] | jax.Array, identities: int, margin: float = 3.0
) -> jax.Array:
    """3M as the release has it: raw features and margin 3.

    `features` M arrays [B, D] whose rows are `identities` consecutive groups of equal size.
    """
    centres = jnp.mean(_groups(features, identities), axis=2)
    return jnp.sum(_largest_margin_gap(centres, margin))


def hc_official(
    features: Sequence[jax.Array] | jax.Array,
    identities: int,
    metric: Literal["cosine", "l2"] = "cosine",
    margin: float = 10.0,
) -> jax.Array:
    """HC as the release has it: `cosine` has no margin, `l2` draws distances to the margin.

    `features` as in `mmm_official`; the first two modalities count.
    """
    centres = jnp.mean(_groups(features[:2], identities), axis=2)
    distance = _centre_distance(centres, metric)
    if metric == "cosine":
        return jnp.sum(jnp.maximum(0.0, distance))
    return jnp.sum(jnp.abs(margin - distance))


def cdc_official(
    features: Sequence[jax.Array] | jax.Array, identities: int, margin: float = 0.1
) -> tuple[jax.Array, jax.Array]:
    """CdC as the release has it: (modality term, sample term); the loss is their sum.

    `features` as in `mmm_official`, at least M identities. Its defects are kept: the modality
    centres are those of the first identity, `identities` times over; the sample term takes the
    first M identities only; the margin is a floor of each distance, without a gradient below it.
    """
    groups = _groups(features, identities)
    modalities, _, samples, _ = groups.shape
    if identities < modalities:
        raise UserError(
            f"The release's CdC loss needs at least {modalities} identities in a batch, "
            f"not {identities}: use more identities or the loss 'cdc'."
        )
    first = jnp.mean(groups[:, 0], axis=1)
    of_modalities = identities * jnp.mean(jnp.maximum(margin, _pairwise_squared(first)))
    if samples == 1:
        return of_modalities, jnp.zeros(())
    samples_of_first = jnp.mean(groups, axis=0)[:modalities]
    pairs = jax.vmap(_pairwise_squared)(samples_of_first)
    return of_modalities, jnp.sum(jnp.mean(jnp.maximum(margin, pairs), axis=1))


def _distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Euclidean distance of rows, at least 1e-6, [B]; its gradient is 0 where rows are equal."""
    squared = jnp.sum(jnp.square(a - b), axis=-1)
    apart = squared > _SMALLEST_SQUARED_DISTANCE
    # Both `where` are needed: the inner keeps the untaken root's infinite slope out of the product.
    root = jnp.sqrt(jnp.where(apart, squared, 1.0))
    return jnp.where(apart, root, _SMALLEST_SQUARED_DISTANCE**0.5)


def _unit(features: jax.Array) -> jax.Array:
    """L2-normalised rows; a zero row stays zero, with gradient 0."""
    squared = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    some = squared > _SMALLEST_SQUARED_DISTANCE**2
    return jnp.where(some, features * jax.lax.rsqrt(jnp.where(some, squared, 1.0)), 0.0)


def _stack(features: Sequence[jax.Array] | jax.Array) -> jax.Array:
    """Modalities as one float32 array [M, B, D]."""
    return jnp.stack([feature.astype(jnp.float32) for feature in features])


def _groups(features: Sequence[jax.Array] | jax.Array, identities: int) -> jax.Array:
    """Modalities cut into consecutive groups of equal size, [M, identities, K, D]."""
    stacked = _stack(features)
    modalities, batch, width = stacked.shape
    if batch % identities:
        raise UserError(
            f"A batch of {batch} rows does not divide into {identities} identities of equal size."
        )
    return stacked.reshape(modalities, identities, batch // identities, width)


def _same_label(labels: jax.Array) -> jax.Array:
    """1.0 where two rows share their label, [B, B]."""
    return (labels[:, None] == labels[None, :]).astype(jnp.float32)


def _centres(features: jax.Array, same: jax.Array) -> jax.Array:
    """The mean feature of each row's identity per modality, [M, B, D]."""
    # `highest`: accelerators would otherwise round the features to bfloat16 on the way.
    total = jnp.einsum("ij,mjd->mid", same, features, precision="highest")
    return total / jnp.sum(same, axis=1)[None, :, None]


def _pairwise_squared(points: jax.Array) -> jax.Array:
    """Squared distances of the unordered pairs of `points` [N, ...], [N (N - 1) / 2, ...]."""
    first, second = jnp.triu_indices(points.shape[0], k=1)
    return jnp.sum(jnp.square(points[first] - points[second]), axis=-1)


def _largest_margin_gap(centres: jax.Array, margin: float) -> jax.Array:
    """max over pairs of modalities of |margin - |c_m - c_n|^2| for `centres` [M, L, D], [L]."""
    return jnp.max(jnp.abs(margin - _pairwise_squared(centres)), axis=0)


def _centre_distance(centres: jax.Array, metric: str) -> jax.Array:
    """Distance of two modalities' `centres` [2, L, D] by `metric`, [L]."""
    if metric == "cosine":
        first, second = _unit(centres)
        return 1.0 - jnp.sum(first * second, axis=-1)
    if metric == "l2":
        return jnp.sum(jnp.square(centres[0] - centres[1]), axis=-1)
    raise UserError(f"The metric {metric!r} of the HC loss is neither 'cosine' nor 'l2'.")
