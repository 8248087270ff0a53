"""Each loss against its float64 twin: values, gradients, hostile input, vmap, recorded values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facenet_jax.losses import centres, divergence, identity
from tests.support.loss_twins import (
    LABELS,
    cdc_twin,
    cross_entropy_twin,
    features,
    hc_twin,
    kl_twin,
    mc_twin,
    mmm_twin,
    numeric_gradient,
    triplet_twin,
)

CASES = {
    "cross_entropy": (
        lambda x: identity.cross_entropy(x[0], jnp.asarray(LABELS % 7)),
        lambda x: cross_entropy_twin(x[0], LABELS % 7, 0.0),
    ),
    "cross_entropy_smooth": (
        lambda x: identity.cross_entropy(x[0], jnp.asarray(LABELS % 7), smoothing=0.1),
        lambda x: cross_entropy_twin(x[0], LABELS % 7, 0.1),
    ),
    "triplet_soft": (
        lambda x: identity.batch_hard_triplet(x[0], jnp.asarray(LABELS), None),
        lambda x: triplet_twin(x[0], LABELS, None),
    ),
    "triplet_hinge": (
        lambda x: identity.batch_hard_triplet(x[0], jnp.asarray(LABELS), 0.3),
        lambda x: triplet_twin(x[0], LABELS, 0.3),
    ),
    "kl": (
        lambda x: jnp.sum(divergence.kl_divergence(x[0], x[1])),
        lambda x: sum(map(kl_twin, x[0], x[1])),
    ),
    **{
        f"mc_{reduction}": (
            functools.partial(divergence.multi_modal_consistency, reduction=reduction),
            functools.partial(mc_twin, reduction=reduction),
        )
        for reduction in ("sample", "batch")
    },
    **{
        f"mmm_{margin}_{normalise}": (
            lambda x, m=margin, n=normalise: centres.mmm(x, jnp.asarray(LABELS), m, n),
            lambda x, m=margin, n=normalise: mmm_twin(x, LABELS, m, n),
        )
        for margin, normalise in ((1.0, True), (3.0, False))
    },
    **{
        f"hc_{metric}": (
            lambda x, m=metric, g=margin: centres.hc(x, jnp.asarray(LABELS), m, g),
            lambda x, m=metric, g=margin: hc_twin(x, LABELS, m, g),
        )
        for metric, margin in (("cosine", 0.0), ("l2", 2.0))
    },
    **{
        f"cdc_{norm}": (
            lambda x, n=norm: centres.cdc(x, jnp.asarray(LABELS), 0.6, n),
            lambda x, n=norm: cdc_twin(x, LABELS, 0.6, n),
        )
        for norm in ("paper", "code")
    },
}


@functools.cache
def compiled(name):
    """(value, gradient) of a case as one program, compiled once per type of input."""
    return jax.jit(jax.value_and_grad(CASES[name][0]))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_equal_the_twin(name, seed):
    _, twin = CASES[name]
    x = features(seed)
    value, gradient = compiled(name)(jnp.asarray(x, jnp.float32))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, twin(x), rtol=2e-6)

    numeric = numeric_gradient(twin, x)
    assert np.abs(numeric).max() > 1e-3
    np.testing.assert_allclose(gradient, numeric, atol=2e-6 * np.abs(numeric).max())


@pytest.mark.parametrize("name", CASES)
def test_vmap_equals_a_loop(name):
    x = jnp.asarray(np.stack([features(2), features(3)]), jnp.float32)
    one_by_one = [compiled(name)(row)[0] for row in x]
    together = jax.jit(jax.vmap(CASES[name][0]))(x)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-6)


HOSTILE = {
    "huge": lambda: 1e4 * features(4),
    "equal": lambda: np.ones((3, len(LABELS), 7)),
    "zero": lambda: np.zeros((3, len(LABELS), 7)),
    "one pair equal": lambda: np.concatenate([features(5)[:, :1]] * 3 + [features(5)[:, 3:]], 1),
    "tiny": lambda: 1e-8 * features(6),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_stay_finite(name, hostile, dtype):
    x = jnp.asarray(HOSTILE[hostile](), dtype)
    value, gradient = compiled(name)(x)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_input_is_computed_in_float32(name):
    x = jnp.asarray(features(7), jnp.bfloat16)
    narrow, wide = compiled(name)(x)[0], compiled(name)(x.astype(jnp.float32))[0]
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)


@pytest.mark.parametrize("name", ["triplet_soft", "mmm_1.0_True", "hc_l2", "cdc_code"])
def test_order_of_rows_and_names_of_labels_do_not_matter(name):
    order = np.random.default_rng(8).permutation(len(LABELS))
    renamed = {2: 11, 5: 0, 7: 3, 9: 4}
    labels = jnp.asarray([renamed[label] for label in LABELS[order].tolist()])
    x = jnp.asarray(features(8), jnp.float32)
    loss = {
        "triplet_soft": lambda x, y: identity.batch_hard_triplet(x[0], y),
        "mmm_1.0_True": centres.mmm,
        "hc_l2": lambda x, y: centres.hc(x, y, "l2", 2.0),
        "cdc_code": centres.cdc,
    }[name]
    moved = jax.jit(loss)(x[:, order], labels)
    np.testing.assert_allclose(moved, compiled(name)(x)[0], rtol=1e-6)


def sines(phase):
    i, j = np.arange(12)[:, None], np.arange(6)[None]
    return jnp.asarray(np.sin(0.7 * i + 1.3 * j + 0.11 * i * j + phase), jnp.float32)


def test_recorded_values_of_the_comparison_losses():
    """Values of an independent float64 computation on a closed-form batch."""

    @jax.jit
    def values(x, labels):
        return [
            centres.cdc(x, labels, 0.6, "paper"),
            centres.cdc(x, labels, 0.0, "code"),
            centres.hc(x, labels, "l2"),
            centres.hc(x, labels),
            centres.mmm(x, labels),
            centres.mmm(x, labels, margin=3.0),
            identity.batch_hard_triplet(x[0], labels, 0.3),
            identity.batch_hard_triplet(x[0], labels),
        ]

    actual = values([sines(m) for m in range(3)], jnp.arange(12) // 4)
    expected = [
        2.5525569933, 2.7377301711, 2.0913648063, 1.2717017763,
        2.3386731168, 8.3386731168, 1.7029530528, 1.6354326959,
    ]  # fmt: skip
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_recorded_values_of_the_release(shared):
    golden = np.load(shared / "golden" / "components_official.npz")
    x = jnp.asarray(golden["triplet_features"])
    labels = jnp.asarray(golden["triplet_labels"])
    a, b = jnp.asarray(golden["logits_a"]), jnp.asarray(golden["logits_b"])
    triplet = jax.jit(jax.value_and_grad(identity.batch_hard_triplet), static_argnums=2)
    soft, soft_gradient = triplet(x, labels, None)
    hinge, hinge_gradient = triplet(x, labels, 0.3)
    actual = {
        "triplet_soft": soft,
        "triplet_soft_grad": soft_gradient,
        "triplet_margin03": hinge,
        "triplet_margin03_grad": hinge_gradient,
        # The release's kl_ab is KL(b || a).
        "kl_ab_mean": jnp.mean(divergence.kl_divergence(b, a)) / a.shape[1],
        "kl_ba_mean": jnp.mean(divergence.kl_divergence(a, b)) / a.shape[1],
        "kl_min": divergence.min_kl(a, b, "batch"),
    }
    for name, value in actual.items():
        error = np.abs(value - golden[name]).max() / np.abs(golden[name]).max()
        assert error < 2e-5, (name, error)
