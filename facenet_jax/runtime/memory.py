"""The device memory that a run needs, reported before it starts, and what reduces it."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from data_tfds.errors import UserError
from facenet_jax.runtime.mesh import divided

CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")
"""Where Linux gives a container's limit, a number of bytes or "max"."""


def of_device(mesh: Mesh) -> int | None:
    """Bytes of memory of one device of this process, None where it does not report them.

    CPU devices share the memory of the host, or the limit of the container.
    """
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
        return (host if limit == "max" else min(host, int(limit))) // len(mesh.local_devices)
    return (device.memory_stats() or {}).get("bytes_limit")


def streams(config: ml_collections.ConfigDict, images: int, of_sample: int, mesh: Mesh) -> bool:
    """Whether images are to be streamed, by `config.data.resident`; logs it if they are.

    Args:
        config: the config, all sections.
        images: bytes of the images of all splits that would be resident at once.
        of_sample: bytes of the images of one sample.
        mesh: the devices.
    """
    data, train = config.data, config.train
    device = of_device(mesh)
    if not streamed(data, images, device):
        return False
    if data.resident == "never":
        return True
    window = train.steps_per_dispatch * train.identities_per_batch * train.samples_per_identity
    logging.info(
        "The images take %s, more than %.3g %% (config.data.max_memory_fraction) of the %s of a "
        "device: they are streamed from %s, %d steps (%s, over all devices) at a time.",
        size(images),
        100 * data.max_memory_fraction,
        size(device),
        data.prepared,
        train.steps_per_dispatch,
        size(window * of_sample),
    )
    return True


def streamed(data: ml_collections.ConfigDict, images: int, device: int | None) -> bool:
    """Whether so many bytes of images do not stay in the memory of a device of so many bytes."""
    if data.resident != "auto":
        return data.resident == "never"
    return device is not None and images > data.max_memory_fraction * device


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bytes on one device, by what they are for."""

    parameters: int
    optimizer: int
    images: int
    activations: int  # and gradients: all temporary memory of the compiled step
    device: int | None  # its limit
    remat: str = ""  # what the step computes again, where that was found from these bytes

    @property
    def total(self) -> int:
        """The sum in bytes."""
        return self.parameters + self.optimizer + self.images + self.activations

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {size(amount)}"
            for name, amount in (
                ("parameters", self.parameters),
                ("optimiser", self.optimizer),
                ("images", self.images),
                ("activations and gradients", self.activations),
            )
        )
        total = f"memory of a device: {parts}; {size(self.total)}"
        found = f"; config.model.remat=auto took {self.remat}" if self.remat else ""
        if self.device:
            return f"{total} of {size(self.device)} available{found}"
        return f"{total} needed; the device does not report its limit{found}"

    @property
    def fits(self) -> bool:
        """Whether it does, as far as the limit is known."""
        return not self.device or self.total <= self.device


def bytes_of(tree: Any) -> int:
    """Bytes of a tree of arrays, or of their shapes, on one device."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def check(need: Budget, config: ml_collections.ConfigDict, devices: int) -> None:
    """Raises UserError where a run cannot fit."""
    if not need.fits:
        raise UserError(f"The run does not fit ({need}); {remedies(config, devices, need)}.")


@contextlib.contextmanager
def explained(config: ml_collections.ConfigDict, devices: int) -> Iterator[None]:
    """Raises UserError where a device runs out of memory inside the block."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"The devices ran out of memory ({str(error).splitlines()[0][:200]}); "
            f"{remedies(config, devices)}."
        ) from error


def remedies(config: ml_collections.ConfigDict, devices: int, need: Budget | None = None) -> str:
    """The three changes that would help most, of options that the model has and are not yet set.

    Where the `need` is known, parts of it below a tenth are not considered.
    """
    model, train = config.model, config.train

    def large(part: int) -> bool:
        return need is None or part > 0.1 * need.total

    options = []
    if "remat" in model and "full" not in (model.remat, need and need.remat):
        options.append("recompute activations with --config.model.remat=full")
    if config.data.resident != "never" and large(need.images if need else 0):
        options.append("stream the images with --config.data.resident=never")
    whole = devices > 1 and not divided(train.shard_state, devices, jax.default_backend())
    if whole and large(need.optimizer if need else 0):
        options.append("divide parameters and optimiser with --config.train.shard_state=always")
    # On a CPU it saves nothing.
    if "dtype" in model and model.dtype == "float32" and jax.default_backend() != "cpu":
        options.append("multiply in half the bytes with --config.model.dtype=bfloat16")
    options.append(f"use more devices than {devices}, which divide the batch")
    options.append(f"lower --config.train.identities_per_batch={train.identities_per_batch}")
    if "variant" in model:
        options.append("take a smaller --config.model.variant")
    *first, last = options[:3]
    return f"{', '.join(first)}, or {last}"


def size(amount: int) -> str:
    """Bytes in words."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if amount >= scale:
            return f"{amount / scale:.2f} {unit}"
    return f"{amount / 1e3:.1f} kB"
