"""The losses of visible-infrared systems: independent numbers, and the releases' own."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.losses import centres, divergence, identity, terms
from facenet_jax.options import options_of
from facenet_jax.types import Batch, Outputs

LABELS = np.repeat(np.arange(3), 4)

# One program each: a test that runs operation by operation compiles dozens.
weighted = jax.jit(identity.weighted_triplet, static_argnames=("include_self", "epsilon"))
jeffreys = jax.jit(divergence.jeffreys, static_argnames="detach")
discrepancy = jax.jit(
    divergence.identity_discrepancy, static_argnames=("margin", "kernels", "multiplier")
)
alignment = jax.jit(centres.identity_alignment, static_argnames=("margin", "hinge", "normalise"))


def made(rows, columns, shift):
    """Features whose numbers anybody can make again."""
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
    return np.float32(np.sin(0.7 * i + 1.3 * j + 0.11 * i * j + shift))


MADE = [made(12, 6, shift) for shift in range(3)]


def shuffled(*arrays, seed=0):
    order = np.random.default_rng(seed).permutation(len(arrays[0]))
    return [array[order] for array in arrays]


@pytest.mark.parametrize(
    ("include_self", "expected"), [(True, 0.9365754846), (False, 0.9776610152)]
)
def test_weighted_triplet_of_made_features(include_self, expected):
    for features, labels in ((MADE[0], LABELS), shuffled(MADE[0], LABELS)):
        value = weighted(features, labels, include_self=include_self, epsilon=0.0)
        assert value == pytest.approx(expected, rel=2e-6)


def weighted_in_numpy(features, labels, epsilon):
    """The release's weights, a row at a time, in float64."""
    total = 0.0
    for anchor, label in zip(features, labels, strict=True):
        d = np.maximum(np.sqrt(((anchor - features) ** 2).sum(-1)), 1e-6)
        own, other = d[labels == label], d[labels != label]
        p = np.exp(own - own.max()) / (np.exp(own - own.max()).sum() + epsilon)
        shift = 0.0 if epsilon else other.min()
        n = np.exp(shift - other) / (np.exp(shift - other).sum() + epsilon)
        total += np.logaddexp(0.0, (p * own).sum() - (n * other).sum())
    return total / len(features)


@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
def test_weighted_triplet_equals_numpy_at_any_distance(scale):
    """At large distances the release and its formula part, and both are reproduced."""
    features = np.random.default_rng(3).normal(size=(12, 5)) * scale
    values = []
    for epsilon in (1e-6, 0.0):
        value = weighted(jnp.float32(features), LABELS, epsilon=epsilon)
        assert value == pytest.approx(weighted_in_numpy(features, LABELS, epsilon), rel=1e-5)
        values.append(float(value))
    assert (abs(values[0] - values[1]) > 0.1) == (scale == 20.0)


def test_weighted_triplet_leaves_out_rows_and_lonely_anchors():
    there = np.arange(12) < 8
    value = weighted(MADE[0], LABELS, present=there)
    assert value == pytest.approx(float(weighted(MADE[0][:8], LABELS[:8])), rel=1e-6)
    alone = jax.jit(jax.value_and_grad(identity.weighted_triplet), static_argnames="epsilon")
    for epsilon in (1e-6, 0.0):
        value, gradient = alone(MADE[0], np.zeros(12, int), epsilon=epsilon)  # no negative at all
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


def close(value, golden, error, name):
    """Largest difference over largest value, within the tolerance of the reference's README."""
    found = np.abs(np.asarray(value) - golden).max() / np.abs(golden).max()
    assert found <= max(2e-5, 10 * error[name]), (name, found)


