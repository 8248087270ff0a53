import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models
from facenet_jax.embed import mixed_parts
from facenet_jax.models.facenet import FCE, MFMP, FlareHead
from facenet_jax.models.trunk import LastBlock
from tests.support import tiny_run as tiny

KEY = jax.random.key(0)


def mfmp(**changes):
    fields = {
        "heads": 1,
        "head_width": 6,
        "split": "heads",
        "norms": 1,
        "norm_epsilon": 1e-6,
        "dropout": 0.0,
        "initializer": "zero_out",
        "dtype": jnp.float32,
    }
    return MFMP(**fields | changes)


def drawn(layer, a, b):
    return tiny.draw(jax.eval_shape(lambda: layer.init(KEY, a, b, False)))


def softmax(x):
    weight = np.exp(x - x.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def mfmp_in_numpy(params, a, b, *, heads, split, norms, epsilon):
    """Eq. 1 and 2 in float64, one sample and one head at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n, out = a.shape[1], []
    for own, context in zip(a, b, strict=True):
        query = own
        for name in ("norm", "norm2")[:norms]:
            query = (query - query.mean(-1, keepdims=True)) / np.sqrt(
                query.var(-1, keepdims=True) + epsilon
            ) * p[name]["scale"] + p[name]["bias"]
        q, k, v = (
            x @ p[name]["kernel"]
            for name, x in (("query", query), ("key", context), ("value", context))
        )
        width = q.shape[-1] // heads
        y = np.empty_like(q)
        for head in range(heads):
            if split == "windows":  # torch: .view(heads, n, width) of memory [n, heads * width]
                qh, kh, vh = (x.reshape(heads, n, width)[head] for x in (q, k, v))
                part = y.reshape(heads, n, width)[head]
            else:
                columns = slice(head * width, (head + 1) * width)
                qh, kh, vh, part = q[:, columns], k[:, columns], v[:, columns], y[:, columns]
            part[:] = softmax(qh @ kh.T / width**0.5) @ vh
        out.append(own + y @ p["out"]["kernel"] + p["out"]["bias"])
    return np.stack(out)


@pytest.mark.parametrize("split", ["heads", "windows"])
@pytest.mark.parametrize(("heads", "norms", "epsilon"), [(1, 1, 1e-6), (4, 2, 1e-5)])
def test_mfmp_equals_numpy(split, heads, norms, epsilon):
    a, b = tiny.noise(2, 12, 5), tiny.noise(2, 12, 5, seed=1)
    layer = mfmp(heads=heads, split=split, norms=norms, norm_epsilon=epsilon)
    variables = drawn(layer, a, b)
    expected = mfmp_in_numpy(
        variables["params"], a, b, heads=heads, split=split, norms=norms, epsilon=epsilon
    )
    got = layer.apply(variables, a, b, False)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("split", "touched"), [("windows", np.arange(40, 48)), ("heads", np.arange(128))]
)
def test_a_window_sees_its_own_context_tokens_only(split, touched):
    """The release's reshape: of 128 tokens and 16 heads, context token 40 reaches 40..47."""
    a, b = tiny.noise(1, 128, 8), tiny.noise(1, 128, 8, seed=1)
    layer = mfmp(heads=16, head_width=8, split=split)
    variables = drawn(layer, a, b)
    before = layer.apply(variables, a, b, False)
    after = layer.apply(variables, a, b.at[0, 40].add(3.0), False)
    changed = np.flatnonzero(np.abs(after - before).max(axis=(0, 2)) > 1e-6)
    np.testing.assert_array_equal(changed, touched)


def test_zero_out_starts_as_the_identity_and_torch_does_not():
    a, b = tiny.noise(2, 4, 5), tiny.noise(2, 4, 5, seed=1)
    layer = mfmp()
    np.testing.assert_array_equal(layer.apply(layer.init(KEY, a, b, False), a, b, False), a)
    layer = mfmp(initializer="torch", heads=3)
    params = layer.init(KEY, a, b, False)["params"]
    assert not np.allclose(layer.apply({"params": params}, a, b, False), a, atol=1e-3)
    for name, fan_in in (("query", 5), ("key", 5), ("value", 5), ("out", 18)):
        largest = np.abs(params[name]["kernel"]).max()
        assert 0.8 * fan_in**-0.5 < largest <= fan_in**-0.5


def test_mfmp_dropout_acts_in_training_alone():
    a, b = tiny.noise(8, 16, 5), tiny.noise(8, 16, 5, seed=1)
    layer = mfmp(dropout=0.5)
    variables = drawn(layer, a, b)
    update = np.asarray(layer.apply(variables, a, b, False)) - a
    noisy = layer.apply(variables, a, b, True, rngs={"dropout": KEY}) - a
    dropped = np.abs(noisy) < 1e-6
    assert abs(dropped.mean() - 0.5) < 0.07
    np.testing.assert_allclose(noisy[~dropped], 2 * update[~dropped], rtol=1e-3, atol=1e-5)


DELTA = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)  # of R and N


