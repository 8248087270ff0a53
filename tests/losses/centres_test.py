import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.losses import centres
from tests.support.loss_twins import LABELS, features


@pytest.mark.parametrize(
    ("loss", "option"), [(centres.hc, {"metric": "l1"}), (centres.cdc, {"norm": "none"})]
)
def test_options_that_do_not_exist_are_refused(loss, option):
    with pytest.raises(UserError, match=repr(*option.values())):
        loss(jnp.asarray(features(), jnp.float32), jnp.asarray(LABELS), **option)


def sines(shift, n=12, d=6):
    i, j = np.arange(n)[:, None], np.arange(d)[None]
    return jnp.asarray(np.sin(0.7 * i + 1.3 * j + 0.11 * i * j + shift), jnp.float32)


BATCH, IDENTITY = [sines(m) for m in range(3)], jnp.arange(12) // 4


@pytest.mark.parametrize(
    ("norm", "of_samples", "of_modalities"),
    [("paper", 2.0532976283, 0.8320989415), ("code", 2.7377301711, 1.1094652554)],
)
def test_the_two_halves_of_cdc_alone(norm, of_samples, of_modalities):
    """L_S and L_M of an independent float64 computation; code / paper is 4 / P."""
    halves = [(0.0, 1.0, of_samples), (1.0, 0.0, of_modalities)]
    for alpha, sample_weight, expected in halves:
        value = centres.cdc(BATCH, IDENTITY, alpha, norm, sample_weight)
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_hc_over_all_pairs_is_the_modality_half_of_cdc():
    """L_M is 1 / (2 M (M - 1)) of the squared distances of all pairs."""
    pairs = centres.hc(BATCH, IDENTITY, "l2", pairs="all")
    np.testing.assert_allclose(pairs / 12, 0.8320989415, rtol=1e-6)
    two = sum(centres.hc([BATCH[a], BATCH[b]], IDENTITY, "l2") for a, b in ((0, 1), (0, 2), (1, 2)))
    np.testing.assert_allclose(pairs, two, rtol=1e-6)
