"""Losses of centres: the mean features of an identity over its samples or over its modalities.

The comparison losses of FACENet's Table 5 (3M, HC) and CCNet's CdC, as their own papers define
them. Pure functions of arrays; whatever type comes in, the arithmetic is float32. Shapes: B batch,
D feature width, M modalities.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.errors import UserError
from facenet_jax.losses.identity import distance
from facenet_jax.precision import wide

_SMALLEST_NORM = 1e-12


def mmm(
    features: Sequence[jax.Array] | jax.Array,
    labels: jax.Array,
    margin: float = 1.0,
    normalise: bool = True,
) -> jax.Array:
    """3M: sum over identities of the largest |margin - |c_m - c_n|^2| over pairs of modalities.

    `features` M arrays [B, D], `labels` [B] in any order and number; c_m is an identity's mean
    feature in modality m. Note the absolute value: distances are pulled towards the margin from
    both sides (Wang et al. 2022, IEEE). Its shipped setting is the default: L2-normalised features
    and margin 1.
    """
    features = stack(features)
    if normalise:
        features = unit(features)
    same = same_label(labels, features.dtype)
    per_row = largest_margin_gap(centres_of(features, same), margin)
    return jnp.sum(per_row / jnp.sum(same, axis=1))


def hc(
    features: Sequence[jax.Array] | jax.Array,
    labels: jax.Array,
    metric: Literal["cosine", "l2"] = "cosine",
    margin: float = 0.0,
    pairs: Literal["first", "all"] = "first",
) -> jax.Array:
    """Hetero-centre loss: sum over identities of the distance of the centres of two modalities.

    `features` M >= 2 arrays [B, D], of which the first two count (R and N), or the sum over `all`
    pairs; `labels` [B] in any order and number.
    `cosine`: max(0, 1 - cos - margin), FACENet's form; `l2`: max(0, |c_R - c_N|^2 - margin), the
    original of Zhu et al. 2020.
    """
    features = stack(features if pairs == "all" else features[:2])
    same = same_label(labels, features.dtype)
    centres = centres_of(features, same)
    first, second = np.triu_indices(len(features), k=1)
    distances = [
        centre_distance(centres[np.array([a, b])], metric)
        for a, b in zip(first, second, strict=True)
    ]
    over = sum(jnp.maximum(0.0, distance - margin) for distance in distances)
    return jnp.sum(over / jnp.sum(same, axis=1))


def cdc(
    features: Sequence[jax.Array] | jax.Array,
    labels: jax.Array,
    alpha: float = 0.6,
    norm: Literal["paper", "code"] = "code",
    sample_weight: float = 1.0,
) -> jax.Array:
    """Cross-directional centre loss L_S + alpha L_M of CCNet (Zheng et al. 2023, Eqs. 8, 10, 15).

    `features` M >= 2 arrays [B, D] before the neck, `labels` [B] in any order and number. L_S are
    the squared distances between the sample centres (means over modalities) of an identity, L_M
    those between its modality centres (means over samples). `sample_weight` multiplies L_S: 0
    leaves L_M alone, as `alpha` 0 leaves L_S.
    `paper`: 1 / (2 n (n - 1)) of the sum over pairs, summed over identities; `code`: the mean over
    pairs, averaged over the identities of the batch, with which lambda = 0.3 was chosen. An
    identity with one sample has no pair and adds 0 to L_S.
    """
    features = stack(features)
    same = same_label(labels, features.dtype)
    count = jnp.sum(same, axis=1)
    centres = centres_of(features, same)  # [M, B, D]: row b has the centre of b's identity
    middle = jnp.mean(centres, axis=0)
    modalities = features.shape[0]

    # The sum over pairs |x_i - x_j|^2 is n times the sum of |x_i - mean|^2, so 1 / (2 n (n - 1))
    # of it is 1 / (2 (n - 1)) of the latter. A row carries 1 / count of its identity's L_M.
    spread = jnp.sum(jnp.square(jnp.mean(features, axis=0) - middle), axis=-1)
    of_samples = jnp.sum(jnp.where(count > 1, spread / jnp.maximum(count - 1, 1.0), 0.0)) / 2
    spread = jnp.sum(jnp.square(centres - middle[None]), axis=(0, 2))
    of_modalities = jnp.sum(spread / count) / (modalities - 1) / 2

    loss = sample_weight * of_samples + alpha * of_modalities
    if norm == "paper":
        return loss
    if norm == "code":
        return 4.0 * loss / jnp.sum(1.0 / count)
    raise UserError(f"The CdC norm {norm!r} is neither 'paper' nor 'code'.")


def identity_alignment(
    auxiliary: jax.Array,
    features: Sequence[jax.Array] | jax.Array,
    labels: jax.Array,
    margin: float = 0.55,
    hinge: bool = True,
    normalise: bool = False,
) -> jax.Array:
    """Identity alignment of an auxiliary modality with others, summed over identities (MUN Eq. 12).

    `auxiliary` [B, D], `features` M arrays [B, D], `labels` [B] in any order and number. For each
    identity, margin + the farthest of its own centres from its auxiliary centre - the nearest of
    any other identity's, over all of the other modalities; `hinge` takes no less than 0. An
    identity that is alone in the batch adds 0. `normalise` gives every feature length 1 before.
    """
    every = stack([auxiliary, *features])
    if normalise:
        every = unit(every)
    same = same_label(labels)
    first, *others = centres_of(every, same)
    apart = distance(first[None, :, None], jnp.stack(others)[:, None])  # [M, B, B]
    own = jnp.max(jnp.diagonal(apart, axis1=1, axis2=2), axis=0)
    other = jnp.min(jnp.where(same[None] > 0, jnp.inf, apart), axis=(0, 2))
    some = jnp.isfinite(other)
    gap = jnp.where(some, margin + own - jnp.where(some, other, 0.0), 0.0)
    gap = jnp.maximum(gap, 0.0) if hinge else gap
    return jnp.sum(gap / jnp.sum(same, axis=1))


def center(feature: jax.Array, labels: jax.Array, centres: jax.Array) -> jax.Array:
    """Centre loss of Wen et al. 2016: the mean over the batch of |x - c_y|^2.

    `feature` [B, D], `labels` [B], `centres` [C, D], one for each identity, which get no gradient:
    they move by `moved_centres`. A label beyond the centres gives NaN.
    """
    own = jax.lax.stop_gradient(wide(centres)).at[labels].get(mode="fill", fill_value=jnp.nan)
    return jnp.mean(jnp.sum(jnp.square(wide(feature) - own), axis=-1))


def moved_centres(
    features: Sequence[jax.Array], labels: jax.Array, centres: jax.Array, rate: float
) -> jax.Array:
    """The `centres` [C, D] after a step of gradient descent on the sum of `center` over `features`.

    `features` M arrays [B, D], `labels` [B]. The step is written out because the centres have a
    rate of their own and no momentum, whatever optimiser trains the network.
    """
    own = centres[labels][None]
    slope = jnp.sum(own - jax.lax.stop_gradient(stack(features)), axis=0) * (2 / len(labels))
    return centres.at[labels].add(-rate * slope)


def unit(features: jax.Array) -> jax.Array:
    """L2-normalised rows; a zero row stays zero, with gradient 0."""
    squared = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    some = squared > _SMALLEST_NORM**2
    return jnp.where(some, features * jax.lax.rsqrt(jnp.where(some, squared, 1.0)), 0.0)


def stack(features: Sequence[jax.Array] | jax.Array) -> jax.Array:
    """Modalities as one float32 array [M, B, D]."""
    return jnp.stack([wide(feature) for feature in features])


def same_label(labels: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """1.0 where two rows share their label, [B, B]."""
    return (labels[:, None] == labels[None, :]).astype(dtype)


def centres_of(features: jax.Array, same: jax.Array) -> jax.Array:
    """The mean feature of each row's identity per modality, [M, B, D]."""
    # `highest`: accelerators would otherwise round the features to bfloat16 on the way.
    total = jnp.einsum("ij,mjd->mid", same, features, precision="highest")
    return total / jnp.sum(same, axis=1)[None, :, None]


def pairwise_squared(points: jax.Array) -> jax.Array:
    """Squared distances of the unordered pairs of `points` [N, ...], [N (N - 1) / 2, ...]."""
    first, second = jnp.triu_indices(points.shape[0], k=1)
    return jnp.sum(jnp.square(points[first] - points[second]), axis=-1)


def largest_margin_gap(centres: jax.Array, margin: float) -> jax.Array:
    """max over pairs of modalities of |margin - |c_m - c_n|^2| for `centres` [M, L, D], [L]."""
    return jnp.max(jnp.abs(margin - pairwise_squared(centres)), axis=0)


def centre_distance(centres: jax.Array, metric: str) -> jax.Array:
    """Distance of two modalities' `centres` [2, L, D] by `metric`, [L]."""
    if metric == "cosine":
        first, second = unit(centres)
        return 1.0 - jnp.sum(first * second, axis=-1)
    if metric == "l2":
        return jnp.sum(jnp.square(centres[0] - centres[1]), axis=-1)
    raise UserError(f"The metric {metric!r} of the HC loss is neither 'cosine' nor 'l2'.")
