"""TPU slices that programs are compiled for without a chip, by the compiler in libtpu.

The compiler gives real errors, memory limits and layouts, and its cost model's estimate of cycles.
"""

import dataclasses
import importlib.util
import os

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from data_tfds.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is known of a kind of chip beside what its compiler says."""

    clock: float  # Hz: with it the compiler's cycles of a product give the data sheet's peak
    memory: float  # bytes/s of a device's memory, by the data sheet
    link: float  # bytes/s that a chip sends over all its links in a ring, in one direction each


CHIPS = {
    # 197, 918, 275 and 459 TFLOP/s in bfloat16. Links: 4 of 50, 4 of 112, 6 of 50, 6 of 100 GB/s
    # and direction; a ring of all chips uses two of them, one each way.
    "v5e": Chip(1.5e9, 819e9, 2 * 50e9),
    "v6e": Chip(1.75e9, 1640e9, 2 * 112e9),
    "v4": Chip(1.05e9, 1228e9, 2 * 50e9),
    "v5p": Chip(1.75e9, 2765e9, 2 * 100e9),
}

ONE = {"chips_per_host_bounds": [1, 1, 1]}

SLICES = {
    "v5e:1": ("v5e:1x1", ONE),
    "v5e:4": ("v5e:2x2", {}),
    "v5e:8": ("v5e:2x4", {}),
    "v5e:16": ("v5e:4x4", {}),
    "v6e:1": ("v6e:1x1", ONE),
    "v6e:4": ("v6e:2x2", {}),
    "v6e:8": ("v6e:2x4", {}),
    "v4-8": ("v4:2x2x1", {"chip_config_name": "megacore"}),  # two cores are a device, as on a VM
    "v5p-8": ("v5p:2x2x1", {}),
}
"""{name: (libtpu's name, options)}. The number is that of chips; in v4-8 and v5p-8, of cores."""

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Without these libtpu asks a server of Google Cloud what machine this is, and locks it."""


def chip(name: str) -> Chip:
    """The kind of chip of a slice."""
    return CHIPS[name.replace("-", ":").partition(":")[0]]


def refuse(name: str) -> None:
    """Raises UserError for a slice that is not known, and where libtpu is not installed."""
    if name not in SLICES:
        raise UserError(f"'{name}' is no known slice; choose one of {', '.join(SLICES)}.", 2)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The compiler for TPUs is not installed: pip install -e '.[tpu]' -c constraints.txt "
            "brings it to any x86-64 Linux (libtpu, 300 MB); no TPU is needed."
        )


def mesh(name: str) -> Mesh:
    """The devices of a slice along the axis "data", to compile for; nothing can run on them.

    Raises UserError as `refuse` does. JAX itself stays on the CPU.
    """
    refuse(name)
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    topology, options = SLICES[name]
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **options
    ).devices
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
