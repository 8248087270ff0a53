"""Images that do not fit in device memory: read from disk in batches, ahead of their steps.

An `OnDiskSplit` takes the place of a resident `DeviceSplit`: the same plan, the same batches, the
same numbers to the last bit. The position of a stream is the number of steps done, so a run
resumes as a resident one.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from facenet_jax.inputs.device import DeviceSplit
from facenet_jax.runtime.parent import end_with_parent

IN_FLIGHT = 3
"""Windows in memory at once: one in use by the device, one ready, one being filled."""


@dataclasses.dataclass(frozen=True)
class OnDiskSplit:
    """A split with its labels on the devices and its images on disk."""

    labels: DeviceSplit  # without images
    images: tuple[tuple[np.ndarray, ...], ...]  # for each modality arrays uint8 [N_i, H, W, 3]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""
        return self.images[0][0].shape[1:]


class OnDisk:
    """An array that is pickled as a position in its file, where it is a memory map."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __reduce__(self) -> tuple[Callable, tuple]:
        view = self.array
        if not isinstance(view, np.memmap):
            return OnDisk, (view,)
        file_map = view
        while isinstance(file_map.base, np.memmap):
            file_map = file_map.base
        start = view.__array_interface__["data"][0] - file_map.__array_interface__["data"][0]
        file = (str(file_map.filename), file_map.dtype.str, file_map.offset, file_map.shape)
        return reopen, (file, start, view.shape, view.strides)


def reopen(file: tuple, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> OnDisk:
    """The array that an `OnDisk` was pickled from."""
    name, dtype, offset, length = file
    buffer = np.memmap(name, dtype, "r", offset, length)
    return OnDisk(np.ndarray(shape, dtype, buffer, start, strides))


class Batches:
    """A Grain source whose element is the images uint8 [M, B, H, W, 3] of one step.

    The rows of a modality are numbered through all of its arrays; row -1 gives a black image.
    """

    def __init__(self, images: Sequence[Sequence[np.ndarray]], rows: np.ndarray):
        self.parts = [[OnDisk(part) for part in parts] for parts in images]
        self.rows = rows  # [steps, M, B]

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        end_with_parent()  # unpickled: this is a worker

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: int) -> np.ndarray:
        rows, shape = self.rows[step], self.parts[0][0].array.shape[1:]
        batch = np.zeros((*rows.shape, *shape), np.uint8)
        for images, row, parts in zip(batch, rows, self.parts, strict=True):
            first = 0
            for part in (part.array for part in parts):
                inside = (row >= first) & (row < first + len(part))
                images[inside] = part[row[inside] - first]
                first += len(part)
        return batch


class Prefetcher:
    """prefetcher(count) -> a `DeviceSplit` with the window of the next `count` batches.

    `rows` [S, M, B] is the plan, of which the steps from `start` on are read; each process reads
    the columns of its own devices. A window holds up to `length` batches. `workers` processes read
    ahead, or threads of this one for 0.
    """

    def __init__(
        self,
        data: OnDiskSplit,
        rows: np.ndarray,
        length: int,
        mesh: Mesh,
        workers: int,
        start: int,
    ):
        import grain.experimental as experimental  # slow to import, and only streams need it
        import grain.python as grain

        self.labels, self.length, self.step = data.labels, length, start
        self.modalities = rows.shape[1]
        self.shape = (length, rows.shape[2], *data.image_shape)
        self.sharding = NamedSharding(mesh, P(None, "data"))
        mine = self.sharding.addressable_devices_indices_map(self.shape).values()
        self.columns = np.unique(np.concatenate([np.arange(rows.shape[2])[i[1]] for i in mine]))
        if workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own, also in a notebook
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

    def __call__(self, count: int) -> DeviceSplit:
        """The next `count` <= length batches on the devices; the rest is undefined."""
        local = (self.length, len(self.columns), *self.shape[2:])
        # New memory each time: the transfer of the last window may still be under way.
        windows = [np.empty(local, np.uint8) for _ in range(self.modalities)]
        for step in range(self.step, self.step + count):
            for window, images in zip(windows, next(self.batches), strict=True):
                window[step % self.length] = images
        self.step += count
        return with_window(self.labels, tuple(self.device_put(window) for window in windows))

    def device_put(self, local: np.ndarray) -> jax.Array:
        """The columns of this process as its part of an array over all devices."""

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = index[1].indices(self.shape[1])
            at = int(np.searchsorted(self.columns, first))
            return local[:, at : at + stop - first]

        return jax.make_array_from_callback(self.shape, self.sharding, piece)

    def close(self) -> None:
        """Stop reading."""
        self.batches.close()


def open_reader(
    data: DeviceSplit | OnDiskSplit,
    rows: np.ndarray,
    length: int,
    mesh: Mesh,
    *,
    workers: int = 0,
    start: int = 0,
) -> contextlib.AbstractContextManager[Callable[[int], DeviceSplit]]:
    """A context manager that gives read(count): the data of the next `count` steps.

    That is `data` itself where it is resident, or else a window.

    Args:
        data: a split.
        rows: the plan of all steps, int [S, M, B].
        length: most steps of one call, K.
        mesh: the devices.
        workers: processes that read; 0: threads of this one.
        start: the step that the first call is for.
    """
    if isinstance(data, DeviceSplit):
        return contextlib.nullcontext(lambda count: data)
    return contextlib.closing(Prefetcher(data, rows, length, mesh, workers, start))


def shapes(data: DeviceSplit | OnDiskSplit, length: int, batch: int, mesh: Mesh) -> DeviceSplit:
    """What a reader gives for `data`, to compile with: streamed images as shapes."""
    if isinstance(data, DeviceSplit):
        return data
    window = jax.ShapeDtypeStruct(
        (length, batch, *data.image_shape),
        np.uint8,
        sharding=NamedSharding(mesh, P(None, "data")),
    )
    return with_window(data.labels, (window,) * len(data.images))


def with_window(labels: DeviceSplit, images: tuple) -> DeviceSplit:
    """The labels of a split with the images of a window."""
    return dataclasses.replace(labels, images=images, windowed=True)
