"""The halves of a vision transformer as Flax modules: all but its last block, and that one."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facenet_jax.models.attention import SOFTMAX
from facenet_jax.models.layers import (
    PLAIN,
    PRODUCT,
    Block,
    Dense,
    Kind,
    LayerNorm,
    apart,
    joined,
    normal_002,
)
from facenet_jax.models.patches import grid, patches, sincos_position
from facenet_jax.runtime.mesh import GATHERED

REMAT = {
    "auto": None,  # `run.fitted_step` builds the network again with another
    "none": None,
    # By name: JAX's policies for products go by their batch axes, and stacked modalities are one.
    # With the maxima and sums of the softmax its weights come back in one pass over the scores.
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, SOFTMAX, GATHERED),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class ScanBlock(Block):
    """A `Block` in the form `nn.scan` wants: carry in, (carry, nothing) out."""

    @nn.compact
    def __call__(self, x, drop_rate, train):
        """As `Block`, the carry being the parts of the tokens."""
        return super().__call__(x, drop_rate, train), None


class Trunk(nn.Module):
    """Patch embedding, class token, position embedding and the first `depth` blocks of a ViT.

    Dosovitskiy et al. 2021. The blocks share one set of stacked parameters [depth, ...]; `unroll`
    (0: all layers) and `remat` trade compile time, speed and memory and change no value.
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
    kind: Kind = PLAIN
    registers: int = 0
    patch_bias: bool = True
    norm_before: bool = False
    # EDITOR's `RolloutBlock`: the attention that reaches each token comes beside the tokens.
    rollout: type | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, added: jax.Array | None = None) -> jax.Array:
        """Normalised images [B, H, W, 3] to tokens [B, 1 + registers + n, width] float32.

        The class token comes first, then the registers, then the patches. `added` [B, width] is
        added to the class token and to every patch of an image, as their positions are.
        """
        # A Dense on patches, not a convolution: stacked over modalities, the gradient of a
        # convolution makes the partitioner gather all activations.
        init = nn.initializers.lecun_normal()
        embed = Dense(self.width, self.patch_bias, dtype=self.dtype, kernel_init=init, name="patch")
        x = embed(patches(images, self.patch, self.stride)).astype(jnp.float32)
        token = self.param("class_token", normal_002, (1, self.width))
        first = token[None]
        if self.kind.rope is None:
            rows, columns = grid(images.shape[1:3], self.patch, self.stride)
            position = self.param("position", sincos_position, rows, columns, self.width)[None]
            first, x = first + position[:, :1], x + position[:, 1:]
        x = [jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x]
        x = x if added is None else [part + added[:, None] for part in x]
        if self.registers:
            registers = self.param("registers", normal_002, (self.registers, self.width))
            registers = jnp.broadcast_to(registers[None], (x[0].shape[0], *registers.shape))
            x[0] = jnp.concatenate([x[0], registers], axis=1)
        if self.norm_before:
            norm = LayerNorm(self.kind.epsilon, name="norm_before")
            x = [norm(part) for part in x]
        if self.depth == 0:
            return joined(x)

        block = self.rollout or ScanBlock
        at_once = min(self.unroll, self.depth) if self.unroll else self.depth
        if REMAT[self.remat]:
            # Outside a loop XLA would use what it has instead of computing it again. With "dots" it
            # may: a TPU's step is shorter by an eighth for it, by its compiler's estimate.
            again = self.remat == "full" and at_once == self.depth
            block = nn.remat(
                block, prevent_cse=again, policy=REMAT[self.remat], static_argnums=(3,)
            )
        scan = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.depth,
            unroll=at_once,
        )
        blocks = scan(
            self.heads,
            any(self.drop_rates),
            self.dtype,
            self.attention,
            kind=self.kind,
            name="blocks",
        )
        rates = jnp.asarray(self.drop_rates, jnp.float32)
        if self.rollout:
            start = self.rollout.start(x, self.heads)
            (x, rolled), _ = blocks((x, start), rates, train)
            return joined(x), rolled
        return joined(blocks(x, rates, train)[0])


def plain_tokens(params: Mapping[str, Any], images: jax.Array, heads: int) -> jax.Array:
    """A `Trunk` in evaluation mode and float32 as a function, for code outside this folder.

    Normalised images [B, H, W, 3] to tokens [B, 1 + n, width]; the shapes in the parameter tree say
    the patch, the width and the depth.
    """
    rows, width = params["patch"]["kernel"].shape
    depth = len(params["blocks"]["norm1"]["scale"]) if "blocks" in params else 0
    patch = math.isqrt(rows // 3)
    trunk = Trunk(
        width, depth, heads, patch, patch, (0.0,) * depth, jnp.dtype("float32"), "xla", "none", 1
    )
    return trunk.apply({"params": params}, images, False)


class LastBlock(nn.Module):
    """The last block of a ViT and its final LayerNorm, for the class token."""

    heads: int
    drop_rate: float
    dtype: jnp.dtype
    attention: str
    kind: Kind = PLAIN
    prefix: int = 1  # tokens in front of the patches
    projection: int = 0  # columns of a matrix behind the LayerNorm; 0: none
    class_only: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """[B, prefix + n, D] to the class token [B, D or projection] float32.

        All of them, [B, prefix + n, D or projection], unless `class_only`.
        """
        block = Block(
            self.heads,
            self.drop_rate > 0,
            self.dtype,
            self.attention,
            class_only=self.class_only,
            kind=self.kind,
            name="block",
        )
        parts = apart(tokens, self.prefix)
        x = joined(block(parts, jnp.asarray(self.drop_rate, jnp.float32), train))
        x = LayerNorm(self.kind.epsilon, name="norm")(x[:, 0] if self.class_only else x)
        if not self.projection:
            return x
        project = Dense(self.projection, use_bias=False, dtype=self.dtype, name="projection")
        return project(x).astype(jnp.float32)
