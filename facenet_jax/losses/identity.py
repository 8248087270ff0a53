"""Losses that tell identities apart: softmax cross-entropy and triplet losses.

Pure functions of arrays; whatever type comes in, the arithmetic is float32. Shapes: B batch, C
classes, D feature width.
"""

import jax
import jax.numpy as jnp

from facenet_jax.precision import wide

_SMALLEST_SQUARED_DISTANCE = 1e-12


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: float = 0.0,
    present: jax.Array | None = None,
) -> jax.Array:
    """Softmax cross-entropy, mean over the batch (FACENet Eq. 8).

    `logits` [B, C], `labels` [B] integers. The target is (1 - smoothing) one-hot + smoothing / C.
    A label outside 0..C-1 gives NaN, which stops a training run; it never counts as a loss of 0.
    With `present` [B] bool, the mean over those rows; 0 where there is none.
    """
    classes = logits.shape[-1]
    log_probability = jax.nn.log_softmax(wide(logits))
    target = (1.0 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes
    loss = -jnp.sum(target * log_probability, axis=-1)
    known = (labels >= 0) & (labels < classes)
    return mean(jnp.where(known, loss, jnp.nan), present)


def mean(values: jax.Array, present: jax.Array | None) -> jax.Array:
    """The mean of `values` [B], or over the rows where `present` [B] is true; 0 without any."""
    if present is None:
        return jnp.mean(values)
    count = jnp.sum(present, dtype=jnp.float32)
    return jnp.sum(jnp.where(present, values, 0.0)) / jnp.maximum(count, 1.0)


def batch_hard_triplet(
    features: jax.Array,
    labels: jax.Array,
    margin: float | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """Batch-hard triplet loss, mean over the valid anchors, 0 where there is none (FACENet Eq. 9).

    `features` [B, D] as they are (not normalised), `labels` [B] in any order and number. Per anchor
    the farthest sample of its label and the nearest of another one, Euclidean; the loss is
    softplus(d_ap - d_an), or max(0, margin + d_ap - d_an) if a margin is given.

    An anchor is valid if the batch holds another sample of its label and a sample of another label;
    the others add 0 and no gradient. Where all are valid, as in a P x K batch, this is the
    release's mean over the batch. Rows where `present` [B] is False take no part.
    """
    features = wide(features)
    farthest, nearest, valid = hardest(features, labels, present)
    to_positive = distance(features, features[farthest])
    to_negative = distance(features, features[nearest])

    gap = to_positive - to_negative
    loss = jax.nn.softplus(gap) if margin is None else jnp.maximum(0.0, margin + gap)
    loss = jnp.where(valid, loss, 0.0)
    return jnp.sum(loss) / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)


def hardest(
    features: jax.Array, labels: jax.Array, present: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each anchor: its hardest positive and negative, rows int32 [B], and whether it is valid.

    Of features [B, D] and labels [B]; see `batch_hard_triplet`. Where an anchor is not valid the
    rows mean nothing.
    """
    same = labels[:, None] == labels[None, :]
    positive = same & ~jnp.eye(labels.shape[0], dtype=bool)
    negative = ~same
    if present is not None:
        both = present[:, None] & present[None, :]
        positive, negative = positive & both, negative & both
    # Mining needs no gradient, and a distance that sums squared differences, not a Gram matrix,
    # loses no digits to cancellation. Only the two mined distances per anchor are differentiated.
    fixed = jax.lax.stop_gradient(wide(features))
    squared = jnp.sum(jnp.square(fixed[:, None, :] - fixed[None, :, :]), axis=-1)
    farthest = jnp.argmax(jnp.where(positive, squared, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(negative, squared, jnp.inf), axis=1)
    return farthest, nearest, positive.any(axis=1) & negative.any(axis=1)


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Euclidean distance of rows, at least 1e-6, [B]; its gradient is 0 where rows are equal."""
    squared = jnp.sum(jnp.square(a - b), axis=-1)
    apart = squared > _SMALLEST_SQUARED_DISTANCE
    # Both `where` are needed: the inner keeps the untaken root's infinite slope out of the product.
    root = jnp.sqrt(jnp.where(apart, squared, 1.0))
    return jnp.where(apart, root, _SMALLEST_SQUARED_DISTANCE**0.5)


def weighted_triplet(
    features: jax.Array,
    labels: jax.Array,
    include_self: bool = True,
    epsilon: float = 1e-6,
    present: jax.Array | None = None,
) -> jax.Array:
    """Weighted regularisation triplet (WRT), mean over the valid anchors (Ye et al. 2021, AGW).

    `features` [B, D], `labels` [B] in any order and number. softplus(sum_j p_j d_j - sum_k n_k d_k)
    with Euclidean distances d to the positives j and the negatives k, where p is the softmax of d
    over the positives and n that of -d over the negatives; the gradient flows through both.

    `include_self` counts the anchor among its positives, as the release does. `epsilon` is added to
    both sums of exponentials, of which the release shifts the positive one only: beyond distances
    of about 12 its negative weights shrink. 0 gives the formula itself. An anchor without a
    positive or a negative is not valid; rows where `present` [B] is False take no part.
    """
    features = wide(features)
    same = labels[:, None] == labels[None, :]
    positive = same if include_self else same & ~jnp.eye(len(labels), dtype=bool)
    negative = ~same
    if present is not None:
        both = present[:, None] & present[None, :]
        positive, negative = positive & both, negative & both
    apart = distance(features[:, None], features[None, :])
    farther = jnp.sum(softmax_among(apart, positive, epsilon) * apart, axis=1)
    nearer = jnp.sum(softmax_among(-apart, negative, epsilon) * apart, axis=1)
    valid = positive.any(axis=1) & negative.any(axis=1)
    return mean(jax.nn.softplus(farther - nearer), valid)


def softmax_among(scores: jax.Array, among: jax.Array, epsilon: float) -> jax.Array:
    """Weights [B, N] by the exponential of `scores` among the entries `among`, 0 elsewhere.

    With `epsilon` they are AGW's, see `weighted_triplet`; with 0 the softmax. A row without entries
    is 0.
    """
    if epsilon:
        shift = jnp.max(jnp.where(among, scores, 0.0), axis=1, keepdims=True)
    else:
        shift = jnp.max(scores, axis=1, keepdims=True, where=among, initial=-jnp.inf)
        shift = jax.lax.stop_gradient(jnp.where(among.any(axis=1, keepdims=True), shift, 0.0))
    powers = jnp.where(among, jnp.exp(jnp.where(among, scores - shift, 0.0)), 0.0)
    total = jnp.sum(powers, axis=1, keepdims=True) + epsilon
    return powers / jnp.where(total > 0.0, total, 1.0)
