"""Each loss against a slow, obvious float64 twin: values, gradients, hostile input, the release."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import losses

# Unordered, unequal groups, one identity with a single sample.
LABELS = np.array([5, 2, 5, 9, 2, 2, 7, 5, 9, 2], np.int32)


def features(seed=0, modalities=3, batch=10, width=7):
    return np.random.default_rng(seed).normal(size=(modalities, batch, width))


# Twins: loops, float64, nothing shared with the code under test.


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


CASES = {
    "cross_entropy": (
        lambda x: losses.cross_entropy(x[0], jnp.asarray(LABELS % 7)),
        lambda x: cross_entropy_twin(x[0], LABELS % 7, 0.0),
    ),
    "cross_entropy_smooth": (
        lambda x: losses.cross_entropy(x[0], jnp.asarray(LABELS % 7), smoothing=0.1),
        lambda x: cross_entropy_twin(x[0], LABELS % 7, 0.1),
    ),
    "triplet_soft": (
        lambda x: losses.batch_hard_triplet(x[0], jnp.asarray(LABELS), None),
        lambda x: triplet_twin(x[0], LABELS, None),
    ),
    "triplet_hinge": (
        lambda x: losses.batch_hard_triplet(x[0], jnp.asarray(LABELS), 0.3),
        lambda x: triplet_twin(x[0], LABELS, 0.3),
    ),
    "kl": (
        lambda x: jnp.sum(losses.kl_divergence(x[0], x[1])),
        lambda x: sum(map(kl_twin, x[0], x[1])),
    ),
    **{
        f"mc_{reduction}": (
            functools.partial(losses.multi_modal_consistency, reduction=reduction),
            functools.partial(mc_twin, reduction=reduction),
        )
        for reduction in ("sample", "batch")
    },
    **{
        f"mmm_{margin}_{normalise}": (
            lambda x, m=margin, n=normalise: losses.mmm(x, jnp.asarray(LABELS), m, n),
            lambda x, m=margin, n=normalise: mmm_twin(x, LABELS, m, n),
        )
        for margin, normalise in ((1.0, True), (3.0, False))
    },
    **{
        f"hc_{metric}": (
            lambda x, m=metric, g=margin: losses.hc(x, jnp.asarray(LABELS), m, g),
            lambda x, m=metric, g=margin: hc_twin(x, LABELS, m, g),
        )
        for metric, margin in (("cosine", 0.0), ("l2", 2.0))
    },
    **{
        f"cdc_{norm}": (
            lambda x, n=norm: losses.cdc(x, jnp.asarray(LABELS), 0.6, n),
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

    numeric = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        numeric[index] = (twin(x + step) - twin(x - step)) / 2e-5
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
        "triplet_soft": lambda x, y: losses.batch_hard_triplet(x[0], y),
        "mmm_1.0_True": losses.mmm,
        "hc_l2": lambda x, y: losses.hc(x, y, "l2", 2.0),
        "cdc_code": losses.cdc,
    }[name]
    np.testing.assert_allclose(loss(x[:, order], labels), compiled(name)(x)[0], rtol=1e-6)


def test_cross_entropy_of_a_label_that_is_no_class_is_nan():
    logits = jnp.zeros((2, 3))
    assert np.isnan(losses.cross_entropy(logits, jnp.array([0, 3])))
    assert np.isnan(losses.cross_entropy(logits, jnp.array([0, -1])))


def test_cross_entropy_of_huge_logits_is_the_gap():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert losses.cross_entropy(logits, jnp.array([2])) == 2e4
    assert losses.cross_entropy(logits, jnp.array([0])) == 0.0


@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_without_a_valid_anchor_is_zero_without_gradient(labels, margin):
    x = jnp.asarray(features(9, batch=4)[0], jnp.float32)
    value, gradient = jax.value_and_grad(losses.batch_hard_triplet)(x, jnp.array(labels), margin)
    assert value == 0.0
    assert not gradient.any()


def test_triplet_anchor_without_positive_has_no_gradient_of_its_own():
    """The single sample lies far off: it is nobody's nearest negative, so nothing moves it."""
    x = jnp.array([[0.0], [1.0], [3.0], [4.0], [90.0]])
    gradient = jax.grad(losses.batch_hard_triplet)(x, jnp.array([0, 0, 1, 1, 2]))
    assert gradient[4] == 0.0
    assert (gradient[:4] != 0.0).all()


