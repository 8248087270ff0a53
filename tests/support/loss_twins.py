"""Slow, obvious float64 twins of the losses: loops, nothing shared with the code under test."""

import itertools
import math

import numpy as np

# Unordered, unequal groups, one identity with a single sample.
LABELS = np.array([5, 2, 5, 9, 2, 2, 7, 5, 9, 2], np.int32)


def features(seed=0, modalities=3, batch=10, width=7):
    return np.random.default_rng(seed).normal(size=(modalities, batch, width))


def softmax_twin(row):
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


def cross_entropy_twin(logits, labels, smoothing):
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        for c, p in enumerate(softmax_twin(row)):
            target = (1 - smoothing) * (c == label) + smoothing / len(row)
            total -= target * math.log(p)
    return total / len(logits)


def triplet_twin(x, labels, margin):
    terms = []
    for i in range(len(x)):
        distances = [math.sqrt(max(((x[i] - other) ** 2).sum(), 1e-12)) for other in x]
        positives = [distances[j] for j in range(len(x)) if labels[j] == labels[i] and j != i]
        negatives = [distances[j] for j in range(len(x)) if labels[j] != labels[i]]
        if positives and negatives:
            gap = max(positives) - min(negatives)
            terms.append(np.logaddexp(0, gap) if margin is None else max(0.0, gap + margin))
    return sum(terms) / len(terms) if terms else 0.0


def kl_twin(a, b):
    return sum(p * math.log(p / q) for p, q in zip(softmax_twin(a), softmax_twin(b), strict=True))


def min_kl_twin(a, b, reduction):
    forward = [kl_twin(x, y) for x, y in zip(a, b, strict=True)]
    backward = [kl_twin(y, x) for x, y in zip(a, b, strict=True)]
    if reduction == "sample":
        return sum(map(min, forward, backward)) / len(a)
    return min(sum(forward), sum(backward)) / a.size


def mc_twin(stack, reduction):
    r, n, t = stack
    return min_kl_twin(r, n, reduction) + min_kl_twin(n, t, reduction)


def members(labels):
    return [np.flatnonzero(labels == label) for label in sorted(set(labels.tolist()))]


def squared(a, b):
    return float(((a - b) ** 2).sum())


def mmm_twin(stack, labels, margin, normalise):
    if normalise:
        stack = stack / np.sqrt((stack**2).sum(-1, keepdims=True))
    total = 0.0
    for rows in members(labels):
        centres = [modality[rows].mean(0) for modality in stack]
        total += max(abs(margin - squared(a, b)) for a, b in itertools.combinations(centres, 2))
    return total


def hc_twin(stack, labels, metric, margin):
    total = 0.0
    for rows in members(labels):
        r, n = stack[0][rows].mean(0), stack[1][rows].mean(0)
        cosine = 1 - r @ n / math.sqrt((r @ r) * (n @ n))
        total += max(0.0, (cosine if metric == "cosine" else squared(r, n)) - margin)
    return total


def cdc_twin(stack, labels, alpha, norm):
    def term(points):
        pairs = [squared(a, b) for a, b in itertools.combinations(points, 2)]
        if not pairs:
            return 0.0
        if norm == "paper":
            return sum(pairs) / (2 * len(points) * (len(points) - 1))
        return sum(pairs) / len(pairs)

    groups = members(labels)
    total = 0.0
    for rows in groups:
        total += term([stack[:, row].mean(0) for row in rows])
        total += alpha * term([modality[rows].mean(0) for modality in stack])
    return total if norm == "paper" else total / len(groups)


def numeric_gradient(twin, x, step=1e-5):
    """Central differences of a function of a float64 array."""
    numeric = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        move = np.zeros_like(x)
        move[index] = step
        numeric[index] = (twin(x + move) - twin(x - move)) / (2 * step)
    return numeric
