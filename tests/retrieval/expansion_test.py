"""Query expansion and database augmentation against slow twins."""

import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax import retrieval
from facenet_jax.retrieval import Embeddings, expansion


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def twin(row, others, neighbours, alpha):
    """One row by the definition."""
    row, others = unit(np.float64(row)), unit(np.float64(others))
    cosines = others @ row
    nearest = sorted(range(len(others)), key=lambda i: -cosines[i])[:neighbours]
    return unit(row + sum(max(cosines[i], 0) ** alpha * others[i] for i in nearest))


@pytest.mark.parametrize(("neighbours", "alpha"), [(1, 0.0), (3, 0.0), (4, 3.0), (10, 1.5)])
def test_both_are_those_of_the_twin(neighbours, alpha):
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(6, 5)), 3 * rng.normal(size=(11, 5))
    found = expansion.expand(query, gallery, neighbours, alpha)
    expected = [twin(row, gallery, neighbours, alpha) for row in query]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    found = expansion.augment(gallery, neighbours, alpha)
    expected = [
        twin(row, np.delete(gallery, i, axis=0), neighbours, alpha) for i, row in enumerate(gallery)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_ties_do_not_depend_on_the_order_of_the_gallery():
    rng = np.random.default_rng(1)
    gallery = rng.integers(-1, 2, (40, 4)).astype(np.float32)
    gallery = np.concatenate([gallery, gallery[:20]])
    gallery[np.abs(gallery).max(axis=1) == 0] = 1
    query, shuffle = rng.integers(-1, 2, (9, 4)) + 0.5, rng.permutation(60)
    found = expansion.expand(query, gallery, 7, 0.0)
    assert np.array_equal(found, expansion.expand(query, gallery[shuffle], 7, 0.0))


def test_expanded_features_are_ranked_within_each_trial():
    rng = np.random.default_rng(2)
    identity = np.repeat(np.arange(10), 6)
    rows = np.float32(rng.normal(size=(10, 16))[identity] + 1.2 * rng.normal(size=(60, 16)))

    def side(some):
        names = np.arange(len(rows[some])).astype(str)
        return Embeddings(rows[some], {}, identity[some], names, {})

    query, gallery = side(slice(0, None, 3)), side(slice(1, None, 3))
    protocol = Protocol("two", trials=lambda labels: [np.arange(10), np.arange(5, 20)])
    found = retrieval.evaluate(query, gallery, protocol, expand=(2, 0), augment_gallery=(3, 1.0))
    for trial, chosen in zip(found.trials, protocol.trials(None), strict=True):
        augmented = expansion.augment(gallery.embedding[chosen], 3, 1.0)
        expanded = expansion.expand(query.embedding, augmented, 2, 0)
        of = retrieval.metrics.per_query(
            expanded, augmented, query.identity, gallery.identity[chosen]
        )
        assert np.array_equal(trial.average_precision, of.average_precision)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: expansion.expand(x, x, 5), "expansion with 5 neighbours .* 1..4"),
        (lambda x: expansion.augment(x, 4), "augmentation .* 4 neighbours .* 1..3"),
        (lambda x: expansion.expand(x, x, 2, -1.0), "alpha = -1.0"),
        (lambda x: expansion.expand(x, x * np.nan, 2), "NaN"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call(np.eye(4, dtype=np.float32))
