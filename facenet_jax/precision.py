"""The format of everything but matrix products."""

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jax.Array:
    """`x` as float32; float64 stays, so that a comparison in float64 loses nothing on the way."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
