import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facenet_jax.models import patches, vit
from facenet_jax.models.backbones import stack
from facenet_jax.models.layers import Block, apart, joined
from facenet_jax.models.trunk import Trunk
from tests.support import tiny_run as tiny

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("size", "patch", "stride", "grid"),
    [
        ((256, 128), 16, 16, (16, 8)),
        ((256, 128), 16, 12, (21, 10)),
        ((128, 256), 16, 16, (8, 16)),
        ((33, 20), 8, 8, (4, 2)),  # with pixels left over
    ],
)
def test_patches_and_dense_are_a_convolution(size, patch, stride, grid):
    assert patches.grid(size, patch, stride) == grid
    images, kernel = tiny.noise(2, *size, 3), tiny.noise(patch, patch, 3, 5, seed=1)
    x = patches.patches(images, patch, stride)
    assert x.shape == (2, grid[0] * grid[1], patch * patch * 3)
    convolution = jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    np.testing.assert_allclose(
        x @ kernel.reshape(-1, 5), convolution.reshape(2, -1, 5), rtol=1e-4, atol=1e-4
    )


FIELDS = {
    "width": 8,
    "depth": 3,
    "heads": 2,
    "patch": 8,
    "stride": 8,
    "drop_rates": (0.0, 0.3, 0.6),
    "dtype": jnp.float32,
    "attention": "xla",
    "remat": "none",
    "unroll": 1,
}


def trunk(**changes):
    return Trunk(**FIELDS | changes)


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(layer, variables, images, train=False):
    """The tokens of a trunk, drop path drawn from one key."""
    return layer.apply(variables, images, train, rngs={"dropout": jax.random.key(3)})


@functools.cache
def values_and_gradients(remat, unroll):
    """Tokens of a training step with drop path, and the gradient of a function of them."""
    layer, images = (
        trunk(remat=remat, unroll=unroll),
        tiny.noise(4, 16, 8, 3),
    )
    variables = tiny.draw(jax.eval_shape(lambda: layer.init(KEY, images, False)))

    @jax.jit
    def both(variables):
        def objective(variables):
            tokens = layer.apply(variables, images, True, rngs={"dropout": jax.random.key(3)})
            return jnp.sum(jnp.sin(tokens)), tokens

        return jax.value_and_grad(objective, has_aux=True)(variables)

    return both(variables)


def bytes_kept(remat):
    """What the forward pass of three stacked trunks leaves for the backward pass."""
    layer = stack(functools.partial(Trunk, **FIELDS | {"remat": remat}), (0, None))()
    images = tiny.noise(3, 8, 32, 16, 3)
    variables = tiny.draw(jax.eval_shape(lambda: layer.init(KEY, images, False)))
    _, vjp = jax.vjp(lambda v: layer.apply(v, images, False), variables)
    return sum(x.nbytes for x in jax.tree.leaves(vjp))


@pytest.mark.slow
def test_rematerialisation_keeps_less_and_less():
    nothing, products, all_of_it = map(bytes_kept, ("full", "dots", "none"))
    assert 1.2 * nothing < products < 0.8 * all_of_it


@pytest.mark.parametrize(("remat", "unroll"), [("full", 0), ("dots", 0), ("none", 2)])
def test_remat_and_unroll_change_no_value_and_no_gradient(remat, unroll):
    (_, tokens), gradients = values_and_gradients("none", 1)
    (_, others), other_gradients = values_and_gradients(remat, unroll)
    np.testing.assert_allclose(others, tokens, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        other_gradients,
        gradients,
    )


@pytest.mark.parametrize(
    ("unroll", "backend", "found"), [(-1, "tpu", 0), (-1, "cpu", 1), (-1, "gpu", 1), (2, "tpu", 2)]
)
def test_a_tpu_takes_all_layers_at_once_unless_told(unroll, backend, found):
    assert vit.layers_at_once(unroll, backend) == found


@pytest.mark.parametrize(
    ("unroll", "backend", "found"),
    [(0, "tpu", "unrolled"), (1, "cpu", "loop"), (0, "cpu", "unrolled"), (1, "gpu", "")],
)
def test_modalities_are_embedded_in_turn_where_that_is_known_to_be_faster(unroll, backend, found):
    assert vit.modalities_in_turn(unroll, backend) == found


def test_dense_results_and_softmax_statistics_are_not_computed_again():
    """With "dots" the backward pass has neither the maxima of the scores nor their sums."""
    images = tiny.noise(4, 16, 8, 3)
    found = {}
    for remat in ("none", "dots", "full"):
        layer = trunk(remat=remat)
        variables = tiny.draw(jax.eval_shape(lambda layer=layer: layer.init(KEY, images, False)))
        loss = jax.grad(lambda v, layer=layer: jnp.sum(layer.apply(v, images, False)))
        found[remat] = str(jax.make_jaxpr(loss)(variables)).count("reduce_max[")
    assert found["dots"] == found["none"] == found["full"] / 2 > 0


def test_drop_path_follows_its_rates():
    """A rate near 1 in every block leaves patches and positions alone; 0 changes nothing."""
    images = tiny.noise(4, 16, 8, 3)
    layer = trunk(drop_rates=(0.9999,) * 3)
    variables = tiny.draw(jax.eval_shape(lambda: layer.init(KEY, images, False)))
    embedded = run(trunk(depth=0, drop_rates=()), variables, images)
    np.testing.assert_array_equal(run(layer, variables, images, True), embedded)
    still = trunk(drop_rates=(0.0,) * 3)
    np.testing.assert_array_equal(
        run(still, variables, images, True), run(layer, variables, images)
    )


def test_blocks_run_in_the_order_of_their_parameters():
    """The scanned trunk equals its blocks called one by one."""
    layer, images = trunk(), tiny.noise(2, 16, 8, 3)
    variables = tiny.draw(jax.eval_shape(lambda: layer.init(KEY, images, False)))
    params = variables["params"]
    x = run(trunk(depth=0, drop_rates=()), variables, images)
    block = Block(2, False, jnp.float32, "xla")
    one = jax.jit(lambda own, x: block.apply(own, x, jnp.float32(0), False))
    for i in range(3):
        own = {"params": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])}
        x = joined(one(own, apart(x)))
    np.testing.assert_allclose(run(layer, variables, images), x, rtol=1e-5, atol=1e-5)


def test_patches_and_positions_are_where_they_belong():
    """Only the token of a changed patch changes, and the class token comes first."""
    layer, images = trunk(depth=0, drop_rates=()), tiny.noise(1, 16, 24, 3)
    variables = tiny.draw(jax.eval_shape(lambda: layer.init(KEY, images, False)))
    tokens = run(layer, variables, images)
    params = variables["params"]
    np.testing.assert_array_equal(tokens[0, 0], (params["class_token"] + params["position"][:1])[0])
    changed = run(layer, variables, images.at[0, 9, 17].add(1.0))  # row 1, column 2
    np.testing.assert_array_equal(np.any(changed != tokens, axis=(0, 2)), np.arange(7) == 1 + 5)
