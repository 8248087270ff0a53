"""A residual network in small: convolutions and BatchNorm, each modality with its own."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from facenet_jax.models.backbones import Backbone
from facenet_jax.options import Option, text, whole
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.merge import nest

OPTIONS = {
    "channels": Option(6, "of the convolutions", whole(1)),
    "pretrained": Option("none", "an .npz of arrays COLLECTION/HALF/PATH, or 'none'", text()),
}

norm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class Block(nn.Module):
    """x + relu(norm(convolution(x)))."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, C] to the same."""
        y = nn.Conv(x.shape[-1], (3, 3), use_bias=False)(x)
        return x + nn.relu(norm(use_running_average=not train)(y))


class Body(nn.Module):
    """The network up to its map of features, whose mean becomes token 0."""

    channels: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, 3] to tokens [B, 1 + n, C]."""
        x = nn.Conv(self.channels, (4, 4), strides=4, use_bias=False, name="stem")(images)
        x = Block(name="block")(nn.relu(norm(use_running_average=not train, name="norm")(x)), train)
        x = x.reshape(len(x), -1, self.channels)
        return jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)


class Head(nn.Module):
    """Token 0 and the spread of the others, through a layer and a BatchNorm."""

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """[B, 1 + n, C] to [B, C]."""
        x = jnp.concatenate([tokens[:, 0], jnp.square(tokens[:, 1:]).mean(1)], axis=-1)
        x = nn.Dense(tokens.shape[-1], name="out")(x)
        return norm(use_running_average=not train, name="norm")(x)


def backbone(config, image_size: tuple[int, int]) -> Backbone:
    """The network that the section `model` describes."""
    height, width = image_size
    return Backbone(
        tokens=functools.partial(Body, config.channels),
        head=functools.partial(Head),
        token_width=config.channels,
        width=config.channels,
        grid=(height // 4, width // 4),
        stacked=False,
        pixel_mean=(0.485, 0.456, 0.406),
        pixel_std=(0.229, 0.224, 0.225),
        read=read,
    )


def read(path: str) -> tuple[dict[str, Any], tuple[str, ...], str]:
    """The halves of a file by collection."""
    return nest(read_checkpoint(path)), (), ""