def test_triplet_of_equal_features_has_zero_gradient():
    x = jnp.full((6, 5), 3.7)
    value, gradient = jax.value_and_grad(losses.batch_hard_triplet)(x, jnp.arange(6) // 2)
    np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
    assert not gradient.any()


def test_triplet_keeps_its_digits_far_from_the_origin():
    x = np.round(features(10)[0] * 64) / 64
    near = losses.batch_hard_triplet(jnp.asarray(x, jnp.float32), jnp.asarray(LABELS))
    far = losses.batch_hard_triplet(jnp.asarray(x + 4096, jnp.float32), jnp.asarray(LABELS))
    np.testing.assert_allclose(far, near, rtol=1e-6)


def test_kl_keeps_what_a_softmax_would_lose():
    """log(softmax) underflows beyond a gap of about 103; log-softmax does not."""
    a, b = jnp.array([[0.0, -200.0]]), jnp.array([[-200.0, 0.0]])
    np.testing.assert_allclose(losses.kl_divergence(a, b), [200.0], rtol=1e-6)


def test_batch_reduction_has_gradient_of_the_smaller_direction_only():
    a, b = jnp.asarray(features(11), jnp.float32)[:2]
    directions = [
        lambda a, b: jnp.mean(losses.kl_divergence(a, b)) / 7,
        lambda a, b: jnp.mean(losses.kl_divergence(b, a)) / 7,
    ]
    smaller = min(directions, key=lambda direction: float(direction(a, b)))
    expected = jax.grad(smaller, argnums=(0, 1))(a, b)
    actual = jax.grad(functools.partial(losses.min_kl, reduction="batch"), argnums=(0, 1))(a, b)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_of_equal_directions_the_reverse_one_counts(reduction):
    """Mirrored two-class logits: KL(a || b) equals KL(b || a), their gradients differ."""
    a, b = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]])
    scale = 1 if reduction == "sample" else 2
    reverse = jax.grad(lambda a: jnp.sum(losses.kl_divergence(b, a)) / scale)(a)
    actual = jax.grad(lambda a: losses.min_kl(a, b, reduction))(a)
    np.testing.assert_allclose(actual, reverse, rtol=1e-6)


def sines(phase):
    i, j = np.arange(12)[:, None], np.arange(6)[None]
    return jnp.asarray(np.sin(0.7 * i + 1.3 * j + 0.11 * i * j + phase), jnp.float32)


