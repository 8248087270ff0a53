"""Intervals against a slow twin, and against variances that are known."""

import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.retrieval import intervals


def twin(values, identities, draws, seed, level):
    """The same interval, by writing out every draw as a list of values."""
    values = np.atleast_2d(values)
    names = sorted(set(identities.tolist()))
    weights, runs = intervals.draw(len(names), len(values), draws, seed)
    means = []
    for weight, run in zip(weights, runs, strict=True):
        chosen = []
        for s, times in enumerate(run):
            for name, again in zip(names, weight, strict=True):
                rows = [values[s, q] for q in range(len(identities)) if identities[q] == name]
                chosen += rows * int(times * again)
        means.append(np.mean(chosen))
    tail = 100 * (1 - level) / 2
    return values.mean(), np.percentile(means, tail), np.percentile(means, 100 - tail)


@pytest.mark.parametrize("runs", [None, 1, 3])
def test_interval_is_that_of_the_written_out_draws(runs):
    rng = np.random.default_rng(0)
    identities = rng.integers(5, 12, 30)
    values = rng.random(30 if runs is None else (runs, 30))
    found = intervals.bootstrap(values, identities, draws=40, seed=3, level=0.8)
    np.testing.assert_allclose(found, twin(values, identities, 40, 3, 0.8), rtol=1e-12)


def test_paired_is_the_interval_of_the_differences():
    rng = np.random.default_rng(1)
    a, b, identities = rng.random((2, 20)), rng.random((2, 20)), rng.integers(0, 6, 20)
    found = intervals.paired(a, b, identities, draws=30, seed=1)
    np.testing.assert_allclose(found, twin(a - b, identities, 30, 1, 0.95), rtol=1e-12)
    assert found.mean == pytest.approx(a.mean() - b.mean())


def test_a_constant_difference_has_no_width():
    values, identities = np.random.default_rng(2).random(12), np.arange(12) // 3
    found = intervals.paired(values + 0.25, values, identities)
    np.testing.assert_allclose(found, [0.25] * 3)
    assert found.excludes_zero
    assert not intervals.paired(values, values, identities).excludes_zero


@pytest.mark.parametrize(("runs", "identities"), [(1, 7), (3, 1), (2, 1)])
def test_the_spread_of_the_draws_is_the_standard_error(runs, identities):
    """One query an identity: the variance of a mean of n is s^2 / n, s^2 with n - 1."""
    rng = np.random.default_rng(4)
    values = rng.random((runs, identities))
    weights, drawn = intervals.draw(identities, runs, 40_000, 5)
    means = np.einsum("ds,di,si->d", drawn, weights, values)
    means /= drawn.sum(1) * weights.sum(1)
    flat = values.ravel()
    expected = flat.var(ddof=1) / len(flat)
    assert means.var() == pytest.approx(expected, rel=0.03)


def test_identities_are_drawn_whole():
    """All queries of an identity are equal: copies of them add no certainty."""
    rng = np.random.default_rng(6)
    of_identity = rng.random(8)
    once = intervals.bootstrap(of_identity, np.arange(8), seed=9)
    often = intervals.bootstrap(np.repeat(of_identity, 5), np.repeat(np.arange(8), 5), seed=9)
    np.testing.assert_allclose(once, often)


@pytest.mark.parametrize(
    ("values", "identities", "words"),
    [
        (np.zeros(3), np.zeros(2, int), r"not \[3\] and \[2\]"),
        (np.zeros(0), np.zeros(0, int), "one or more queries"),
        (np.array([0.0, np.nan]), np.zeros(2, int), "NaN"),
        (np.zeros((1, 2, 2)), np.zeros(2, int), r"\[1, 2, 2\]"),
    ],
)
def test_refusals(values, identities, words):
    with pytest.raises(UserError, match=words):
        intervals.bootstrap(values, identities)


def test_pairs_must_fit():
    with pytest.raises(UserError, match="no pairs"):
        intervals.paired(np.zeros(3), np.zeros((2, 3)), np.zeros(3, int))
