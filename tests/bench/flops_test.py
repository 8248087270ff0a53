import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import wmveid863
from data_tfds.errors import UserError
from facenet_jax.bench import flops, synthetic
from facenet_jax.bench.flops import count
from facenet_jax.bench.timing import model_flops
from tests.support import tiny_run as tiny

PRODUCT = 2 * 2 * 3 * 3  # [2, 3] x [3, 3]


def shape(*lengths, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(lengths, dtype)


X, Y = shape(2, 3), shape(3, 3)


def square(x, y):
    return jnp.sum(jnp.square(x @ y))


@pytest.mark.parametrize(
    ("equation", "left", "right", "expected"),
    [
        ("mk,kn->mn", (2, 3), (3, 5), 2 * 2 * 3 * 5),
        ("bmk,bkn->bmn", (7, 2, 3), (7, 3, 5), 2 * 7 * 2 * 3 * 5),
        ("bthd,bshd->bhts", (2, 3, 4, 5), (2, 6, 4, 5), 2 * 2 * 4 * 3 * 6 * 5),
        ("k,k->", (3,), (3,), 2 * 3),
    ],
)
def test_a_product(equation, left, right, expected):
    found = count(lambda x, y: jnp.einsum(equation, x, y), shape(*left), shape(*right))
    assert sum(found.values()) == expected


def test_what_no_result_depends_on_counts_nothing():
    def function(x, y):
        dead = {"unused": x @ y @ y}
        return x @ y, dead

    assert count(function, X, Y) == {"": 3 * PRODUCT}
    assert count(lambda x, y: function(x, y)[0], X, Y) == {"": PRODUCT}
    assert count(lambda x, y: jax.jit(function)(x, y)[0], X, Y) == {"": PRODUCT}
    assert count(lambda x, y: jnp.sum(x) + jnp.sum(y), X, Y) == {}


def test_nothing_is_computed_and_nothing_allocated():
    vast = shape(2**40, 3)  # 12 TB
    assert count(lambda x, y: x @ y, vast, Y) == {"": 2**40 * 2 * 3 * 3}


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
    def function(x, y):
        def body(carry, row):
            used, unused = carry
            return (used @ y, unused @ y), row @ y

        (used, _), rows = jax.lax.scan(body, (x, x), jnp.zeros((5, 4, 3)))
        return used, rows

    assert count(lambda x, y: function(x, y)[0], X, Y) == {"": 5 * PRODUCT}
    assert count(function, X, Y) == {"": 5 * PRODUCT + 5 * 2 * PRODUCT}
    twice = jax.vmap(function, in_axes=(0, None))
    assert count(lambda x, y: twice(x, y)[0], shape(7, 2, 3), Y) == {"": 7 * 5 * PRODUCT}


def test_a_loop_of_unknown_length_counts_its_body_once():
    def function(x, y, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ y, x)

    assert count(function, X, Y, shape(dtype=jnp.int32)) == {"": PRODUCT}


def test_a_condition_counts_its_most_expensive_branch():
    def function(x, y, n):
        return jax.lax.switch(n, [lambda x: x, lambda x: x @ y @ y, lambda x: x @ y], x)

    assert count(function, X, Y, shape(dtype=jnp.int32)) == {"": 2 * PRODUCT}


def test_a_gradient_costs_two_products_and_one_where_one_operand_is_wanted():
    both = jax.value_and_grad(square, argnums=(0, 1))
    assert count(both, X, Y) == {"": 3 * PRODUCT}
    assert count(jax.value_and_grad(square), X, Y) == {"": 2 * PRODUCT}
    linear = jax.grad(lambda x, y: jnp.sum(x @ y))  # needs no forward product
    assert count(linear, X, Y) == {"": PRODUCT}


@jax.custom_vjp
def product(x, y):
    return x @ y


product.defvjp(lambda x, y: (x @ y, (x, y)), lambda saved, g: (g @ saved[1].T @ saved[1], saved[1]))


def test_a_custom_gradient_counts_as_it_is_written():
    def function(x, y):
        return jnp.sum(jnp.square(product(x, y)))

    assert count(function, X, Y) == {"": PRODUCT}
    assert count(jax.value_and_grad(function), X, Y) == {"": 3 * PRODUCT}


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable])
def test_a_product_that_is_computed_again_counts_once(policy):
    def function(x, y):
        def body(x, _):
            return jnp.tanh(jnp.tanh(x @ y) @ y), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(body, policy=policy), x, length=4)[0])

    found = count(jax.value_and_grad(function, argnums=(0, 1)), X, Y)
    assert found == {"": 4 * 2 * 3 * PRODUCT}


