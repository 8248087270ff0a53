"""What a run needs of a device's memory, said before it starts, and what helps if it is short."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from data_tfds.errors import UserError
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.inputs.stream import IN_FLIGHT, Streamed
from facenet_jax.step import Resident, State, Window

CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")
"""Where Linux tells a container's limit, a number of bytes or "max"."""


def of_device(mesh: Mesh) -> int | None:
    """Bytes that one device of this process can hold, None where it does not tell.

    CPU devices share what the host has, or the container.
    """
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
        return (host if limit == "max" else min(host, int(limit))) // len(mesh.local_devices)
    return (device.memory_stats() or {}).get("bytes_limit")


def streams(config: ml_collections.ConfigDict, dataset: Dataset, mesh: Mesh) -> bool:
    """Whether the images are to be streamed, by `config.data.resident`; says so if they are."""
    data = config.data
    if not 0 < data.resident_share <= 1:
        raise UserError(
            f"config.data.resident_share is {data.resident_share}; it is a fraction of a device's "
            "memory, above 0 and at most 1."
        )
    if data.workers < 0:
        raise UserError(f"config.data.workers is {data.workers}; it must be 0 or more.")
    tested = (dataset.query, dataset.gallery)
    if dataset.validation is not None:
        tested += (dataset.validation, dataset.validation)
    images = sum(split.images.nbytes for split in (dataset.train, *tested))
    device = of_device(mesh)
    if data.resident != "auto":
        return data.resident == "never"
    if device is None or images <= data.resident_share * device:
        return False
    window = config.train.steps_per_dispatch * config.train.identities_per_batch
    window *= config.train.samples_per_identity * dataset.train.images[:, :1].nbytes
    logging.info(
        "The images take %s, more than %.3g %% (config.data.resident_share) of the %s of a device: "
        "they are streamed from %s, %d steps (%s, over all devices) at a time.",
        size(images),
        100 * data.resident_share,
        size(device),
        data.prepared,
        config.train.steps_per_dispatch,
        size(window),
    )
    return True


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bytes on one device, by what they are for."""

    parameters: int
    optimizer: int
    images: int
    activations: int  # and gradients: all that the compiled step holds for itself
    device: int | None  # what there is

    @property
    def total(self) -> int:
        """Bytes of all together."""
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
        there = f"{size(self.device)} there" if self.device else "what there is, it does not tell"
        return f"memory of a device: {parts}; {size(self.total)} of {there}"


def budget(
    state: State,
    train: Resident,
    others: Sequence[Resident | Streamed],
    program: jax.stages.Compiled,
    mesh: Mesh,
) -> Budget:
    """What a training run holds at once on one device.

    Args:
        state: the state, of arrays or of their shapes.
        train: what the program reads: the training images, or a window of them.
        others: what evaluations read.
        program: the compiled chunk of steps.
        mesh: the devices.
    """
    images = bytes_of(train.images) * (IN_FLIGHT if isinstance(train, Window) else 1)
    images += sum(bytes_of(part.images) for part in others if isinstance(part, Resident))
    return Budget(
        bytes_of((state.params, state.collections)),
        bytes_of(state.optimizer),
        images,
        program.memory_analysis().temp_size_in_bytes,
        of_device(mesh),
    )


def bytes_of(tree: Any) -> int:
    """Bytes of a tree of arrays on one device."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def check(need: Budget, config: ml_collections.ConfigDict, devices: int) -> None:
    """Raise UserError when a run cannot fit."""
    if need.device and need.total > need.device:
        raise UserError(f"The run does not fit ({need}); {remedies(config, devices, need)}.")


@contextlib.contextmanager
def explained(config: ml_collections.ConfigDict, devices: int) -> Iterator[None]:
    """Turns a device's running out of memory inside the block into one sentence."""
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
    """The three options that would help most, among those not taken yet.

    Where the `need` is known, nothing is named that is less than a tenth of it.
    """
    model, train = config.model, config.train

    def large(part: int) -> bool:
        return need is None or part > 0.1 * need.total

    options = []
    if model.remat != "full":
        options.append("recompute activations with --config.model.remat=full")
    if config.data.resident != "never" and large(need.images if need else 0):
        options.append("stream the images with --config.data.resident=never")
    if devices > 1 and not train.shard_state and large(need.optimizer if need else 0):
        options.append("divide parameters and optimiser with --config.train.shard_state")
    if model.dtype == "float32" and jax.default_backend() != "cpu":  # where it saves nothing
        options.append("multiply in half the bytes with --config.model.dtype=bfloat16")
    options.append(f"use more devices than {devices}, which divide the batch")
    options.append(f"lower --config.train.identities_per_batch={train.identities_per_batch}")
    options.append("take a smaller --config.model.variant")
    first, second, third = options[:3]
    return f"{first}, {second}, or {third}"


def size(amount: int) -> str:
    """Bytes in words."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if amount >= scale:
            return f"{amount / scale:.2f} {unit}"
    return f"{amount / 1e3:.1f} kB"
