"""ResNet with bottleneck blocks as a backbone: some stages as tokens, the other ones as a head.

He et al. 2016, with the stride in the 3 x 3 convolution, as torchvision and timm have it. The flags
cover what re-identification makes of it: a last stage that keeps its resolution and a stem without
ReLU (Luo et al. 2019), a stem that pools 2 x 2 (the ResNet of TransReID and of FACENet's release).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.models.backbones import Backbone
from facenet_jax.models.convolution import Conv
from facenet_jax.models.layers import BatchNorm
from facenet_jax.options import Option, Options, numbers, one_of, switch, text, whole
from facenet_jax.precision import wide
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.merge import nest
from facenet_jax.weights.names import resnet as names

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
EXPANSION = 4  # channels that leave a bottleneck, relative to those inside it

VARIANTS = {
    "mini": {"width": 16, "depths": (1, 1, 1, 1)},  # the demo and the tests
    "50": {"width": 64, "depths": (3, 4, 6, 3)},
    "101": {"width": 64, "depths": (3, 4, 23, 3)},
}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

OPTIONS: Options = {
    "variant": Option("50", "the size, or '' for width and depths below", one_of(*VARIANTS, "")),
    "width": Option(0, "channels of the stem, with variant '' only", whole(0, 4096)),
    "depths": Option(
        (0, 0, 0, 0), "blocks of layer1 to layer4, with variant '' only", numbers(4, whole(0, 999))
    ),
    "stem_relu": Option(
        False, "ReLU in the stem: people (AGW) True, vehicles (BoT, CCNet) False", switch()
    ),
    "stem_pool": Option(
        "3x3",
        "max-pooling of the stem, stride 2; 2x2 without a border: TransReID",
        one_of("3x3", "2x2"),
    ),
    "last_stride": Option(1, "of layer4; 2: the ResNet of ImageNet", one_of(1, 2)),
    "split_after": Option(
        "layer3",
        "the last stage of the trunk; the others are the head of a branch",
        one_of("layer1", "layer2", "layer3"),
    ),
    "pretrained": Option("", "a ResNet file, also gs://: torchvision, timm; 'none': none", text()),
    "dtype": Option("float32", "of convolutions", one_of("float32", "bfloat16")),
}
"""What the backbone "resnet" adds to config.model."""

NO_WEIGHTS = (
    "config.model.pretrained is not set, and this recipe starts from an ImageNet ResNet-50: get "
    "resnet50-19c8e357.pth or resnet50-0676ba61.pth (download.pytorch.org/models) and give "
    "--config.model.pretrained=FILE, or say --config.model.pretrained=none to start from random "
    "weights"
)


def size(config: ml_collections.ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The {"width", "depths"} of the section `model`."""
    if config["variant"]:
        return VARIANTS[config["variant"]]
    return {"width": config["width"], "depths": tuple(config["depths"])}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together among the options of a whole config, a clause each."""
    found, (width, depths) = [], size(config.model).values()
    if min(width, *depths) < 1:
        found.append(
            f"config.model has width {width} and depths {depths}; all of them must be at least 1"
        )
    last = config.model.get("split_after", "layer3")
    if min(grid(config.data.image_size, config.model.stem_pool, last)) < 1:
        found.append(
            f"config.data.image_size {tuple(config.data.image_size)} is too small for the stem of "
            "a ResNet"
        )
    return found


def backbone(
    config: ml_collections.ConfigDict,
    image_size: tuple[int, int],
    inserted: Mapping[str, functools.partial] | None = None,
) -> Backbone:
    """The ResNet that the section `model` describes.

    Args:
        config: the section.
        image_size: height, width in pixels.
        inserted: see `stages`.
    """
    width, depths = size(config).values()
    stage = stages(config, inserted)
    cut = STAGES.index(config.split_after) + 1
    rows_columns = grid(image_size, config.stem_pool, config.split_after)
    return Backbone(
        tokens=functools.partial(MapTokens, stage, STAGES[:cut]),
        head=functools.partial(MapHead, stage, STAGES[cut:], rows_columns),
        token_width=channels(width, STAGES[cut - 1]),
        width=channels(width, STAGES[-1]),
        grid=rows_columns,
        stacked=False,
        dtype=jnp.dtype(config.dtype),
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        read=functools.partial(read, width=width, depths=depths, trunk=STAGES[:cut]),
    )


def whole(config: ml_collections.ConfigDict, image_size: tuple[int, int]) -> Backbone:
    """The whole ResNet as a first half, which gives maps [B, H, W, C] where others give tokens.

    For models that make features of the last maps themselves; the second half does nothing.
    """
    width, depths = size(config).values()
    return Backbone(
        tokens=functools.partial(stages(config), STAGES),
        head=functools.partial(lambda tokens, train: tokens),
        token_width=channels(width, STAGES[-1]),
        width=channels(width, STAGES[-1]),
        grid=grid(image_size, config.stem_pool, "layer3"),
        stacked=False,
        dtype=jnp.dtype(config.dtype),
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        read=functools.partial(read, width=width, depths=depths, trunk=STAGES),
    )


def stages(
    config: ml_collections.ConfigDict, inserted: Mapping[str, functools.partial] | None = None
) -> functools.partial:
    """`Stages` of the section `model`, all but the names.

    `inserted` is {place: a module (maps [B, H, W, C], train) -> maps, with its name}, which works
    on what leaves that place, a stage such as "layer2" or a block such as "layer2_0".
    """
    width, depths = size(config).values()
    return functools.partial(
        Stages,
        width=width,
        depths=tuple(depths),
        stem_relu=config.stem_relu,
        stem_pool=config.stem_pool,
        last_stride=config.last_stride,
        inserted=tuple((inserted or {}).items()),
        dtype=jnp.dtype(config.dtype),
    )


def read(
    path: str, *, width: int, depths: Sequence[int], trunk: Sequence[str]
) -> tuple[Mapping[str, Any], Sequence[str], str]:
    """({collection: {"tokens", "head"}} of the ResNet in a file, names it did not need, a note)."""
    canonical, ignored = names.to_canonical(read_checkpoint(path), path)
    names.check_size(canonical, path, width=width, depths=depths)
    found: dict[str, Any] = {}
    for name, array in canonical.items():
        stage = name.split("_")[0] if name.startswith("layer") else "stem"
        half = "tokens" if stage in trunk else "head"
        collection = "batch_stats" if name.endswith(("/mean", "/var")) else "params"
        found[f"{collection}/{half}/{name}"] = array
    return nest(found), ignored, "running statistics of its BatchNorms included"


def grid(image_size: tuple[int, int], stem_pool: str, stage: str) -> tuple[int, int]:
    """(rows, columns) of the map that leaves `stage`, up to layer3, for images (height, width)."""

    def side(pixels: int) -> int:
        pixels = (pixels + 1) // 2  # conv1
        pixels = (pixels + 1) // 2 if stem_pool == "3x3" else pixels // 2
        return math.ceil(pixels / 2 ** max(STAGES.index(stage) - 1, 0))

    rows, columns = map(side, image_size)
    return rows, columns


def channels(width: int, stage: str) -> int:
    """Channels of the map that leaves a stage."""
    at = STAGES.index(stage)
    return width * EXPANSION * 2 ** (at - 1) if at else width


class Bottleneck(nn.Module):
    """ReLU(x + f(x)) with f = 1 x 1, 3 x 3 and 1 x 1 convolutions, each with a BatchNorm.

    Where the shape changes, x goes through a 1 x 1 convolution and a BatchNorm of its own.
    """

    width: int  # channels inside
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, 4 width] float32."""
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(BatchNorm, frozen_bias=False)
        features, y = EXPANSION * self.width, x
        y = nn.relu(norm(name="bn1")(conv(self.width, 1, name="conv1")(y), train))
        y = nn.relu(norm(name="bn2")(conv(self.width, 3, self.stride, name="conv2")(y), train))
        y = norm(name="bn3")(conv(features, 1, name="conv3")(y), train)
        if self.stride > 1 or x.shape[-1] != features:
            x = conv(features, 1, self.stride, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x, train)
        return nn.relu(x + y)


