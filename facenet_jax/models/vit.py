"""The vision transformer up to its last block, and that last block as a head of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from facenet_jax.models.layers import PRODUCT, Block, Dense, LayerNorm, normal_002

VARIANTS = {
    "mini": {"width": 96, "depth": 3, "heads": 4},  # the demo and the tests
    "Ti": {"width": 192, "depth": 12, "heads": 3},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
}

REMAT = {
    "none": None,
    # By name: JAX's policies for products go by their batch axes, and the stacked bands are one.
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def grid(image_size: tuple[int, int], patch: int, stride: int) -> tuple[int, int]:
    """(rows, columns) of the patches that fit into an image of (height, width) pixels."""
    rows, columns = ((size - patch) // stride + 1 for size in image_size)
    return rows, columns


def patches(images: jax.Array, patch: int, stride: int) -> jax.Array:
    """[B, H, W, 3] to [B, n, patch * patch * 3]: row-major patches of (y, x, channel) values."""
    batch, height, width, channels = images.shape
    rows, columns = grid((height, width), patch, stride)
    if stride == patch:  # a plain reshape, free on every device
        x = images[:, : rows * patch, : columns * patch]
        x = x.reshape(batch, rows, patch, columns, patch, channels)
    else:
        y_index = np.arange(rows)[:, None] * stride + np.arange(patch)
        x_index = np.arange(columns)[:, None] * stride + np.arange(patch)
        x = images[:, y_index][:, :, :, x_index]
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def sincos_position(key: jax.Array, rows: int, columns: int, width: int) -> jax.Array:
    """Where a position embedding [1 + rows * columns, width] starts: sines and cosines of y and x.

    Chen et al. 2021 (MoCo v3). The usual noise of 0.02 is lost beside the patches, and a network
    from scratch then takes hundreds of steps to find out where things are. The class token's row
    is 0. Pretrained weights replace all of it.
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


class ScanBlock(Block):
    """A `Block` in the form `nn.scan` wants: carry in, (carry, nothing) out."""

    @nn.compact
    def __call__(self, x, drop_rate, train):
        """As `Block`, the carry being the tokens."""
        return super().__call__(x, drop_rate, train), None


class Trunk(nn.Module):
    """Patch embedding, class token, position embedding and the first `depth` blocks of a ViT.

    Dosovitskiy et al. 2021. The blocks share one set of stacked parameters [depth, ...]; `unroll`
    and `remat` trade compile time, speed and memory and change no value.
    """

    width: int
    depth: int
    heads: int
    patch: int
    stride: int
    drop_rates: tuple[float, ...]  # one for each block
    dtype: jnp.dtype
    attention: str
    remat: str
    unroll: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, 3] in [-1, 1] to tokens [B, 1 + n, width] float32, class token first."""
        # A Dense on patches, not a convolution: stacked over bands, the gradient of a convolution
        # makes the partitioner gather whole activations.
        init = nn.initializers.lecun_normal()
        embed = Dense(self.width, dtype=self.dtype, kernel_init=init, name="patch")
        x = embed(patches(images, self.patch, self.stride)).astype(jnp.float32)
        token = self.param("class_token", normal_002, (1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token[None], (len(x), 1, self.width)), x], axis=1)
        rows, columns = grid(images.shape[1:3], self.patch, self.stride)
        x = x + self.param("position", sincos_position, rows, columns, self.width)[None]
        if self.depth == 0:
            return x

        block = ScanBlock
        if self.remat != "none":
            block = nn.remat(
                block, prevent_cse=False, policy=REMAT[self.remat], static_argnums=(3,)
            )
        scan = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.depth,
            unroll=min(self.unroll, self.depth) if self.unroll else self.depth,
        )
        blocks = scan(self.heads, any(self.drop_rates), self.dtype, self.attention, name="blocks")
        return blocks(x, jnp.asarray(self.drop_rates, jnp.float32), train)[0]


class LastBlock(nn.Module):
    """The last block of a ViT and its final LayerNorm, for the class token."""

    heads: int
    drop_rate: float
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """[B, 1 + n, D] to the class token [B, D] float32."""
        block = Block(
            self.heads,
            self.drop_rate > 0,
            self.dtype,
            self.attention,
            class_only=True,
            name="block",
        )
        x = block(tokens, jnp.asarray(self.drop_rate, jnp.float32), train)
        return LayerNorm(name="norm")(x[:, 0])


def stacked(module: type[nn.Module], in_axes: tuple, copies: bool = True) -> type[nn.Module]:
    """`module` mapped over axis 0 of those arguments whose entry in `in_axes` is 0.

    With `copies` there is one set of parameters and statistics for each entry, stacked on axis 0 of
    every leaf; without, one set serves all.
    """
    axis = 0 if copies else None
    return nn.vmap(
        module,
        in_axes=in_axes,
        variable_axes={"params": axis, "batch_stats": axis},
        split_rngs={"params": copies, "dropout": True},
    )
