import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facenet_jax.models.product import product
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
    x, kernel = tiny.noise(*x).astype(dtype), tiny.noise(*kernel, seed=1).astype(dtype)
    y, gradients = jax.vjp(lambda *pair: product(subscripts, *pair), x, kernel)
    expected, backward = jax.vjp(lambda *pair: jnp.einsum(subscripts, *pair), x, kernel)
    weight = tiny.noise(*y.shape, seed=2).astype(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 0.02}
    np.testing.assert_array_equal(y, expected)
    for mine, theirs in zip(gradients(weight), backward(weight), strict=True):
        assert mine.dtype == dtype
        np.testing.assert_allclose(
            mine.astype(jnp.float32), theirs.astype(jnp.float32), **tolerance
        )
