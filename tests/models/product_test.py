import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facenet_jax.models.product import gradients, product
from tests.support import tiny_run as tiny


@pytest.mark.parametrize(
    ("subscripts", "x", "kernel"),
    [
        ("abx,xy->aby", (3, 4, 6), (6, 5)),
        ("btc,chd->bhtd", (3, 4, 6), (6, 2, 5)),
        ("bhtd,hdc->btc", (3, 2, 4, 5), (2, 5, 6)),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_product_and_its_gradients_are_those_of_einsum(subscripts, x, kernel, dtype):
    """But for the order of the sums; so are the gradients of a GPU and a TPU."""
    x, kernel = tiny.noise(*x).astype(dtype), tiny.noise(*kernel, seed=1).astype(dtype)
    y, on_this_device = jax.vjp(lambda *pair: product(subscripts, *pair), x, kernel)
    expected, backward = jax.vjp(lambda *pair: jnp.einsum(subscripts, *pair), x, kernel)
    weight = tiny.noise(*y.shape, seed=2).astype(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 0.02}
    pairs = [(y, expected)]
    for mine in (on_this_device(weight), gradients(subscripts, x, kernel, weight)):
        pairs += zip(mine, backward(weight), strict=True)
    for mine, theirs in pairs:
        assert (mine.dtype, mine.shape) == (dtype, theirs.shape)
        np.testing.assert_allclose(
            mine.astype(jnp.float32), theirs.astype(jnp.float32), **tolerance
        )