def test_weighted_and_hard_triplet_equal_the_release(shared):
    folder = shared / "golden/siblings/agw/losses"
    golden, error = (
        np.load(folder / "losses.npz"),
        json.loads((folder / "float32_error.json").read_text()),
    )
    labels = jnp.asarray(golden["labels"], jnp.int32)
    functions = {
        "wrt": lambda x: identity.weighted_triplet(x, labels),
        "hard_triplet": lambda x: identity.batch_hard_triplet(x, labels, 0.3),
        "normalised": lambda x: identity.weighted_triplet(centres.unit(x), labels),
    }
    functions = {name: jax.jit(jax.value_and_grad(each)) for name, each in functions.items()}
    names = [name for name in golden.files if f"{name}_grad" in golden.files]
    assert names
    for name in names:
        kind = "normalised" if name.endswith("normalised") else name.partition("_x")[0]
        scale = float(name.partition("_x")[2].partition("_")[0])
        x = jnp.asarray(scale * golden["features"], jnp.float32)
        value, gradient = functions[kind](x)
        close(value, golden[name], error, name)
        close(gradient, golden[f"{name}_grad"], error, f"{name}_grad")


def test_half_jeffreys_of_made_logits():
    a, b = 2 * made(5, 7, 0), 2 * made(5, 7, 1)
    assert jeffreys(a, b) == pytest.approx(0.6149050166, rel=2e-6)
    half = jeffreys(a, b, present=np.arange(5) < 2)
    assert half == pytest.approx(float(jeffreys(a[:2], b[:2])), rel=1e-6)


def test_detach_says_where_mutual_learning_has_no_gradient():
    a, b = 2 * made(5, 7, 0), 2 * made(5, 7, 1)
    gradient = jax.jit(jax.grad(divergence.jeffreys, (0, 1)), static_argnums=2)
    gradient = {detach: gradient(a, b, detach) for detach in ("none", "first", "targets")}
    np.testing.assert_array_equal(gradient["first"][0], 0.0)
    np.testing.assert_allclose(gradient["first"][1], gradient["none"][1], rtol=1e-6)
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    np.testing.assert_allclose(gradient["targets"][1], (q - p) / 10, atol=1e-7)
    np.testing.assert_allclose(gradient["targets"][0], (p - q) / 10, atol=1e-7)
    assert np.abs(gradient["none"][0] - gradient["targets"][0]).max() > 1e-3
    with pytest.raises(UserError, match="'none', 'first' or 'targets'"):
        divergence.jeffreys(a, b, "all")


def test_discrepancy_of_made_features():
    a, b, labels = shuffled(MADE[0], MADE[1], LABELS)
    value = discrepancy(a, b, labels)
    assert value == pytest.approx(0.5532924837, rel=5e-6)
    for number, expected in enumerate((0.5358010485, 0.5311471695, 0.5929292233)):
        rows = number == LABELS
        value = discrepancy(MADE[0][rows], MADE[1][rows], LABELS[rows])
        assert value == pytest.approx(expected, rel=5e-6)
    assert discrepancy(a, b, labels, margin=0.56) == pytest.approx(0.5929292233 / 3, rel=5e-6)


def test_discrepancy_equals_the_release(shared):
    folder = shared / "golden/siblings/mmd"
    golden, error = (
        np.load(folder / "mmd.npz"),
        json.loads((folder / "float32_error.json").read_text()),
    )
    meta, values = (json.loads((folder / f"{n}.json").read_text()) for n in ("meta", "losses"))
    labels = jnp.repeat(jnp.arange(meta["P"]), meta["K"])

    def loss(source, target, margin, labels=labels):
        return discrepancy(
            source, target, labels, margin or 0.0, meta["kernels"], meta["multiplier"]
        )

    for label, margin in meta["margins"].items():
        both = jax.jit(jax.value_and_grad(functools.partial(loss, margin=margin), (0, 1)))
        for scale in (1, 25):
            arrays = [jnp.float32(scale * golden[side]) for side in ("source", "target")]
            value, gradients = both(*arrays)
            name = f"margin_{label}_scale_{scale}"
            close(value, values[f"mmd_{name}"], error, f"mmd_{name}")
            for side, gradient in zip(("source", "target"), gradients, strict=True):
                close(gradient, golden[f"grad_{side}_{name}"], error, f"grad_{side}_{name}")
    source, target = jnp.asarray(golden["source"]), jnp.asarray(golden["target"])
    whole = loss(source, target, None, jnp.zeros(len(source), int))
    close(whole, values["mmd_whole_batch"], error, "mmd_whole_batch")
    assert loss(source[:1] + 0 * source, source[:1] + 0 * source, None) == 0.0


