"""Convolutions, with the borders of torch, fast on a CPU as well."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from facenet_jax.models.platforms import by_platform
from facenet_jax.models.product import product
from facenet_jax.runtime.mesh import gathered

kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # He et al. 2015
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""What PyTorch gives kernels by default, +-1 / sqrt(fan_in)."""


def depthwise_init(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """`kaiming` for kernels [k, k, C] of one channel each, whose fan_in is k^2."""
    return jax.random.normal(key, shape) * (2 / (shape[0] * shape[1])) ** 0.5


def as_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """x [B, H, W, C] convolved with `kernel` [k, k, C, D], a border of k // 2 zeros around it."""
    border = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((border, border), (border, border)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def as_product(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`as_convolution` as one matrix product of the windows of x."""
    side, (rows, columns) = kernel.shape[0], (-(-pixels // stride) for pixels in x.shape[1:3])
    border = side // 2
    x = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    # First along the rows, then along the columns: 2 k slices, not k^2.
    tall, wide = (stride * (pixels - 1) + 1 for pixels in (rows, columns))
    x = jnp.concatenate([x[:, i : i + tall : stride] for i in range(side)], axis=-1)
    x = jnp.concatenate([x[:, :, j : j + wide : stride] for j in range(side)], axis=-1)
    return product("bhwx,xy->bhwy", x, kernel.swapaxes(0, 1).reshape(-1, kernel.shape[-1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`as_convolution`, as the platform does it best, which is known when a program is lowered.

    XLA computes convolutions on a CPU three to fifty times slower inside a loop, as training steps
    are, than the same numbers as matrix products.
    """
    return by_platform(
        x,
        kernel,
        cpu=functools.partial(as_product, stride=stride),
        default=functools.partial(as_convolution, stride=stride),
    )


def convolution_forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`convolution`, and what its gradient needs: no windows are kept."""
    return convolution(x, kernel, stride), (x, kernel)


def convolution_backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and the kernel."""

    def of(function, x, kernel, gradient):
        return jax.vjp(functools.partial(function, stride=stride), x, kernel)[1](gradient)

    return by_platform(
        *saved,
        gradient,
        cpu=functools.partial(of, as_product),
        default=functools.partial(of, as_convolution),
    )


convolution.defvjp(convolution_forward, convolution_backward)


class Conv(nn.Module):
    """A convolution with a symmetric zero border of kernel // 2 pixels, as torch's, in `dtype`.

    Flax's "SAME" puts more of the border on the right and below where the stride is 2.
    """

    features: int
    kernel: int  # pixels, in both directions
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = kaiming

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features] in `dtype`."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        function = as_product if self.kernel == 1 else convolution
        return function(x.astype(self.dtype), gathered(kernel.astype(self.dtype)), self.stride)


def as_grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, H, W, C], each channel convolved with its own kernel [k, k, C]; a border of k // 2."""
    border = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        window_strides=(1, 1),
        padding=((border, border), (border, border)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def shifted(x: jax.Array, side: int) -> list[list[jax.Array]]:
    """Copies of x [B, H, W, C], zeros around it, moved to each place [row][column] of a window."""
    border, (height, width) = side // 2, x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    return [[x[:, i : i + height, j : j + width] for j in range(side)] for i in range(side)]


def as_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`as_grouped` as a sum of shifted copies of x."""
    rows = zip(shifted(x, kernel.shape[0]), kernel, strict=True)
    each = [pair for images, weights in rows for pair in zip(images, weights, strict=True)]
    return sum(image * weight[None, None, None] for image, weight in each)


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`as_grouped`, as the platform does it best; see `convolution`."""
    return by_platform(x, kernel, cpu=as_shifts, default=as_grouped)


def depthwise_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`depthwise`, and what its gradient needs."""
    return depthwise(x, kernel), (x, kernel)


def depthwise_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and the kernel."""

    def shifts(x, kernel, gradient):
        moved = as_shifts(gradient, kernel[::-1, ::-1])
        slopes = [
            [jnp.sum(y * gradient, (0, 1, 2)) for y in row] for row in shifted(x, len(kernel))
        ]
        return moved, jnp.stack([jnp.stack(row) for row in slopes])

    def grouped(x, kernel, gradient):
        return jax.vjp(as_grouped, x, kernel)[1](gradient)

    return by_platform(*saved, gradient, cpu=shifts, default=grouped)


depthwise.defvjp(depthwise_forward, depthwise_backward)


class Depthwise(nn.Module):
    """A convolution of each channel by itself, without a bias, in `dtype`; the size is kept."""

    kernel: int  # pixels, odd
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H, W, C] in `dtype`."""
        shape = (self.kernel, self.kernel, x.shape[-1])
        kernel = self.param("kernel", depthwise_init, shape)
        return depthwise(x.astype(self.dtype), gathered(kernel.astype(self.dtype)))
