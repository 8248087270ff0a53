"""Rotary positions of patches on a grid, as DINOv3 has them.

A patch at (y, x), each in (-1, 1) over its own side of the grid, has the angles 2 pi y / period_k
and 2 pi x / period_k with period_k = base^(4k/d), k below d/4: d/2 angles, written twice to the
width d of a head. Dimension i of a query or key turns together with dimension i + d/2.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions of a grid."""

    grid: tuple[int, int]  # rows, columns
    base: float = 100.0
    rounded: bool = False  # periods rounded to bfloat16, as Meta's files have them


@functools.cache
def tables(rope: Rope, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(sines, cosines), each [n, width] float32, of heads of this width, which 4 divides."""
    periods = rope.base ** (4 * np.arange(width // 4) / width)
    if rope.rounded:
        periods = periods.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
    rows, columns = (2 * (np.arange(side) + 0.5) / side - 1 for side in rope.grid)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)  # y before x
    angles = 2 * np.pi * places.reshape(-1, 2, 1) / periods
    angles = np.tile(angles.reshape(len(angles), -1), 2)
    return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)


def rotated(x: jax.Array, rope: Rope) -> jax.Array:
    """Queries or keys [B, heads, n, d] of the patches, turned in float32, in the type of x."""
    sine, cosine = (table[None, None] for table in tables(rope, x.shape[-1]))
    y = x.astype(jnp.float32)
    first, second = jnp.split(y, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (y * cosine + turned * sine).astype(x.dtype)