@pytest.mark.parametrize("devices", [1, 2])
def test_a_part_for_each_device_counts_for_all(devices):
    mapped = jax.shard_map(
        lambda x, y: x @ y,
        mesh=tiny.make_mesh(devices),
        in_specs=(P("data"), P()),
        out_specs=P("data"),
    )
    assert count(mapped, X, Y) == {"": PRODUCT}


def test_a_kernel_that_hides_its_products_is_refused():
    kernel = jax.ffi.ffi_call("attention", X)
    with pytest.raises(UserError, match="kernel ffi_call"):
        count(kernel, X)


CONVOLUTIONS = {
    "plain": ((8, 6), (3, 2), {}, (6 * 3, 5 * 2)),
    "strided": ((8, 6), (2, 2), {"window_strides": (2, 2)}, (4 * 2, 3 * 2)),
    "overlapping": ((9, 7), (3, 3), {"window_strides": (2, 2)}, (4 * 3, 3 * 3)),
    "padded": ((8, 6), (3, 3), {"padding": "SAME"}, (8 * 3, 6 * 3)),
    "padded and strided": (
        (8, 8),
        (3, 3),
        {"padding": [(1, 1), (1, 1)], "window_strides": (2, 2)},
        (4 * 3, 4 * 3),
    ),
    "strided points": ((8, 6), (1, 1), {"window_strides": (2, 2)}, (4, 3)),
    "dilated": ((8, 6), (2, 2), {"rhs_dilation": (2, 2)}, (6 * 2, 4 * 2)),
    "whole image": ((8, 6), (8, 6), {}, (8, 6)),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_and_its_gradients_cost_the_same(case, groups):
    image, kernel, options, taps = CONVOLUTIONS[case]
    options = {"window_strides": (1, 1), "padding": "VALID"} | options
    batch, inputs, outputs = 5, 4, 6

    def function(x, w):
        y = jax.lax.conv_general_dilated(
            x,
            w,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            **options,
        )
        return jnp.sum(jnp.square(y))

    shapes = shape(batch, *image, inputs), shape(*kernel, inputs // groups, outputs)
    forward = 2 * batch * outputs * inputs // groups * np.prod(taps)
    assert count(function, *shapes) == {"": forward}
    assert count(jax.value_and_grad(function, argnums=(0, 1)), *shapes) == {"": 3 * forward}


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, use_bias=False, name="deep")(nn.Dense(3, use_bias=False)(x))


class Network(nn.Module):
    def setup(self):
        self.trunk = nn.Dense(3, use_bias=False)
        self.heads = nn.vmap(
            Head,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=2,
        )()

    def __call__(self, x):
        return self.branches(self.trunk(x))

    def branches(self, x):
        return self.heads(x)


def test_parts_are_those_of_the_network_in_both_directions():
    network = Network()
    params = jax.eval_shape(network.init, jax.random.key(0), X)

    def loss(params, x):
        with jax.named_scope("net"):
            y = network.apply(params, x)[0]
        return jnp.sum(jnp.square(y @ y.T))

    parts = {"trunk": PRODUCT, "heads": 2 * 2 * PRODUCT}
    assert count(network.apply, params, X) == parts
    in_loss = 2 * 2 * 2 * 3
    forward = count(loss, params, X)
    assert forward == {"Network": 5 * PRODUCT, "": in_loss}
    assert count(loss, params, X, scope="net") == parts
    trained = count(jax.value_and_grad(loss), params, X, scope="net")
    assert trained == {"trunk": 2 * PRODUCT, "heads": 3 * 2 * 2 * PRODUCT}


def test_without_names_everything_is_one_part():
    def loss(x, y):
        with jax.named_scope("net"):
            return jnp.sum(x @ y)

    assert count(loss, X, Y, scope="net") == {"": PRODUCT}
    assert count(loss, X, Y) == {"net": PRODUCT}


def test_figures_of_the_recipe():
    """64.7 GFLOP an embedding, 195.4 a training sample, by hand.

    Whole last blocks would make that 219: a class token alone saves 23.4.
    """
    tokens, width, identities = 129, 768, 603
    dense = 24 * tokens * width**2 + 4 * tokens**2 * width
    last = 2 * width**2 + 4 * tokens * width**2 + 4 * tokens * width + 18 * width**2
    patch = 2 * 128 * width**2
    mfmp = 8 * 128 * width**2 + 4 * 128**2 * width
    config = wmveid863.get_config()
    spec = synthetic.spec(config.data)
    with jax.numpy_dtype_promotion("standard"):  # attention in bfloat16
        embedding = model_flops(config, spec, train=False)
        training = model_flops(config, spec, train=True)
    trunk = 3 * (patch + 11 * dense)
    assert embedding == {"trunk": trunk, "mfmp": 2 * mfmp, "last": 3 * last}
    assert training == {
        "trunk": 3 * trunk - 3 * patch,  # images need no gradient
        "mfmp": 3 * 2 * mfmp,
        "last": 3 * 3 * last,
        "classifier": 3 * 3 * 2 * width * identities,
        "flare_head": 3 * 2 * (last + 2 * width * 2),
    }
    assert sum(embedding.values()) == 64_659_369_984
    assert sum(training.values()) == 195_432_731_136


@functools.cache
def tiny_parts(**changes):
    return model_flops(tiny.config(**changes), tiny.SPEC, train=True)


def test_what_the_losses_do_not_need_counts_less():
    whole = tiny_parts()
    silent = tiny_parts(losses__mask_kl__weight=0.0)
    # Flare heads run forward for their BatchNorm; their logits are not needed.
    assert silent["flare_head"] == (whole["flare_head"] - 3 * 2 * 2 * 16 * 2) // 3
    assert silent["mfmp"] == whole["mfmp"]  # FCE's masks learn
    hard = tiny_parts(losses__mask_kl__weight=0.0, model__fce__mask="hard")
    assert hard["mfmp"] == whole["mfmp"] // 3
    only_triplet = tiny_parts(
        losses__id__weight=0.0,
        losses__mc__weight=0.0,
        losses__mask_kl__weight=0.0,
        model__flare_heads=False,
        model__fce__enabled=False,
    )
    assert only_triplet == {name: whole[name] for name in ("trunk", "last")}


@pytest.mark.parametrize("changes", [{"remat": "full"}, {"remat": "dots"}, {"unroll": 0}])
def test_how_it_is_computed_does_not_change_the_count(changes):
    changes = {f"model__{name}": value for name, value in changes.items()}
    assert tiny_parts(model__depth=4, **changes) == tiny_parts(model__depth=4)


def test_the_loss_itself_is_left_out():
    """The same for any batch, though products of the loss grow with its square."""
    config = tiny.config()
    model = tiny.build(config)

    def loss(outputs, batch):
        return jnp.sum(jnp.square(outputs.embedding @ outputs.embedding.T))

    terms = {"products": (1.0, loss)}
    small, large = (flops.training(model, terms, tiny.batch(size)) for size in (2, 6))
    assert small == large


def test_the_parameters_of_an_embedding_are_those_it_reads():
    config = tiny.config(model__fce__enabled=False)
    model = tiny.build(config)
    params = tiny.variables(model)["params"]
    used = sum(x.size for name in ("trunk", "last") for x in jax.tree.leaves(params[name]))
    assert flops.embedding_parameters(model, tiny.batch(2)) == used
