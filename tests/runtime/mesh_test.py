"""Arrays divided over the devices of a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from facenet_jax.models.layers import Dense
from facenet_jax.runtime import mesh as meshes
from tests.support import tiny_run as tiny


@pytest.fixture
def four():
    """Four of the devices."""
    return tiny.make_mesh(4)


@pytest.mark.parametrize(
    ("choice", "devices", "backend", "expected"),
    [
        ("auto", 4, "tpu", True),
        ("auto", 1, "tpu", False),
        ("auto", 4, "gpu", False),
        ("auto", 4, "cpu", False),
        ("always", 4, "cpu", True),
        ("always", 1, "tpu", False),
        ("never", 4, "tpu", False),
    ],
)
def test_a_state_is_divided_where_it_was_asked_for_and_on_a_tpu(choice, devices, backend, expected):
    assert meshes.divided(choice, devices, backend) == expected


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 16), P("data")),  # the inputs of a kernel, though there are fewer
        ((3, 2, 8, 16), P(None, None, "data")),
        ((6, 16), P(None, "data")),  # six inputs do not divide
        ((12, 6, 6), P("data")),
        ((64,), P("data")),
        ((6, 6), P()),
        ((4, 4), P()),  # smaller than asked for
    ],
)
def test_large_arrays_are_divided_along_the_inputs_of_a_kernel(four, shape, spec):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert meshes.fsdp_shardings(leaf, four, 32).spec == spec


def test_a_divided_kernel_is_gathered_in_the_type_of_the_product(four):
    """Its gradient is that of a whole one, and need not be whole."""
    dense = Dense(16, dtype=jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)
    params = dense.init(jax.random.key(0), x)["params"]

    def loss(params):
        return jnp.square(dense.apply({"params": params}, x).astype(jnp.float32)).sum()

    def inside(params):
        with meshes.kernels_divided(four):
            return jax.grad(loss)(params)

    assert "sharding_constraint" not in str(jax.make_jaxpr(jax.grad(loss))(params))
    traced = str(jax.make_jaxpr(inside)(params))
    assert traced.count(" = sharding_constraint") == 1
    (line,) = (line for line in traced.splitlines() if " = sharding_constraint" in line)
    assert ":bf16[8,16]" in line
    rows = NamedSharding(four, P("data"))
    placed = {"kernel": jax.device_put(params["kernel"], rows), "bias": params["bias"]}
    places = {"kernel": rows, "bias": NamedSharding(four, P())}
    found = jax.jit(inside, out_shardings=places)(placed)
    assert found["kernel"].sharding == rows
    for ours, theirs in zip(
        *map(jax.tree.leaves, (found, jax.jit(jax.grad(loss))(params))), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_an_array_is_made_whole_by_one_compiled_program(four):
    """Every evaluation of a divided state asks for it."""
    x = jax.device_put(np.arange(8.0, dtype=np.float32), NamedSharding(four, P("data")))
    whole = meshes.replicated({"x": x}, four)["x"]
    assert whole.sharding.is_fully_replicated
    np.testing.assert_array_equal(whole, x)
    with jax.no_tracing():
        meshes.replicated({"x": x}, four)
