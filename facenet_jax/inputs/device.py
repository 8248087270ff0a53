"""A split in device memory, and the batch at some of its rows."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_tfds.samples import Split
from facenet_jax.runtime.mesh import replicate, split_batch
from facenet_jax.types import Batch

LANES, SUBLANES = 128, 32
"""A TPU keeps uint8 in tiles of 32 x 128."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceSplit:
    """Images and labels of a split. Each modality has its own number of images N_m.

    `size` (H, W): the images are in tiles, see `in_tiles`; None: as they are.
    `windowed`: the images are only those of the next K batches, [K, B, H, W, 3] for each modality,
    split over the devices along B; the batch of step s is at s % K. Labels are those of all images.
    """

    images: tuple[jax.Array, ...]  # M arrays uint8 [N_m, H, W, 3], or in tiles, or windows
    identity: tuple[jax.Array, ...]  # M arrays [N_m] int32
    labels: Mapping[str, tuple[jax.Array, ...]]  # {name: M arrays [N_m]}
    missing: bool = dataclasses.field(default=False, metadata={"static": True})  # some rows are -1
    windowed: bool = dataclasses.field(default=False, metadata={"static": True})
    size: tuple[int, int] | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def modalities(self) -> int:
        """M."""
        return len(self.identity)


def tiled(size: tuple[int, int], mesh: Mesh) -> tuple[int, int] | None:
    """The [K, 128] that a mesh keeps an image of this size (H, W) in; None: as [H, W, 3].

    From arrays [N, H, W, 3] of some widths that are no multiple of 128 a TPU cannot take rows as
    they lie: by its compiler's estimate it copies all images first, at each call (288 x 144: 20 ms
    for 7,606 of them; 252 x 126: not). Out of tiles a batch takes 0.1 to 0.3 ms. K is filled up to
    whole tiles where that costs little memory.
    """
    height, width = size
    if mesh.devices.flat[0].platform != "tpu" or width % LANES == 0:
        return None
    rows = -(-height * width * 3 // LANES)
    more = -rows % SUBLANES
    return rows + (more if 16 * more <= rows else 0), LANES


def in_tiles(images: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [N, H, W, 3] as [N, *shape]: each image's bytes in order, zeros behind them."""
    flat = images.reshape(len(images), math.prod(images.shape[1:]))
    if flat.shape[1] < shape[0] * LANES:
        filled = np.zeros((len(images), shape[0] * LANES), np.uint8)
        filled[:, : flat.shape[1]] = flat
        flat = filled
    return flat.reshape(len(images), *shape)


def with_images(
    labels: DeviceSplit, images: Iterable[np.ndarray], size: tuple[int, int], mesh: Mesh
) -> DeviceSplit:
    """The labels of a split with the images [N_m, H, W, 3] of each modality on every device.

    `images` are asked for one after the other, so that the host holds one of them at a time.
    """
    tiles = tiled(size, mesh)
    resident = tuple(replicate(in_tiles(one, tiles) if tiles else one, mesh) for one in images)
    return dataclasses.replace(labels, images=resident, size=size if tiles else None)


def gather(
    data: DeviceSplit, rows: jax.Array, step: jax.Array, mesh: Mesh
) -> tuple[jax.Array, Batch]:
    """(images uint8 [M, B, H, W, 3], the batch without them) at image rows [M, B] of `data`.

    Row -1 is a missing image: black, labels of row 0, `present` False. Column j of every modality
    has one identity. `step` finds the batch in a window, which has the images of these rows
    already. The batch is split over the devices of `mesh`.
    """
    rows = split_batch(rows, mesh, 1)
    present = rows >= 0 if data.missing else None
    found = jnp.maximum(rows, 0) if data.missing else rows
    if data.windowed:
        images = jnp.stack([window[step % len(window)] for window in data.images])
    else:
        images = jnp.stack([part[row] for part, row in zip(data.images, found, strict=True)])
        if data.size is not None:
            shape = (*data.size, 3)
            flat = images.reshape(*images.shape[:2], -1)[..., : math.prod(shape)]
            images = flat.reshape(*images.shape[:2], *shape)
        if present is not None:
            images = jnp.where(present[:, :, None, None, None], images, jnp.zeros_like(images))

    def at_rows(columns: Sequence[jax.Array]) -> jax.Array:
        return jnp.stack([column[row] for column, row in zip(columns, found, strict=True)])

    labels = {name: at_rows(columns) for name, columns in data.labels.items()}
    if present is None:
        identity = data.identity[0][found[0]]
    else:
        first = jnp.argmax(present, axis=0)  # the first modality that has an image
        identity = jnp.take_along_axis(at_rows(data.identity), first[None], axis=0)[0]
    return images, Batch(None, identity, labels, present)


def image_labels(split: Split, column: np.ndarray, modality: int) -> np.ndarray:
    """A label of the samples, [N] or [N, M], as the label of one modality's images, [N_m]."""
    column = column[:, modality] if column.ndim > 1 else column
    row = split.rows[modality]
    found = np.zeros(len(split.images[split.modalities[modality]]), column.dtype)
    found[row[row >= 0]] = column[row >= 0]
    return found
