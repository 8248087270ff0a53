"""The vision transformer as a backbone: all but its last block, and that block as a head."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from facenet_jax.models.backbones import Backbone
from facenet_jax.models.layers import (
    PRODUCT,
    Block,
    Dense,
    LayerNorm,
    apart,
    joined,
    normal_002,
)
from facenet_jax.options import Option, Options, between, one_of, text, whole
from facenet_jax.weights import merge
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.names.vit import to_canonical

VARIANTS = {
    "mini": {"width": 96, "depth": 3, "heads": 4},  # the demo and the tests
    "Ti": {"width": 192, "depth": 12, "heads": 3},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
}

REMAT = {
    "auto": None,  # `run.fitting` builds the network again with one of the others
    "none": None,
    # By name: JAX's policies for products go by their batch axes, and stacked modalities are one.
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


OPTIONS: Options = {
    "variant": Option(
        "B", "the size, or '' for width, depth and heads below", one_of(*VARIANTS, "")
    ),
    "width": Option(0, "with variant '' only", whole(0, 16384)),
    "depth": Option(0, "blocks, with variant '' only", whole(0, 999)),
    "heads": Option(0, "with variant '' only", whole(0, 1024)),
    "patch": Option(16, "pixels", whole(1, 4096)),
    "stride": Option(
        0, "pixels between patches, below patch they overlap; 0: patch", whole(0, 4096)
    ),
    "drop_path": Option(
        0.1, "rate of the last block, falling linearly to 0 at the first", between(0, 0.999)
    ),
    "pretrained": Option(
        "", "a ViT file, also gs://: timm, Google .npz, Hugging Face, DINO; 'none': none", text()
    ),
    "dtype": Option("float32", "of matrix products", one_of("float32", "bfloat16")),
    "attention": Option(
        "xla",
        "cudnn: on a GPU, in bfloat16; training on an even number of tokens only",
        one_of("xla", "cudnn"),
    ),
    "remat": Option(
        "auto",
        "what a block computes again in the backward pass, to save memory: as little as the memory "
        "of the devices allows | nothing | all but the results of its dense layers | everything",
        one_of(*REMAT),
    ),
    "unroll": Option(1, "layers in one iteration of the loop over layers; 0: all", whole(0, 999)),
}
"""What the backbone "vit" adds to config.model."""

NO_WEIGHTS = (
    "config.model.pretrained is not set, and this recipe starts from an ImageNet-21k ViT: get "
    "jx_vit_base_p16_224-80ecf9dd.pth (release v0.1-vitjx of "
    "github.com/rwightman/pytorch-image-models) or a ViT of gs://vit_models/augreg/ and give "
    "--config.model.pretrained=FILE, or say --config.model.pretrained=none to start from random "
    "weights"
)


def size(config: ml_collections.ConfigDict | Mapping[str, Any]) -> dict[str, int]:
    """The {"width", "depth", "heads"} of the section `model`."""
    if config["variant"]:
        return VARIANTS[config["variant"]]
    return {name: config[name] for name in ("width", "depth", "heads")}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together among the options of a config, a clause each."""
    model, found = config.model, []
    width, depth, heads = size(model).values()
    if min(width, depth, heads) < 1 or width % heads:
        found.append(
            f"config.model has width {width}, depth {depth} and {heads} heads; it needs a depth of "
            "at least 1 and a width that the heads divide"
        )
    if model.stride > model.patch:
        found.append(
            f"config.model.stride {model.stride} is above config.model.patch {model.patch}, so "
            "that pixels between the patches would never be seen"
        )
    if min(grid(config.data.image_size, model.patch, model.stride or model.patch)) < 1:
        found.append(
            f"config.data.image_size {tuple(config.data.image_size)} holds no patch of "
            f"config.model.patch {model.patch} pixels"
        )
    refused = refuses_attention(model, 0, jax.default_backend(), train=False)
    return [*found, refused.removesuffix(".")] if refused else found


