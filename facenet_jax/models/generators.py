"""What makes an auxiliary modality of a visible and an infrared one, for `models/mun.py`."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from facenet_jax.models.convolution import Conv, Depthwise, kaiming
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.precision import wide
from facenet_jax.runtime.mesh import gathered


class Generator(nn.Module):
    """MUN's generator: each modality's maps learned within it, then across both (Eqs. 1 to 9)."""

    pool_sizes: tuple[int, ...]
    unpool: str  # "dense" | "depthwise"
    scale: str  # "channel" | "scalar" | "none"
    residual: bool
    modalities: tuple[str, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """Two maps [B, H, W, C] to the auxiliary one, [B, H, W, C] float32."""
        within = [
            IntraModality(self.scale, self.dtype, name=f"iml_{modality}")(one, train)
            for modality, one in zip(self.modalities, maps, strict=True)
        ]
        across = CrossModality(self.pool_sizes, self.unpool, self.scale, self.dtype, name="cml")
        made = across(within, train)
        return made + sum(within) if self.residual else made


class IntraModality(nn.Module):
    """IML: large kernels of each channel by itself, then of all at each place (Eqs. 1 to 5)."""

    scale: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H, W, C] float32."""
        width, dtype = x.shape[-1], self.dtype
        halves = x[..., : width // 2], x[..., width // 2 :]
        each = [
            Depthwise(kernel, dtype, name=f"depthwise{kernel}")(half)
            for kernel, half in zip((5, 7), halves, strict=True)
        ]
        y = BatchNorm(frozen_bias=False, name="norm1")(jnp.concatenate(each, axis=-1), train)
        y = wide(Dense(4 * width, dtype=dtype, kernel_init=kaiming, name="wider")(y))
        y = wide(Depthwise(3, dtype, name="depthwise3")(nn.relu(y))) + y
        y = BatchNorm(frozen_bias=False, name="norm2")(y, train)
        y = wide(Dense(width, dtype=dtype, kernel_init=kaiming, name="narrower")(y))
        return Scale(self.scale, name="scale")(y)


class CrossModality(nn.Module):
    """CML: averages over squares of several sizes, brought back to maps and mixed (Eqs. 6 to 9)."""

    pool_sizes: tuple[int, ...]
    unpool: str
    scale: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """Maps [B, H, W, C] of each modality to [B, H, W, C] float32."""
        width, backs = maps[0].shape[-1], {}
        for size in self.pool_sizes:  # one transposed convolution of a size for all modalities
            backs[size] = Unpool(size, self.unpool, self.dtype, name=f"unpool{size}")
        each = [backs[size](averages(one, size)) for one in maps for size in self.pool_sizes]
        y = BatchNorm(frozen_bias=False, name="norm")(jnp.concatenate(each, axis=-1), train)
        y = wide(Dense(width, dtype=self.dtype, kernel_init=kaiming, name="mix")(y))
        return Scale(self.scale, name="scale")(y)


def averages(x: jax.Array, size: int) -> jax.Array:
    """Means over squares of `size` x `size`, which divides both sides of the maps [B, H, W, C]."""
    batch, height, width, channels = x.shape
    parts = x.reshape(batch, height // size, size, width // size, size, channels)
    return parts.mean((2, 4))


class Unpool(nn.Module):
    """A transposed convolution whose kernel is as large as its stride: a square for each place."""

    size: int
    kind: str  # "dense" | "depthwise"
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] to [B, h size, w size, C] in `dtype`."""
        batch, height, width, channels = x.shape
        square = (self.size, self.size)
        x = x.astype(self.dtype)
        if self.kind == "depthwise":
            start = nn.initializers.normal(1.0)
            kernel = self.param("kernel", start, (*square, channels)).astype(self.dtype)
            y = x[:, :, None, :, None] * gathered(kernel)[None, None, :, None]
        else:
            dense = functools.partial(Dense, use_bias=False, dtype=self.dtype)
            y = dense(self.size**2 * channels, kernel_init=lecun, name="squares")(x)
            y = y.reshape(batch, height, width, *square, channels).swapaxes(2, 3)
        return y.reshape(batch, height * self.size, width * self.size, channels)


lecun = nn.initializers.lecun_normal()


class Scale(nn.Module):
    """x times learned numbers that stay in 1e-6..1, of each channel or one for all.

    The gradient passes the limit, or a number that reaches it would stay there.
    """

    kind: str  # "channel" | "scalar" | "none"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] to [..., C]."""
        if self.kind == "none":
            return x
        shape = x.shape[-1:] if self.kind == "channel" else ()
        scale = self.param("scale", nn.initializers.ones, shape)
        fixed = jax.lax.stop_gradient
        limited = fixed(jnp.clip(scale, 1e-6, 1.0)) + (scale - fixed(scale))
        return x * limited.reshape((1,) * (x.ndim - len(shape)) + shape)


class XModality(nn.Module):
    """The X modality (Li et al. 2020): the visible image through two 1 x 1 convolutions."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [2, B, H, W, 3], the visible ones first, to images [B, H, W, 3]."""
        y = nn.relu(Dense(1, kernel_init=kaiming, name="inner")(images[0]))
        return Dense(3, kernel_init=kaiming, name="outer")(y)


class MixedModality(nn.Module):
    """A learned mean of both images, with one weight for all pixels, which starts at a half."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [2, B, H, W, 3] to images [B, H, W, 3]."""
        weight = jax.nn.sigmoid(self.param("weight", nn.initializers.zeros, ()))
        return weight * images[0] + (1 - weight) * images[1]


class SyncreticModality(nn.Module):
    """A small convolutional network on both images together."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [2, B, H, W, 3] to images [B, H, W, 3]."""
        y = nn.relu(Conv(16, 3, name="inner")(jnp.concatenate(list(images), axis=-1)))
        return Conv(3, 3, name="outer")(y)


IMAGES: dict[str, Callable[..., nn.Module]] = {
    "x": XModality,
    "mixed": MixedModality,
    "syncretic": SyncreticModality,
}
"""The modules that make images, by name: what MUN's Table 2 compares with its generator."""
