"""Non-local blocks, as AGW puts them behind the last bottlenecks of a ResNet."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.models import resnet
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.options import Option, Options, numbers, whole

OPTIONS: Options = {
    "non_local": Option(
        (0, 0, 0, 0),
        "how many of the last blocks of layer1 to layer4 a non-local block follows; AGW (0, 2, 3, "
        "0)",
        numbers(4, whole(0, 999)),
    ),
    "non_local_width": Option(1, "channels inside such a block; 1 in AGW's release", whole(1)),
}
"""What the blocks add to config.model."""


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together among the options of a whole config, a clause each."""
    pairs = zip(config.model.non_local, resnet.size(config.model)["depths"], strict=True)
    return [
        f"config.model.non_local puts {count} non-local blocks into layer{stage}, which has "
        f"{depth} blocks"
        for stage, (count, depth) in enumerate(pairs, start=1)
        if count > depth
    ]


def blocks(config: ml_collections.ConfigDict) -> dict[str, functools.partial]:
    """{block: the non-local block that follows it} of the section `model`."""
    depths, dtype = resnet.size(config)["depths"], jnp.dtype(config.dtype)
    places = [
        f"layer{stage}_{block}"
        for stage, (depth, count) in enumerate(zip(depths, config.non_local, strict=True), start=1)
        for block in range(depth - count, depth)
    ]
    return {
        place: functools.partial(NonLocal, config.non_local_width, dtype, name=f"non_local_{place}")
        for place in places
    }


class NonLocal(nn.Module):
    """x + BatchNorm(W y), y = theta (phi^T g) / n over the n places of a map (Wang et al. 2018).

    The product form, which needs no table of all pairs of places. Its BatchNorm starts at 0, so
    that the block starts as none.
    """

    width: int  # channels of theta, phi and g
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H, W, C] float32."""
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        theta, phi, g = (
            Dense(self.width, dtype=self.dtype, name=name)(rows) for name in ("theta", "phi", "g")
        )
        both = jnp.einsum("bnc,bnd->bcd", phi, g) / rows.shape[1]
        y = Dense(x.shape[-1], dtype=self.dtype, name="out")(theta @ both)
        norm = BatchNorm(frozen_bias=False, scale_init=nn.initializers.zeros, name="norm")
        return x + norm(y, train).reshape(x.shape)