def backbone(config: ml_collections.ConfigDict, image_size: tuple[int, int]) -> Backbone:
    """The ViT that the section `model` describes."""
    width, depth, heads = size(config).values()
    stride = config.stride or config.patch
    rates = [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]
    block = {
        "heads": heads,
        "dtype": jnp.dtype(config.dtype),
        "attention": config.attention,
    }
    tokens = functools.partial(
        Trunk,
        **block,
        width=width,
        depth=depth - 1,
        patch=config.patch,
        stride=stride,
        drop_rates=tuple(rates[:-1]),
        remat=config.remat,
        unroll=config.unroll,
    )
    rows_columns = grid(image_size, config.patch, stride)
    return Backbone(
        tokens=tokens,
        head=functools.partial(LastBlock, **block, drop_rate=rates[-1]),
        token_width=width,
        width=width,
        grid=rows_columns,
        stacked=True,
        dtype=block["dtype"],
        read=functools.partial(
            read, depth=depth, width=width, patch=config.patch, grid=rows_columns
        ),
        refuses=functools.partial(refuses_attention, config, 1 + math.prod(rows_columns)),
    )


def read(
    path: str, *, depth: int, width: int, patch: int, grid: tuple[int, int]
) -> tuple[Mapping[str, Any], Sequence[str], str]:
    """({"params": {"tokens", "head"}} of the ViT in a file, names not needed, a note)."""
    canonical, ignored = to_canonical(read_checkpoint(path), path)
    parts, note = merge.vit_parts(canonical, grid, path, depth=depth, width=width, patch=patch)
    return {"params": parts}, ignored, note


def refuses_attention(
    config: ml_collections.ConfigDict, tokens: int, backend: str, train: bool
) -> str:
    """Why `model.attention` cannot run on `backend`, or in training on so many tokens; or ""."""
    if config.attention == "xla":
        return ""
    if backend != "gpu" or config.dtype != "bfloat16":
        return (
            f"config.model.attention is 'cudnn', which computes bfloat16 on a GPU, but the devices "
            f"are of the kind '{backend}' and config.model.dtype is {config.dtype}; set "
            "--config.model.attention=xla."
        )
    if train and tokens % 2:
        return (
            f"config.model.attention is 'cudnn', whose gradient JAX gives for an even number of "
            f"tokens only, and an image has {tokens}; set --config.model.attention=xla to train."
        )
    return ""


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


class ScanBlock(Block):
    """A `Block` in the form `nn.scan` wants: carry in, (carry, nothing) out."""

    @nn.compact
    def __call__(self, x, drop_rate, train):
        """As `Block`, the carry being the parts of the tokens."""
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
    def __call__(self, images: jax.Array, train: bool, added: jax.Array | None = None) -> jax.Array:
        """Images [B, H, W, 3] in [-1, 1] to tokens [B, 1 + n, width] float32, class token first.

        `added` [B, width] is added to every token of an image before the first block.
        """
        # A Dense on patches, not a convolution: stacked over modalities, the gradient of a
        # convolution makes the partitioner gather all activations.
        init = nn.initializers.lecun_normal()
        embed = Dense(self.width, dtype=self.dtype, kernel_init=init, name="patch")
        x = embed(patches(images, self.patch, self.stride)).astype(jnp.float32)
        token = self.param("class_token", normal_002, (1, self.width))
        rows, columns = grid(images.shape[1:3], self.patch, self.stride)
        position = self.param("position", sincos_position, rows, columns, self.width)[None]
        first = jnp.broadcast_to(token[None] + position[:, :1], (x.shape[0], 1, self.width))
        x = [first, x + position[:, 1:]]
        x = x if added is None else [part + added[:, None] for part in x]
        if self.depth == 0:
            return joined(x)

        block = ScanBlock
        if REMAT[self.remat]:
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
        return joined(blocks(x, jnp.asarray(self.drop_rates, jnp.float32), train)[0])


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
        (x,) = block(apart(tokens), jnp.asarray(self.drop_rate, jnp.float32), train)
        return LayerNorm(name="norm")(x[:, 0])
