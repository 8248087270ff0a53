"""The product of activations and a kernel, in the form that suits XLA on each kind of device."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from facenet_jax.models.platforms import by_platform
from facenet_jax.runtime.mesh import kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(subscripts: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`jnp.einsum` of activations and a kernel, in their type.

    XLA:CPU copies arrays whose axes are not in the order of a product of matrices, element by
    element and often the larger of the two. There both become matrices first, and the gradient of
    the kernel has x in front. XLA:TPU chooses layouts by itself and fuses what is around a product
    into it, but not across a change of shape.
    """
    if Axes.of(subscripts).in_order:
        return jnp.einsum(subscripts, x, kernel)
    return by_platform(
        x,
        kernel,
        cpu=functools.partial(by_rows, subscripts),
        default=functools.partial(jnp.einsum, subscripts),
    )


def forward(
    subscripts: str, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`product`, and what its gradient needs."""
    return product(subscripts, x, kernel), (x, kept(kernel))


def backward(
    subscripts: str, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and of the kernel."""
    return by_platform(
        *saved,
        gradient,
        cpu=functools.partial(gradients_by_rows, subscripts),
        default=functools.partial(gradients, subscripts),
    )


def gradients(
    subscripts: str, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients as `jnp.einsum`."""
    axes = Axes.of(subscripts)
    return (
        jnp.einsum(f"{axes.result},{axes.kernel}->{axes.x}", gradient, kernel),
        jnp.einsum(f"{axes.x},{axes.result}->{axes.kernel}", x, gradient),
    )


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of a product, a letter each: x has rows and inner ones, the kernel inner and outer.

    The rows are those of x that the result keeps; the inner axes are summed over.
    """

    x: str
    kernel: str
    result: str

    @classmethod
    def of(cls, subscripts: str) -> "Axes":
        """Those of the subscripts of an einsum."""
        inputs, result = subscripts.split("->")
        return cls(*inputs.split(","), result)

    @property
    def rows(self) -> str:
        """In the order of x."""
        return "".join(axis for axis in self.x if axis not in self.kernel)

    @property
    def inner(self) -> str:
        """In the order of the kernel."""
        return "".join(axis for axis in self.kernel if axis in self.x)

    @property
    def outer(self) -> str:
        """In the order of the kernel."""
        return "".join(axis for axis in self.kernel if axis not in self.x)

    @property
    def in_order(self) -> bool:
        """Whether all three are matrices, but for the shape, as they are."""
        matrices = self.rows + self.inner, self.inner + self.outer, self.rows + self.outer
        return (self.x, self.kernel, self.result) == matrices


def as_matrix(x: jax.Array, axes: str, rows: str, columns: str) -> jax.Array:
    """x with these axes as a matrix: `rows` and `columns` are all of them."""
    x = x.transpose([axes.index(axis) for axis in rows + columns])
    return x.reshape(math.prod(x.shape[: len(rows)]), -1)


def as_array(matrix: jax.Array, found: str, wanted: str, like: dict[str, int]) -> jax.Array:
    """A matrix of the axes `found` with the axes `wanted`, their lengths as in `like`."""
    y = matrix.reshape([like[axis] for axis in found])
    return y.transpose([found.index(axis) for axis in wanted])


def by_rows(subscripts: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`jnp.einsum` as a product of matrices."""
    axes = Axes.of(subscripts)
    like = dict(zip(axes.x + axes.kernel, x.shape + kernel.shape, strict=True))
    left = as_matrix(x, axes.x, axes.rows, axes.inner)
    right = as_matrix(kernel, axes.kernel, axes.inner, axes.outer)
    return as_array(left @ right, axes.rows + axes.outer, axes.result, like)


def gradients_by_rows(
    subscripts: str, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`gradients` as products of matrices."""
    axes = Axes.of(subscripts)
    like = dict(zip(axes.x + axes.kernel, x.shape + kernel.shape, strict=True))
    of_result = as_matrix(gradient, axes.result, axes.rows, axes.outer)
    left = as_matrix(x, axes.x, axes.rows, axes.inner)
    right = as_matrix(kernel, axes.kernel, axes.inner, axes.outer)
    of_x = jnp.einsum("ry,xy->rx", of_result, right)
    of_kernel = jnp.einsum("rx,ry->xy", left, of_result)  # `left.T @ ...` would copy it
    return (
        as_array(of_x, axes.rows + axes.inner, axes.x, like),
        as_array(of_kernel, axes.inner + axes.outer, axes.kernel, like),
    )


product.defvjp(forward, backward)
