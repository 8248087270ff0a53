import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facenet_jax.models.layers import (
    BatchNorm,
    Block,
    Dense,
    LayerNorm,
    apart,
    attention,
    drop_path,
    gelu,
    joined,
)
from facenet_jax.runtime import fit
from tests.support import tiny_run as tiny
from tests.support.tiny_run import noise

KEY = jax.random.key(0)


def shaken(layer, *arguments):
    """Random variables of a layer."""
    return tiny.draw(jax.eval_shape(lambda: layer.init(KEY, *arguments)))


def test_dense_computes_a_slice_of_its_columns():
    layer, x = Dense(6), noise(2, 3, 4)
    variables = shaken(layer, x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    expected = np.asarray(x) @ np.asarray(kernel) + np.asarray(bias)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6)
    part = layer.apply(variables, x, slice(2, 5))
    np.testing.assert_allclose(part, expected[..., 2:5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "shapes", "more"),
    [
        ("__call__", [(2, 1, 8), (2, 5, 8)], ()),
        ("to_heads", [(2, 1, 8), (2, 5, 8)], (2,)),
        ("from_heads", [(2, 4, 1, 2), (2, 4, 5, 2)], ()),
    ],
)
def test_dense_takes_several_arrays_and_casts_its_kernel_once(method, shapes, more):
    """Else its gradients would be summed over the devices of a TPU one by one, in bfloat16."""
    layer, parts = Dense(8, dtype=jnp.bfloat16), [noise(*shape) for shape in shapes]
    variables = shaken(layer, parts[1].reshape(-1, 8))
    run = functools.partial(layer.apply, method=method)
    for found, part in zip(run(variables, parts, *more), parts, strict=True):
        np.testing.assert_array_equal(found, run(variables, part, *more))

    def total(variables):
        return sum(jnp.sum(y.astype(jnp.float32)) for y in run(variables, parts, *more))

    def casts(function):
        made = fit.equations(jax.make_jaxpr(function)(variables).jaxpr)
        kinds = (x for x in made if x.primitive.name == "convert_element_type")
        return sum(x.invars[0].aval.size == 64 for x in kinds)

    assert casts(total) == 1
    assert casts(jax.grad(total)) == 2  # and one of its gradient, to float32


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_layer_norm_equals_numpy_far_from_zero_mean(epsilon):
    """A mean 1000 times the spread: E[x^2] - E[x]^2 in float32 would keep one digit."""
    layer, x = LayerNorm(epsilon), noise(3, 5, 16, scale=0.01) + 10.0
    variables = shaken(layer, x)
    y = np.asarray(x, np.float64)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + epsilon)
    expected = y * np.asarray(variables["params"]["scale"]) + np.asarray(
        variables["params"]["bias"]
    )
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-3, atol=1e-3)
    assert layer.apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_batch_norm_keeps_statistics_as_torch_does():
    layer, x = BatchNorm(), noise(6, 5) * 3 + 1
    variables = shaken(layer, x, True)
    scale = np.asarray(variables["params"]["scale"])
    stats = {name: np.asarray(v) for name, v in variables["batch_stats"].items()}

    y, changed = layer.apply(variables, x, True, mutable=["batch_stats"])
    x = np.asarray(x)
    mean, biased, unbiased = x.mean(0), x.var(0), x.var(0, ddof=1)
    expected = (x - mean) / np.sqrt(biased + 1e-5) * scale + stats["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    changed = changed["batch_stats"]
    np.testing.assert_array_equal(changed["bias"], stats["bias"])  # frozen
    np.testing.assert_allclose(changed["mean"], 0.9 * stats["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(changed["var"], 0.9 * stats["var"] + 0.1 * unbiased, rtol=1e-5)

    y = layer.apply(variables, jnp.asarray(x), False)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale + stats["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_one_sample_is_finite():
    layer, x = BatchNorm(), noise(1, 5)
    y, changed = layer.apply(shaken(layer, x, True), x, True, mutable=["batch_stats"])
    assert np.isfinite(y).all()
    assert np.isfinite(changed["batch_stats"]["var"]).all()


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_leaves_missing_rows_out_of_its_statistics(train):
    """As the layer on the other rows alone; with none of them the statistics stay as they are."""
    layer, x = BatchNorm(), noise(6, 5) * 3 + 1
    variables = shaken(layer, x, True)
    present = np.array([1, 0, 1, 1, 0, 1], bool)
    apply = jax.jit(
        lambda x, present: layer.apply(variables, x, train, present, mutable=["batch_stats"])
    )
    y, changed = apply(x.at[1].set(1e4), jnp.asarray(present))
    expected, statistics = apply(x[present], None)
    np.testing.assert_allclose(y[present], expected, rtol=1e-4, atol=1e-5)
    for name, value in changed["batch_stats"].items():
        np.testing.assert_allclose(value, statistics["batch_stats"][name], rtol=1e-5, atol=1e-6)
    y, changed = apply(x, jnp.zeros(6, bool))
    assert np.isfinite(y).all()
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])


def test_drop_path_zeroes_whole_samples_and_scales_the_others():
    x = noise(2000, 3, 2)
    y = np.asarray(drop_path(KEY, x, jnp.float32(0.25)))
    dropped = (y == 0).all(axis=(1, 2))
    np.testing.assert_array_equal(y[~dropped], np.asarray(x)[~dropped] * np.float32(1 / 0.75))
    assert abs(dropped.mean() - 0.25) < 3.5 * (0.25 * 0.75 / 2000) ** 0.5
    np.testing.assert_array_equal(drop_path(KEY, x, jnp.float32(0.0)), x)


def block(**options):
    return Block(**{"heads": 2, "drop": False, "dtype": jnp.float32, "attention": "xla"} | options)


@functools.partial(jax.jit, static_argnums=(0, 3))
def run_block(layer, variables, x, train=False):
    parts = layer.apply(variables, apart(x), jnp.float32(0.3), train, rngs={"dropout": KEY})
    return joined(parts)


def block_in_numpy(params, x, heads):
    """A pre-norm block in float64."""
    erf = np.vectorize(math.erf)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, scale, bias):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * (
            scale
        ) + bias

    def dense(x, kernel, bias):
        return x @ kernel + bias

    batch, n, width = x.shape
    head = width // heads
    qkv = dense(norm(x, **p["norm1"]), **p["qkv"]).reshape(batch, n, 3, heads, head)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    score = np.einsum("bqhd,bkhd->bhqk", q, k) / head**0.5
    weight = np.exp(score - score.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    x = x + dense(np.einsum("bhqk,bkhd->bqhd", weight, v).reshape(batch, n, width), **p["proj"])
    y = dense(norm(x, **p["norm2"]), **p["fc1"])
    return x + dense(y * 0.5 * (1 + erf(y / 2**0.5)), **p["fc2"])


def test_block_equals_numpy_with_exact_gelu():
    layer, x = block(), noise(2, 5, 8)
    variables = shaken(layer, [x], jnp.float32(0), False)
    expected = block_in_numpy(variables["params"], np.asarray(x, np.float64), 2)
    np.testing.assert_allclose(run_block(layer, variables, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_class_only_block_gives_the_class_token_and_gradients_of_the_whole_block(train):
    """Drop path included: it acts on samples, so both forms draw the same mask."""
    layer, short, x = block(drop=True), block(drop=True, class_only=True), noise(4, 5, 8)
    variables = shaken(layer, [x], jnp.float32(0), False)

    def first(layer):
        return lambda v: jnp.sum(jnp.sin(run_block(layer, v, x, train)[:, 0]))

    np.testing.assert_allclose(
        run_block(short, variables, x, train)[:, 0],
        run_block(layer, variables, x, train)[:, 0],
        rtol=1e-5,
        atol=1e-6,
    )
    whole, part = (jax.jit(jax.grad(first(form)))(variables) for form in (layer, short))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, part)


def test_bfloat16_products_leave_the_residual_stream_float32():
    x = noise(2, 5, 8, scale=1000.0)
    layer, exact = block(dtype=jnp.bfloat16), block()
    variables = shaken(exact, [x], jnp.float32(0), False)
    with jax.numpy_dtype_promotion("standard"):  # which jax.nn.dot_product_attention needs
        y = run_block(layer, variables, x)
    assert y.dtype == jnp.float32
    # The update is small against x; a stream kept in bfloat16 would be off by up to 2 here.
    np.testing.assert_allclose(y, run_block(exact, variables, x), rtol=0, atol=0.05)


def test_layer_norms_of_bfloat16_blocks_are_exact_at_a_mean_of_ten_deviations():
    """Their one pass loses digits there; published ViTs have a mean below a deviation."""
    x = noise(2, 5, 64) + 10.0
    layer, exact = block(dtype=jnp.bfloat16), block()
    variables = shaken(exact, [x], jnp.float32(0), False)
    _, one = layer.apply(variables, [x], jnp.float32(0), False, capture_intermediates=True)
    _, two = exact.apply(variables, [x], jnp.float32(0), False, capture_intermediates=True)
    one, two = (found["intermediates"]["norm1"]["__call__"][0] for found in (one, two))
    assert np.abs(one - two).max() > 0  # so that the pass is really another
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)  # 4.5e-5 was seen, of values up to 6


def test_dense_orders_heads_inside_its_product():
    """The parameters are those of the plain layer: heads are runs of columns."""
    layer, x = Dense(12), noise(2, 5, 8)
    variables = shaken(layer, x)
    plain = layer.apply(variables, x, slice(4, 12)).reshape(2, 5, 2, 4).swapaxes(1, 2)
    heads = layer.apply(variables, x, 2, slice(4, 12), method="to_heads")
    np.testing.assert_allclose(heads, plain, rtol=1e-5, atol=1e-6)
    x = noise(2, 2, 5, 4)
    plain = layer.apply(variables, x.swapaxes(1, 2).reshape(2, 5, 8))
    back = layer.apply(variables, x, method="from_heads")
    np.testing.assert_allclose(back, plain, rtol=1e-5, atol=1e-6)


def test_a_block_does_not_see_how_its_tokens_are_divided():
    layer, x = block(drop=True), noise(4, 5, 8)
    variables = shaken(layer, [x], jnp.float32(0), False)
    for train in (False, True):
        whole = layer.apply(variables, [x], jnp.float32(0.3), train, rngs={"dropout": KEY})[0]
        np.testing.assert_allclose(
            run_block(layer, variables, x, train), whole, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("ends", [(), (1,), (1, 4)])
def test_attention_is_that_of_jax(ends):
    """Values and gradients, in float32, with the tokens in one, two and three parts."""
    q, k, v, g = (tiny.noise(2, 9, 3, 8, seed=i) for i in range(4))

    def ours(q, k, v):
        parts = [jnp.split(x.swapaxes(1, 2), ends, axis=2) for x in (q, k, v)]
        return jnp.concatenate(attention(*parts), axis=2).swapaxes(1, 2)

    @functools.partial(jax.jit, static_argnums=0)
    def both(function, *inputs):
        out, vjp = jax.vjp(function, *inputs)
        return out, vjp(g)

    values, gradients = both(ours, q, k, v)
    expected, expected_gradients = both(jax.nn.dot_product_attention, q, k, v)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


def test_attention_multiplies_bfloat16_alone_and_sums_scores_in_float32():
    q, k, v, g = (tiny.noise(2, 3, 9, 8, seed=i) for i in range(4))

    def one(q, k, v):
        return attention([q], [k], [v])[0]

    def products(function, *inputs):
        found = fit.equations(jax.make_jaxpr(function)(*inputs).jaxpr)
        return [x for x in found if x.primitive.name == "dot_general"]

    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    _, vjp = jax.vjp(one, *half)
    forward, backward = products(one, *half), products(vjp, g.astype(jnp.bfloat16))
    assert (len(forward), len(backward)) == (2, 4)
    assert {x.aval.dtype for e in forward + backward for x in e.invars} == {jnp.dtype("bfloat16")}
    assert forward[0].outvars[0].aval.dtype == jnp.float32
    exact = jax.vjp(one, q, k, v)[1](g)
    for a, b in zip(vjp(g.astype(jnp.bfloat16)), exact, strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.abs(np.asarray(a, np.float32) - b).max() < 0.02 * np.abs(b).max()


def test_gelu_is_the_exact_one():
    """Not the tanh form; against the error function of the C library, and its slope."""
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    phi = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    np.testing.assert_allclose(gelu(x), x * phi, atol=1e-6)
    slope = phi + x * np.exp(-(x.astype(np.float64) ** 2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), slope, atol=1e-6)
    half = gelu(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_gelu_of_bfloat16_in_evaluation_is_exact_but_for_its_rounding():
    """Over all bfloat16 numbers, large ones too: what is left is half a unit of the last place."""
    x = jnp.arange(1 << 16, dtype=jnp.uint16).view(jnp.bfloat16)
    x = x[jnp.isfinite(x)]
    exact = np.asarray(gelu(x.astype(jnp.float32), train=False), np.float64)
    found = np.asarray(gelu(x, train=False), np.float64)
    assert (np.abs(found - exact) <= 3e-5 + 2.0**-8 * np.abs(exact)).all()
    np.testing.assert_array_equal(exact, np.asarray(gelu(x.astype(jnp.float32)), np.float64))
    assert (found != np.asarray(gelu(x), np.float64)).any()  # another form
