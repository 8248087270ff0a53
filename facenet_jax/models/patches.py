"""An image as patches of pixels, and where a patch is."""

import jax
import jax.numpy as jnp
import numpy as np


def grid(image_size: tuple[int, int], patch: int, stride: int) -> tuple[int, int]:
    """(rows, columns) of the patches that fit into an image of (height, width) pixels."""
    rows, columns = ((size - patch) // stride + 1 for size in image_size)
    return rows, columns


def patches(images: jax.Array, patch: int, stride: int) -> jax.Array:
    """[B, H, W, 3] to [B, n, patch * patch * 3]: row-major patches of (y, x, channel) values."""
    batch, height, width, channels = images.shape
    rows, columns = grid((height, width), patch, stride)
    if stride == patch:
        # Channels first in between: XLA:TPU copies less than with one change of all axes.
        x = images[:, : rows * patch, : columns * patch].transpose(0, 3, 1, 2)
        x = x.reshape(batch, channels, rows, patch, columns, patch).transpose(0, 2, 3, 4, 5, 1)
    else:
        y_index = np.arange(rows)[:, None] * stride + np.arange(patch)
        x_index = np.arange(columns)[:, None] * stride + np.arange(patch)
        x = images[:, y_index][:, :, :, x_index]
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def sincos_position(key: jax.Array, rows: int, columns: int, width: int) -> jax.Array:
    """The initial position embedding [1 + rows * columns, width]: sines and cosines of y and x.

    Chen et al. 2021 (MoCo v3). N(0, 0.02) is small next to the patch embeddings: from scratch it
    takes hundreds of steps to learn positions. The class token's row is 0. Pretrained weights
    replace all of it.
    """
    del key
    quarter = width // 4
    omega = 10000.0 ** (-np.arange(quarter) / max(quarter, 1))
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (y, x)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    table = np.concatenate(waves, axis=1)
    padded = np.pad(table, ((1, 0), (0, width - table.shape[1])))
    return jnp.asarray(padded, jnp.float32)