def test_identity_alignment_of_made_features():
    first, second, third, labels = shuffled(*MADE, LABELS)
    value = alignment(third, [first, second], labels)
    assert value == pytest.approx(2.8712975944, rel=2e-6)
    same = [first, [first, first], labels]
    assert alignment(*same) == 0.0
    assert alignment(*same, hinge=False) == pytest.approx(-1.7799483566, rel=1e-5)
    alone = np.zeros(12, int)
    both = jax.jit(jax.value_and_grad(centres.identity_alignment))
    value, gradient = both(third, [first], alone)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def outputs(present=None):
    features = dict(zip(("visible", "infrared", "auxiliary"), MADE, strict=True))
    names = ("joint_visible", "joint_infrared", "global_visible", "global_infrared")
    logits = {name: 2 * made(12, 7, shift) for shift, name in enumerate(names)}
    return Outputs(features, logits, MADE[0], {}, present=present or {})


BATCH = Batch(None, LABELS, {})


def term(function, given=None, **parameters):
    """A term's value, in one program."""
    return jax.jit(functools.partial(function, **parameters))(given or outputs(), BATCH)


def test_terms_by_name():
    both = np.concatenate(MADE[:2]), np.concatenate([LABELS, LABELS])
    logits = outputs().logits
    pairs = [jeffreys(logits[f"joint_{m}"], logits[f"global_{m}"]) for m in ("visible", "infrared")]
    on = ("visible", "infrared")
    expected = {
        "wrt": weighted(*both),
        "jeffreys": sum(pairs) / 2,
        "mmd": discrepancy(MADE[0], MADE[2], LABELS) + discrepancy(MADE[2], MADE[1], LABELS),
        "alignment": alignment(MADE[2], MADE[:2], LABELS),
    }
    values = {
        "wrt": term(terms.wrt, on=on),
        "jeffreys": term(terms.jeffreys, on=("joint_*", "global_*")),
        "mmd": term(terms.mmd, on=("visible", "auxiliary", "infrared")),
        "alignment": term(terms.alignment, on=("auxiliary", "visible", "infrared")),
    }
    for name, value in values.items():
        assert value == pytest.approx(float(expected[name]), rel=1e-6), name
        assert terms.TERMS[name] is getattr(terms, name)
        assert "on" in options_of(terms.TERMS[name])
    apart = term(terms.wrt, on=on, together=False)
    assert apart == pytest.approx(sum(float(weighted(x, LABELS)) for x in MADE[:2]))
    hard = term(terms.triplet, on=on, margin=0.3, together=True)
    assert hard == pytest.approx(float(identity.batch_hard_triplet(*both, 0.3)), rel=1e-6)


def test_terms_with_missing_images():
    there = np.arange(12) < 8
    missing = outputs({"infrared": there})
    rows = np.concatenate([np.ones(12, bool), there])
    both = np.concatenate(MADE[:2]), np.concatenate([LABELS, LABELS])
    value = term(terms.wrt, given=missing, on=("visible", "infrared"))
    assert value == pytest.approx(float(weighted(*both, present=rows)), rel=1e-6)
    with pytest.raises(UserError, match="The loss mmd works with centres of features"):
        terms.mmd(missing, BATCH, on=("visible", "infrared"))
    with pytest.raises(UserError, match="compares pairs of logits"):
        terms.jeffreys(missing, BATCH, on=("joint_visible",))
