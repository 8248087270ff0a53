"""The centre losses with the defects of the release, beside ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.losses import centres
from facenet_jax.parity import parts
from tests.support.loss_twins import features


def sines(phase):
    i, j = np.arange(12)[:, None], np.arange(6)[None]
    return jnp.asarray(np.sin(0.7 * i + 1.3 * j + 0.11 * i * j + phase), jnp.float32)


def test_official_variants_equal_the_correct_ones_where_the_defects_cannot_show():
    """3M and cosine HC differ in defaults only; CdC's modality term counts the first identity."""
    x, labels = [sines(m) for m in range(3)], jnp.arange(12) // 4
    np.testing.assert_allclose(
        parts.mmm_official(x, 3), centres.mmm(x, labels, 3.0, normalise=False), rtol=1e-6
    )
    np.testing.assert_allclose(parts.hc_official(x, 3), centres.hc(x, labels), rtol=1e-6)
    of_modalities, of_samples = parts.cdc_official(x, 3, margin=0.0)
    first = [modality[:4] for modality in x]
    of_first = centres.cdc(first, labels[:4], 1.0) - centres.cdc(first, labels[:4], 0.0)
    np.testing.assert_allclose(of_modalities, 3 * of_first, rtol=1e-5)
    # The sample term sums over three identities where CCNet's code averages.
    np.testing.assert_allclose(of_samples, 3 * centres.cdc(x, labels, 0.0), rtol=1e-5)


def test_official_cdc_floors_each_distance():
    x = [jnp.ones((12, 5))] * 3
    (of_modalities, of_samples), gradient = (
        jax.jit(parts.cdc_official, static_argnums=1)(x, 4),
        jax.jit(jax.grad(lambda x: sum(parts.cdc_official(x, 4))))(x),
    )
    np.testing.assert_allclose([of_modalities, of_samples], [0.4, 0.3], rtol=1e-6)
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: parts.cdc_official(x, 2), "at least 3 identities"),
        (lambda x: parts.mmm_official(x, 3), "10 rows does not divide into 3"),
    ],
)
def test_batches_that_the_release_cannot_take_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call(jnp.asarray(features(), jnp.float32))
