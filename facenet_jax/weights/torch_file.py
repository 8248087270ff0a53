"""Tensors of a PyTorch checkpoint (zip, legacy `.pth` or TorchScript), read without PyTorch.

A checkpoint is a pickle beside raw storages. `torch_pickle` makes `Tensor` records of the pickle;
they become arrays here, each only when asked for and after its bounds were checked.
"""

import io
import math
import zipfile
from typing import BinaryIO

import numpy as np

from facenet_jax.weights.messages import reading, shown
from facenet_jax.weights.torch_pickle import Storage, Tensor, unpickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_BROADCAST_ROOM = 2**26  # bytes that expanded (stride 0) tensors may claim in any file
_REPEATS = 4  # times its own size that a file may name in tensors that share storages


class TorchFile:
    """An open checkpoint: `content` with `Tensor` records in it, and `array` to resolve one.

    Raises UserError for files that are truncated, corrupt or ask for foreign objects.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.name = name
        self._flat: dict[str, np.ndarray] = {}
        self._size = file.seek(0, io.SEEK_END)
        self._room = _REPEATS * self._size + _BROADCAST_ROOM
        self._order = "little"
        file.seek(0)
        with reading(name):
            if file.read(4) == b"PK\x03\x04":
                self._open_zip(zipfile.ZipFile(file))
            else:
                self._open_legacy(file)

    def array(self, tensor: Tensor) -> np.ndarray:
        """Values of one tensor, possibly a read-only view that shares memory with others."""
        with reading(self.name):
            self._check(tensor)
            storage = tensor.storage
            return np.lib.stride_tricks.as_strided(
                self._elements(storage)[storage.start + tensor.offset :],
                tensor.shape,
                [storage.dtype.itemsize * stride for stride in tensor.strides],
                writeable=False,
            )

    def _check(self, tensor: Tensor) -> None:
        """Raises ValueError where an element of the tensor is outside its storage."""
        steps = zip(tensor.shape, tensor.strides, strict=True)
        empty = 0 in tensor.shape
        last = tensor.offset + (0 if empty else sum((n - 1) * step for n, step in steps) + 1)
        if last > tensor.storage.count:
            raise ValueError(
                f"a tensor of shape {tensor.shape}, strides {tensor.strides} and offset "
                f"{tensor.offset} leaves its storage of {tensor.storage.count} elements"
            )
        size = math.prod(tensor.shape) * tensor.storage.dtype.itemsize
        self._room -= size
        if size > max(self._size, _BROADCAST_ROOM) or self._room < 0:
            raise ValueError(f"tensors of {size} bytes and more in a file of {self._size} bytes")

    def _elements(self, storage: Storage) -> np.ndarray:
        """All elements of the storage that this one is, or is a view of."""
        dtype = storage.dtype
        if storage.key not in self._flat:
            raw = self._load(storage.key)
            if len(raw) % dtype.itemsize:
                raise ValueError(f"storage {shown(storage.key)} has {len(raw)} bytes")
            flat = np.frombuffer(raw, np.dtype(f"u{dtype.itemsize}"))
            flat = flat if self._order == "little" else flat.byteswap()
            self._flat[storage.key] = flat.view(dtype)
        flat = self._flat[storage.key]
        if storage.start + storage.count > len(flat):
            raise ValueError(
                f"storage {shown(storage.key)} has {len(flat)} elements, "
                f"{storage.start + storage.count} are needed"
            )
        return flat

    def _open_zip(self, archive: zipfile.ZipFile) -> None:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive without the one data.pkl of a checkpoint")
        root = pickles[0].removesuffix("data.pkl")
        # The code of a TorchScript archive may be compressed; it is never read.
        read = [entry for name, entry in entries.items() if not name.startswith(f"{root}code/")]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in read):
            raise ValueError("its entries are compressed, which torch.save never does")
        if sum(entry.file_size for entry in read) > self._size:
            raise ValueError("its entries claim more bytes than the file has")
        if root + "byteorder" in entries:
            self._order = archive.read(root + "byteorder").decode()
        if self._order not in ("little", "big"):
            raise ValueError("its byte order is neither little nor big")
        self._load = lambda key: archive.read(f"{root}data/{key}")
        self.content = unpickle(io.BytesIO(archive.read(pickles[0])), self.name)

    def _open_legacy(self, file: BinaryIO) -> None:
        file.seek(0)
        for wanted in (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
            number = unpickle(file, self.name)
            if type(number) is not int or number != wanted:
                raise ValueError(f"it does not begin as a PyTorch file does, with {wanted}")
        unpickle(file, self.name)  # sizes of C types on the machine that wrote it
        storages: dict[str, Storage] = {}
        self.content = unpickle(file, self.name, storages)
        keys = unpickle(file, self.name)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise ValueError("its storages are not listed by their keys")
        stored: dict[str, bytes] = {}
        for key in keys:
            if key not in storages:
                raise ValueError(f"storage {shown(key)} belongs to no tensor")
            count = int.from_bytes(_exactly(file, 8), "little")
            stored[key] = _exactly(file, count * storages[key].dtype.itemsize)
        self._load = lambda key: stored.get(key, b"")  # what the file does not list has no bytes


def _exactly(file: BinaryIO, count: int) -> bytes:
    position = file.tell()
    if count > file.seek(0, io.SEEK_END) - position:
        raise ValueError(f"{count} bytes at byte {position} go beyond its end")
    file.seek(position)
    return file.read(count)
