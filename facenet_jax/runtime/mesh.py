"""Devices as a one-axis mesh, and arrays on them."""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_tfds.errors import UserError

GATHERED = "gathered"
"""The name of a gathered kernel, for a rematerialisation that keeps it for the backward pass."""


def make_mesh() -> Mesh:
    """All devices of all processes along the axis "data"."""
    # Explicit axis types became the default of jax.make_mesh; this code relies on the partitioner.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_divides(option: str, batch: int, mesh: Mesh) -> None:
    """Raises UserError where a batch does not split evenly over the devices."""
    if batch % mesh.size:
        raise UserError(
            f"{option} = {batch} does not divide by the {mesh.size} devices; choose a multiple of "
            f"{mesh.size}, or fewer devices."
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Host arrays as device arrays, each complete on every device.

    Each process gives its own copy. Unlike `jax.device_put` to several hosts nothing is sent or
    compared between them, so the copies must be equal.
    """
    return device_put(tree, jax.tree.map(lambda _: NamedSharding(mesh, P()), tree))


def fsdp_shardings(tree: Any, mesh: Mesh, smallest: int) -> Any:
    """The shardings of a tree of arrays (or shapes) whose large leaves are split over the devices.

    A leaf of `smallest` or more elements is split along its last axis but one, the inputs of a
    kernel, whose outputs layers cut apart. Where that does not divide by the number of devices, it
    is the longest that does (of equals the last); others are replicated.
    """

    def sharding(leaf: Any) -> NamedSharding:
        axes = [i for i, length in enumerate(leaf.shape) if length % mesh.size == 0]
        if mesh.size == 1 or math.prod(leaf.shape) < smallest or not axes:
            return NamedSharding(mesh, P())
        inputs = len(leaf.shape) - 2
        axis = inputs if inputs in axes else max(axes, key=lambda i: (leaf.shape[i], i))
        return NamedSharding(mesh, P(*[None] * axis, "data"))

    return jax.tree.map(sharding, tree)


def divided(choice: str, devices: int, backend: str) -> bool:
    """Whether a state is divided (FSDP), by `train.shard_state`, over devices of this kind.

    On a TPU the step is shorter for it, by its compiler's estimate: each device updates a part of
    the parameters, not all of them. On a GPU nothing was measured.
    """
    return devices > 1 and (choice == "always" or (choice == "auto" and backend == "tpu"))


def kernels_divided(mesh: Mesh) -> AbstractContextManager:
    """A block, traced by jit, whose parameters named "kernel" may be divided; see `gathered`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def gathered(kernel: jax.Array) -> jax.Array:
    """A kernel complete on every device, for a product; as it is outside `kernels_divided`.

    Called on the kernel in the type of the product, which sends half as much where that is
    bfloat16. Its gradient is left to be divided as the parameter is, not summed on every device.
    """
    return kernel if jax.sharding.get_abstract_mesh().empty else _gathered(kernel)


@jax.custom_vjp
def _gathered(kernel: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(kernel, P())


_gathered.defvjp(lambda kernel: (_gathered(kernel), None), lambda _, gradient: (gradient,))


def kept(kernel: jax.Array) -> jax.Array:
    """A gathered kernel for the backward pass alone, under the name that rematerialisation knows.

    A value that the forward pass reads as well would be rounded, and copied, by `jax.checkpoint`.
    """
    return kernel if jax.sharding.get_abstract_mesh().empty else checkpoint_name(kernel, GATHERED)


def replicated(tree: Any, mesh: Mesh) -> Any:
    """Device arrays with every leaf complete on every device."""
    return _replication(mesh)(tree)


@functools.cache  # an evaluation asks each time, and is to compile it once
def _replication(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


def device_put(tree: Any, shardings: Any) -> Any:
    """Host arrays as device arrays with the given shardings; each process gives its own copy."""

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree, shardings)


def split_batch(x: jax.Array, mesh: Mesh, axis: int) -> jax.Array:
    """x with its batch axis divided over the devices (inside jit)."""
    spec = P(*[None] * axis, "data")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