class Stages(nn.Module):
    """Consecutive stages of a ResNet: parameters conv1, bn1 of the stem and layer{1..4}_{block}."""

    names: tuple[str, ...]  # of `STAGES`
    width: int  # channels of the stem
    depths: tuple[int, ...]  # blocks of layer1 to layer4
    stem_relu: bool
    stem_pool: str  # "3x3" | "2x2"
    last_stride: int
    inserted: tuple[tuple[str, functools.partial], ...]  # (stage or block, module that follows it)
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Images or maps [B, H, W, C] to the maps [B, H', W', C'] float32 of the last stage."""
        for name in self.names:
            at = STAGES.index(name)
            if at == 0:
                x = self.stem(x, train)
            for block in range(self.depths[at - 1] if at else 0):
                stride = {"layer1": 1, "layer4": self.last_stride}.get(name, 2)
                inside = self.width * 2 ** (at - 1)
                layer = Bottleneck(
                    inside, stride if block == 0 else 1, self.dtype, name=f"{name}_{block}"
                )
                x = self.followed(f"{name}_{block}", layer(x, train), train)
            x = self.followed(name, x, train)
        return x

    def followed(self, place: str, x: jax.Array, train: bool) -> jax.Array:
        """Maps after the modules that are inserted behind this stage or block, if any."""
        for name, module in self.inserted:
            x = module()(x, train) if name == place else x
        return x

    def stem(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, 3] to a quarter of the resolution."""
        x = Conv(self.width, 7, 2, dtype=self.dtype, name="conv1")(x)
        x = BatchNorm(frozen_bias=False, name="bn1")(x, train)
        x = nn.relu(x) if self.stem_relu else x
        side, border = (3, 1) if self.stem_pool == "3x3" else (2, 0)
        return nn.max_pool(x, (side, side), (2, 2), ((border, border), (border, border)))


class StageMaps(nn.Module):
    """Consecutive stages, with the maps that leave each of them."""

    stages: functools.partial  # `Stages` but for the names
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Images or maps [B, H, W, C] to {stage: maps [B, H', W', C'] float32}."""
        found = {}
        for name in self.names:
            stage = self.stages(names=(name,))
            nn.share_scope(self, stage)
            x = found[name] = stage(x, train)
        return found


class MapTokens(nn.Module):
    """The first stages, whose map is the patch tokens and its mean the token of the image."""

    stages: functools.partial  # `Stages` but for the names
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, 3] to tokens [B, 1 + rows * columns, C] float32, row-major."""
        stages = self.stages(names=self.names)
        nn.share_scope(self, stages)
        maps = stages(images, train)
        tokens = maps.reshape(maps.shape[0], -1, maps.shape[-1])
        return jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)


class MapHead(nn.Module):
    """The last stages on the map that patch tokens form, and the mean of what leaves them.

    The token of the image is not needed: the mean is taken anew.
    """

    stages: functools.partial  # `Stages` but for the names
    names: tuple[str, ...]
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """[B, 1 + rows * columns, C] to [B, C'] float32."""
        stages = self.stages(names=self.names)
        nn.share_scope(self, stages)
        maps = tokens[:, 1:].reshape(tokens.shape[0], *self.grid, tokens.shape[-1])
        return wide(stages(maps, train)).mean((1, 2))
