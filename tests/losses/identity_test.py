import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facenet_jax.losses import identity
from tests.support.loss_twins import (
    LABELS,
    cross_entropy_twin,
    features,
    numeric_gradient,
    triplet_twin,
)

triplet = jax.jit(jax.value_and_grad(identity.batch_hard_triplet), static_argnums=2)
"""(value, gradient) for features, labels, margin; eager, each of its operations is compiled."""


def test_cross_entropy_of_a_label_that_is_no_class_is_nan():
    logits = jnp.zeros((2, 3))
    assert np.isnan(identity.cross_entropy(logits, jnp.array([0, 3])))
    assert np.isnan(identity.cross_entropy(logits, jnp.array([0, -1])))


def test_cross_entropy_of_huge_logits_is_the_gap():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert identity.cross_entropy(logits, jnp.array([2])) == 2e4
    assert identity.cross_entropy(logits, jnp.array([0])) == 0.0


@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_without_a_valid_anchor_is_zero_without_gradient(labels, margin):
    x = jnp.asarray(features(9, batch=4)[0], jnp.float32)
    value, gradient = triplet(x, jnp.array(labels), margin)
    assert value == 0.0
    assert not gradient.any()


def test_triplet_anchor_without_positive_has_no_gradient_of_its_own():
    """The single sample lies far off: it is nobody's nearest negative, so nothing moves it."""
    x = jnp.array([[0.0], [1.0], [3.0], [4.0], [90.0]])
    _, gradient = triplet(x, jnp.array([0, 0, 1, 1, 2]), None)
    assert gradient[4] == 0.0
    assert (gradient[:4] != 0.0).all()


def test_triplet_of_equal_features_has_zero_gradient():
    x = jnp.full((6, 5), 3.7)
    value, gradient = triplet(x, jnp.arange(6) // 2, None)
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    assert not gradient.any()


def test_triplet_keeps_its_digits_far_from_the_origin():
    x = np.round(features(10)[0] * 64) / 64
    near, _ = triplet(jnp.asarray(x, jnp.float32), jnp.asarray(LABELS), None)
    far, _ = triplet(jnp.asarray(x + 4096, jnp.float32), jnp.asarray(LABELS), None)
    np.testing.assert_allclose(far, near, rtol=1e-6)


PRESENT = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0, 1], bool)
"""Of LABELS 5 2 5 9 2 2 7 5 9 2: label 9 is left with one sample."""

MASKED = {
    "cross entropy": (
        lambda x, y, m: identity.cross_entropy(x, y % 7, 0.1, m),
        lambda x, y: cross_entropy_twin(x, y % 7, 0.1),
    ),
    "soft triplet": (
        lambda x, y, m: identity.batch_hard_triplet(x, y, None, m),
        lambda x, y: triplet_twin(x, y, None),
    ),
    "triplet": (
        lambda x, y, m: identity.batch_hard_triplet(x, y, 0.3, m),
        lambda x, y: triplet_twin(x, y, 0.3),
    ),
}


@functools.cache
def masked(name):
    """(value, gradient) of a masked loss as one program."""
    return jax.jit(jax.value_and_grad(MASKED[name][0]))


@pytest.mark.parametrize("name", MASKED)
def test_missing_rows_take_no_part(name):
    """The value is that of the rows that are there, and the others have no gradient at all."""
    _, twin = MASKED[name]
    x = features(12)[0]
    x[~PRESENT] *= 1e3  # would be everybody's farthest or worst row
    got = masked(name)(jnp.asarray(x, jnp.float32), jnp.asarray(LABELS), jnp.asarray(PRESENT))

    def of_present(x):
        return twin(x[PRESENT], LABELS[PRESENT])

    np.testing.assert_allclose(got[0], of_present(x), rtol=2e-6)
    expected = numeric_gradient(of_present, x)
    assert not np.asarray(got[1])[~PRESENT].any()
    np.testing.assert_allclose(got[1], expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_of_all_rows_changes_nothing(name):
    x, labels = jnp.asarray(features(13)[0], jnp.float32), jnp.asarray(LABELS)
    marked, plain = (masked(name)(x, labels, mask) for mask in (jnp.ones(len(x), bool), None))
    np.testing.assert_allclose(marked[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(marked[1], plain[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("left", [[], [0], [0, 1], [0, 2]])  # no row, one, two labels, one label
def test_few_rows_left_give_finite_values_and_gradients(name, left):
    mask = jnp.asarray(np.isin(np.arange(10), left))
    x = jnp.asarray(features(14)[0], jnp.float32)
    value, gradient = masked(name)(x, jnp.asarray(LABELS), mask)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    if "triplet" in name or not left:
        assert value == 0
        assert not gradient.any()


def test_a_label_that_is_no_class_does_not_matter_where_the_row_is_missing():
    logits, mask = jnp.zeros((2, 3)), jnp.array([True, False])
    value, gradient = jax.value_and_grad(identity.cross_entropy)(
        logits, jnp.array([0, -1]), 0.0, mask
    )
    np.testing.assert_allclose(value, math.log(3), rtol=1e-6)
    assert np.isfinite(gradient).all()
