"""Images that the devices have no room for: read from disk, batch by batch, ahead of their steps.

A `Streamed` takes the place of a `Resident`: the same plan, the same batches, the same numbers to
the last bit. Where a stream stands is the number of steps done, so a run resumes as a resident one.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence

import grain.experimental as experimental
import grain.python as grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from facenet_jax.step import Resident, Window

IN_FLIGHT = 3
"""Windows at once: one that the device reads, one that waits for it, one being filled."""

LABELS = [field.name for field in dataclasses.fields(Resident) if field.name != "images"]


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A split with its labels on the devices and its images on disk."""

    labels: Resident  # without images
    images: tuple[np.ndarray, ...]  # uint8 [M, N_i, H, W, 3]; rows count on from one to the next

    @property
    def flare(self) -> jax.Array:
        """Flare labels [N, 2] bool."""
        return self.labels.flare


class OnDisk:
    """An array that other processes get as a place in its file, where it is a memory map."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __reduce__(self) -> tuple[Callable, tuple]:
        view = self.array
        if not isinstance(view, np.memmap):
            return OnDisk, (view,)
        whole = view
        while isinstance(whole.base, np.memmap):
            whole = whole.base
        start = view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        file = (str(whole.filename), whole.dtype.str, whole.offset, whole.shape)
        return reopen, (file, start, view.shape, view.strides)


def reopen(file: tuple, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> OnDisk:
    """The array that an `OnDisk` was pickled from."""
    name, dtype, offset, whole = file
    buffer = np.memmap(name, dtype, "r", offset, whole)
    return OnDisk(np.ndarray(shape, dtype, buffer, start, strides))


class Batches:
    """A Grain source whose element is the images uint8 [M, B, H, W, 3] of one step."""

    def __init__(self, images: Sequence[np.ndarray], rows: np.ndarray):
        self.parts = [OnDisk(part) for part in images]
        self.rows = rows  # [steps, M, B]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: int) -> np.ndarray:
        rows, shape = self.rows[step], self.parts[0].array.shape
        batch, first = np.empty((*rows.shape, *shape[2:]), np.uint8), 0
        for part in (part.array for part in self.parts):
            here = (rows >= first) & (rows < first + part.shape[1])
            band, _ = np.nonzero(here)
            batch[here] = part[band, rows[here] - first]
            first += part.shape[1]
        return batch


class Stream:
    """Called with a number of steps: the `Window` of the next so many, at most `length`.

    `rows` [S, M, B] is the plan, of which the steps from `start` on are read; each process reads
    the columns of its own devices. `workers` processes read ahead, or threads of this one for 0.
    """

    def __init__(
        self, data: Streamed, rows: np.ndarray, length: int, mesh: Mesh, workers: int, start: int
    ):
        self.labels, self.length, self.step = data.labels, length, start
        self.bands = rows.shape[1]
        self.shape = (length, rows.shape[2], *data.images[0].shape[2:])
        self.sharding = NamedSharding(mesh, P(None, "data"))
        mine = self.sharding.addressable_devices_indices_map(self.shape).values()
        self.columns = np.unique(np.concatenate([np.arange(rows.shape[2])[i[1]] for i in mine]))
        if workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain asks flags of its own, also in a notebook
        source = Batches(data.images, rows[start:, :, self.columns])
        threads, ahead = 1 if workers else 4, -(-length // max(1, workers))
        batches = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
        )
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
        if workers:
            # Through pipes: shared memory is 64 MB in a container, and Grain 0.2.18 leaves some of
            # it behind at the end.
            piped = experimental.DatasetOptions(min_shm_size=sys.maxsize)
            batches = experimental.WithOptionsIterDataset(batches, piped).mp_prefetch(options)
        self.batches = iter(batches)

    def __call__(self, count: int) -> Window:
        """The next `count` <= K batches on the devices; what else the window holds is noise."""
        local = (self.length, len(self.columns), *self.shape[2:])
        # New memory each time: the transfer of the last window may still be under way.
        bands = [np.empty(local, np.uint8) for _ in range(self.bands)]
        for step in range(self.step, self.step + count):
            for band, images in zip(bands, next(self.batches), strict=True):
                band[step % self.length] = images
        self.step += count
        return window(self.labels, tuple(self.put(band) for band in bands))

    def put(self, local: np.ndarray) -> jax.Array:
        """The columns of this process as its part of an array over all devices."""

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = index[1].indices(self.shape[1])
            at = int(np.searchsorted(self.columns, first))
            return local[:, at : at + stop - first]

        return jax.make_array_from_callback(self.shape, self.sharding, piece)

    def close(self) -> None:
        """Stop reading."""
        self.batches.close()


def feed(
    data: Resident | Streamed,
    rows: np.ndarray,
    length: int,
    mesh: Mesh,
    *,
    workers: int = 0,
    start: int = 0,
) -> contextlib.AbstractContextManager[Callable[[int], Resident]]:
    """A context with what a chunk of steps reads, by their number: `data` itself, or windows of it.

    Args:
        data: a split.
        rows: the whole plan, int [S, M, B].
        length: most steps of one call, K.
        mesh: the devices.
        workers: processes that read; 0: threads of this one.
        start: the step that the first call is for.
    """
    if isinstance(data, Resident):
        return contextlib.nullcontext(lambda count: data)
    return contextlib.closing(Stream(data, rows, length, mesh, workers, start))


def shapes(data: Resident | Streamed, length: int, batch: int, mesh: Mesh) -> Resident:
    """What `feed` gives for `data`, images as shapes where they stream: enough to compile with."""
    if isinstance(data, Resident):
        return data
    image = data.images[0].shape[2:]
    band = jax.ShapeDtypeStruct(
        (length, batch, *image), np.uint8, sharding=NamedSharding(mesh, P(None, "data"))
    )
    return window(data.labels, (band,) * len(data.images[0]))


def window(labels: Resident, images: tuple) -> Window:
    """The labels of a split with the images of a window."""
    return Window(images=images, **{name: getattr(labels, name) for name in LABELS})
