"""Devices as a one-axis mesh, and how arrays get there."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from facenet_jax.types import UserError


def make_mesh() -> Mesh:
    """All devices of all processes along the axis "data"."""
    # Explicit axis types became the default of jax.make_mesh; this code wants the partitioner.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_divides(option: str, batch: int, mesh: Mesh) -> None:
    """Raise UserError unless a batch splits evenly over the devices."""
    if batch % mesh.size:
        raise UserError(
            f"{option} = {batch} does not divide by the {mesh.size} devices; choose a multiple of "
            f"{mesh.size}, or fewer devices."
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Host arrays as device arrays that every device holds whole.

    Each process gives its own copy. Unlike `jax.device_put` to several hosts nothing is sent or
    compared between them, so the copies must be equal.
    """
    sharding = NamedSharding(mesh, P())

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def split_batch(x: jax.Array, mesh: Mesh, axis: int) -> jax.Array:
    """x with its batch axis divided over the devices (inside jit)."""
    spec = P(*[None] * axis, "data")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