@pytest.mark.parametrize("mask", ["soft", "hard", "straight_through"])
@pytest.mark.parametrize("keep", ["own", "near_infrared"])
@pytest.mark.parametrize("gate", ["sample", "batch"])
def test_fce_equals_numpy(mask, keep, gate):
    """Paper (own, sample) and release (hard, near_infrared, batch) and what lies between."""
    own, thermal = tiny.noise(2, 4, 6, 5), tiny.noise(4, 6, 5, seed=1)
    predicted = tiny.noise(2, 4, 5, 5, seed=2)
    got = FCE(mask, 0.2, keep, gate).apply({}, own, thermal, predicted, jnp.asarray(DELTA))

    x, t, m = np.asarray(own), np.asarray(thermal), np.asarray(predicted) + np.float32(0.2)
    g = 1 / (1 + np.exp(-m)) if mask == "soft" else (m > 0).astype(np.float32)
    expected = x.copy()
    for modality in (0, 1):
        for sample in range(4):
            if DELTA[sample, modality] if gate == "sample" else DELTA.any():
                kept = 1 - g[modality if keep == "own" else 1, sample]
                expected[modality, sample, 1:] = g[modality, sample] * t[sample, 1:] + (
                    kept * x[modality, sample, 1:]
                )
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_a_batch_without_flare_passes_unchanged():
    own, thermal = tiny.noise(2, 4, 6, 5), tiny.noise(4, 6, 5, seed=1)
    for gate in ("sample", "batch"):
        layer = FCE("soft", 0.0, "own", gate)
        got = layer.apply({}, own, thermal, tiny.noise(2, 4, 5, 5), jnp.zeros((4, 2), bool))
        np.testing.assert_array_equal(got, own)


@pytest.mark.parametrize("mask", ["soft", "hard", "straight_through"])
def test_only_a_differentiable_mask_teaches_mfmp(mask):
    own, thermal = tiny.noise(2, 4, 6, 5), tiny.noise(4, 6, 5, seed=1)
    predicted = tiny.noise(2, 4, 5, 5, seed=2)
    layer = FCE(mask, 0.0, "own", "sample")

    def objective(predicted):
        return jnp.sum(layer.apply({}, own, thermal, predicted, jnp.asarray(DELTA)))

    gradient = np.asarray(jax.grad(objective)(predicted))
    s = 1 / (1 + np.exp(-np.asarray(predicted)))
    expected = s * (1 - s) * np.asarray(thermal[None] - own)[:, :, 1:] * DELTA.T[:, :, None, None]
    if mask == "hard":
        expected = np.zeros_like(expected)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_the_flare_head_reads_class_token_and_mask():
    """Its logits depend on every token, and its parameters lie where checkpoints expect them."""
    last = functools.partial(LastBlock, 2, 0.0, jnp.float32, "xla")
    layer, tokens = FlareHead(last), tiny.noise(4, 5, 8)
    variables = tiny.draw(jax.eval_shape(lambda: layer.init(KEY, tokens, False)))
    assert sorted(variables["params"]) == ["block", "classifier", "neck", "norm"]

    def logits(tokens):
        return layer.apply(variables, tokens, False)

    assert logits(tokens).shape == (4, 2)
    sensitivity = jax.jit(jax.grad(lambda tokens: logits(tokens).sum()))(tokens)
    assert (np.abs(sensitivity).max(axis=-1) > 0).all()


def test_which_parts_of_an_embedding_hold_tokens_of_other_modalities():
    names = ("visible", "near_infrared", "thermal")
    for enabled, mixed in ((True, names[:2]), (False, ())):
        c = tiny.config(model__fce__enabled=enabled)
        model = models.build(c.model, tiny.SPEC)
        assert mixed_parts(model, names) == mixed
        assert mixed_parts(model, names[:2]) == ()  # without thermal nothing is replaced


def test_a_gate_that_looks_at_the_batch_asks_for_its_size():
    """Else embeddings would depend on the number of devices."""
    c = tiny.config(model__fce__gate="batch", evaluate__batch=0)
    with pytest.raises(UserError, match=r"config.evaluate.batch, which is 0; set it"):
        configs.check(c)
    c.evaluate.batch = 64
    configs.check(c)
    c.model.fce.gate, c.evaluate.batch = "sample", 0
    configs.check(c)