def test_recorded_values_of_the_comparison_losses():
    """Values of an independent float64 computation on a closed-form batch."""

    @jax.jit
    def values(x, labels):
        return [
            losses.cdc(x, labels, 0.6, "paper"),
            losses.cdc(x, labels, 0.0, "code"),
            losses.hc(x, labels, "l2"),
            losses.hc(x, labels),
            losses.mmm(x, labels),
            losses.mmm(x, labels, margin=3.0),
            losses.batch_hard_triplet(x[0], labels, 0.3),
            losses.batch_hard_triplet(x[0], labels),
        ]

    actual = values([sines(m) for m in range(3)], jnp.arange(12) // 4)
    expected = [
        2.5525569933, 2.7377301711, 2.0913648063, 1.2717017763,
        2.3386731168, 8.3386731168, 1.7029530528, 1.6354326959,
    ]  # fmt: skip
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_official_variants_equal_the_correct_ones_where_the_defects_cannot_show():
    """3M and cosine HC differ in defaults only; CdC's modality term counts the first identity."""
    x, labels = [sines(m) for m in range(3)], jnp.arange(12) // 4
    np.testing.assert_allclose(
        losses.mmm_official(x, 3), losses.mmm(x, labels, 3.0, normalise=False), rtol=1e-6
    )
    np.testing.assert_allclose(losses.hc_official(x, 3), losses.hc(x, labels), rtol=1e-6)
    of_modalities, of_samples = losses.cdc_official(x, 3, margin=0.0)
    first = [modality[:4] for modality in x]
    of_first = losses.cdc(first, labels[:4], 1.0) - losses.cdc(first, labels[:4], 0.0)
    np.testing.assert_allclose(of_modalities, 3 * of_first, rtol=1e-5)
    # The sample term sums over three identities where CCNet's code averages.
    np.testing.assert_allclose(of_samples, 3 * losses.cdc(x, labels, 0.0), rtol=1e-5)


def test_official_cdc_floors_each_distance():
    x = [jnp.ones((12, 5))] * 3
    (of_modalities, of_samples), gradient = (
        jax.jit(losses.cdc_official, static_argnums=1)(x, 4),
        jax.jit(jax.grad(lambda x: sum(losses.cdc_official(x, 4))))(x),
    )
    np.testing.assert_allclose([of_modalities, of_samples], [0.4, 0.3], rtol=1e-6)
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: losses.min_kl(x[0], x[1], "mean"), "'mean'"),
        (lambda x: losses.hc(x, jnp.asarray(LABELS), "l1"), "'l1'"),
        (lambda x: losses.cdc(x, jnp.asarray(LABELS), norm="none"), "'none'"),
        (lambda x: losses.cdc_official(x, 2), "at least 3 identities"),
        (lambda x: losses.mmm_official(x, 3), "10 rows does not divide into 3"),
    ],
)
def test_options_that_do_not_exist_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call(jnp.asarray(features(), jnp.float32))


def test_recorded_values_of_the_release(shared):
    golden = np.load(shared / "golden" / "components_official.npz")
    x = jnp.asarray(golden["triplet_features"])
    labels = jnp.asarray(golden["triplet_labels"])
    stack = [x, jnp.asarray(golden["features_2"]), jnp.asarray(golden["features_3"])]
    a, b = jnp.asarray(golden["logits_a"]), jnp.asarray(golden["logits_b"])
    triplet = jax.jit(jax.value_and_grad(losses.batch_hard_triplet), static_argnums=2)
    soft, soft_gradient = triplet(x, labels, None)
    hinge, hinge_gradient = triplet(x, labels, 0.3)
    official = jax.jit(
        lambda stack: {
            "loss_3m_margin3": losses.mmm_official(stack, 4),
            "loss_3m_margin1": losses.mmm_official(stack, 4, margin=1.0),
            "loss_hc_cos": losses.hc_official(stack, 4),
            "loss_hc_l2_margin10": losses.hc_official(stack, 4, "l2"),
            "loss_cdc": sum(losses.cdc_official(stack, 4)),
            "loss_cdc_modality": losses.cdc_official(stack, 4)[0],
            "loss_cdc_sample": losses.cdc_official(stack, 4)[1],
        }
    )
    actual = {
        "triplet_soft": soft,
        "triplet_soft_grad": soft_gradient,
        "triplet_margin03": hinge,
        "triplet_margin03_grad": hinge_gradient,
        **official(stack),
        # The release's kl_ab is KL(b || a).
        "kl_ab_mean": jnp.mean(losses.kl_divergence(b, a)) / a.shape[1],
        "kl_ba_mean": jnp.mean(losses.kl_divergence(a, b)) / a.shape[1],
        "kl_min": losses.min_kl(a, b, "batch"),
    }
    for name, value in actual.items():
        error = np.abs(value - golden[name]).max() / np.abs(golden[name]).max()
        assert error < 2e-5, (name, error)
