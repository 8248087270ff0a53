import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.losses import divergence
from tests.support.loss_twins import features, min_kl_twin, numeric_gradient


def test_kl_keeps_what_a_softmax_would_lose():
    """log(softmax) underflows beyond a gap of about 103; log-softmax does not."""
    a, b = jnp.array([[0.0, -200.0]]), jnp.array([[-200.0, 0.0]])
    np.testing.assert_allclose(divergence.kl_divergence(a, b), [200.0], rtol=1e-6)


def test_batch_reduction_has_gradient_of_the_smaller_direction_only():
    a, b = jnp.asarray(features(11), jnp.float32)[:2]
    directions = [
        lambda a, b: jnp.mean(divergence.kl_divergence(a, b)) / 7,
        lambda a, b: jnp.mean(divergence.kl_divergence(b, a)) / 7,
    ]
    smaller = min(directions, key=lambda direction: float(direction(a, b)))
    expected = jax.grad(smaller, argnums=(0, 1))(a, b)
    actual = jax.grad(functools.partial(divergence.min_kl, reduction="batch"), argnums=(0, 1))(a, b)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_of_equal_directions_the_reverse_one_counts(reduction):
    """Mirrored two-class logits: KL(a || b) equals KL(b || a), their gradients differ."""
    a, b = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]])
    scale = 1 if reduction == "sample" else 2
    reverse = jax.grad(lambda a: jnp.sum(divergence.kl_divergence(b, a)) / scale)(a)
    actual = jax.grad(lambda a: divergence.min_kl(a, b, reduction))(a)
    np.testing.assert_allclose(actual, reverse, rtol=1e-6)


def test_a_reduction_that_does_not_exist_is_refused():
    x = jnp.asarray(features(), jnp.float32)
    with pytest.raises(UserError, match="'mean'"):
        divergence.min_kl(x[0], x[1], "mean")


def mc_of_neighbours(x, reduction, present=None):
    """The sum over neighbouring modalities, of the rows that have both."""
    total = 0.0
    for i in range(len(x) - 1):
        rows = slice(None) if present is None else present[i] & present[i + 1]
        a, b = x[i][rows], x[i + 1][rows]
        total += min_kl_twin(a, b, reduction) if len(a) else 0.0
    return total


PRESENT = np.array([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0]])
PRESENT = PRESENT.astype(bool)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["sample", "batch"])
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_consistency_of_any_number_of_modalities(modalities, reduction, masked):
    x = features(15, modalities, batch=6, width=4)
    present = PRESENT[:modalities] if masked else None

    def loss(x):
        mask = None if present is None else jnp.asarray(present)
        return divergence.multi_modal_consistency(x, reduction, mask)

    def twin(x):
        return mc_of_neighbours(x, reduction, present)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, twin(x), rtol=2e-6)
    expected = numeric_gradient(twin, x)
    np.testing.assert_allclose(gradient, expected, atol=2e-6 * np.abs(expected).max())
    if masked:
        assert not np.asarray(gradient)[~present].any()


@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_min_kl_of_the_rows_that_are_there(reduction):
    a, b = features(16, 2, batch=6, width=4)
    rows = PRESENT[0]
    expected = min_kl_twin(a[rows], b[rows], reduction)
    a, b, mask = (jnp.asarray(x) for x in (np.float32(a), np.float32(b), rows))
    np.testing.assert_allclose(divergence.min_kl(a, b, reduction, mask), expected, rtol=2e-6)


@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_no_row_left_is_zero_without_gradient(reduction):
    x = jnp.asarray(features(17), jnp.float32)
    nobody = jnp.zeros(x.shape[:2], bool)
    loss = functools.partial(divergence.multi_modal_consistency, reduction=reduction)
    value, gradient = jax.jit(jax.value_and_grad(loss))(x, present=nobody)
    assert value == 0
    assert not gradient.any()
