"""Tensors of a PyTorch checkpoint (zip or legacy `.pth`), read without PyTorch.

A checkpoint is a pickle beside raw storages. `torch_pickle` makes `Tensor` records of the pickle;
they become arrays here, each only when asked for and after its bounds were checked.
"""

import io
import math
import zipfile
from typing import BinaryIO

import numpy as np

from facenet_jax.weights.torch_pickle import Storage, Tensor, interpret, reading

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_BROADCAST_ROOM = 2**26  # bytes that an expanded (stride 0) tensor may claim in any file


class TorchFile:
    """An open checkpoint: `content` with `Tensor` records in it, and `array` to resolve one.

    Raises `UserError` for files that are truncated, corrupt or ask for foreign objects.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.name = name
        self._bytes: dict[str, bytes] = {}
        file.seek(0, io.SEEK_END)
        self._size = file.tell()
        file.seek(0)
        self._order = "little"
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
            raw = self._fetch(storage)
            flat = np.frombuffer(raw, np.dtype(f"u{storage.dtype.itemsize}"))
            flat = flat if self._order == "little" else flat.byteswap()
            width = storage.dtype.itemsize
            return np.lib.stride_tricks.as_strided(
                flat.view(storage.dtype)[storage.start + tensor.offset :],
                tensor.shape,
                [width * stride for stride in tensor.strides],
                writeable=False,
            )

    def _check(self, tensor: Tensor) -> None:
        """Raises ValueError unless every element that the tensor names lies in its storage."""
        numbers = (tensor.offset, *tensor.shape, *tensor.strides)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"offset, shape and strides {numbers} must be integers from 0")
        if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > 32:
            raise ValueError(f"shape {tensor.shape} does not go with strides {tensor.strides}")
        steps = zip(tensor.shape, tensor.strides, strict=True)
        empty = 0 in tensor.shape
        last = tensor.offset + (0 if empty else sum((n - 1) * step for n, step in steps) + 1)
        if last > tensor.storage.count:
            raise ValueError(
                f"a tensor of shape {tensor.shape}, strides {tensor.strides} and offset "
                f"{tensor.offset} leaves its storage of {tensor.storage.count} elements"
            )
        size = math.prod(tensor.shape) * tensor.storage.dtype.itemsize
        if size > max(self._size, _BROADCAST_ROOM):
            raise ValueError(f"a tensor of {size} bytes in a file of {self._size} bytes")

    def _fetch(self, storage: Storage) -> bytes:
        if storage.key not in self._bytes:
            self._bytes[storage.key] = self._load(storage.key)
        raw = self._bytes[storage.key]
        needed = (storage.start + storage.count) * storage.dtype.itemsize
        if needed > len(raw) or len(raw) % storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key} has {len(raw)} bytes, {needed} are needed")
        return raw

    def _open_zip(self, archive: zipfile.ZipFile) -> None:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive without the one data.pkl of a checkpoint")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("its entries are compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries.values()) > self._size:
            raise ValueError("its entries claim more bytes than the file has")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in entries:
            self._order = archive.read(root + "byteorder").decode()
        if self._order not in ("little", "big"):
            raise ValueError(f"unknown byte order {self._order!r}")
        self._load = lambda key: archive.read(f"{root}data/{key}")
        self.content = interpret(io.BytesIO(archive.read(pickles[0])), self.name)

    def _open_legacy(self, file: BinaryIO) -> None:
        file.seek(0)
        if interpret(file, self.name) != _LEGACY_MAGIC:
            raise ValueError("it does not begin as a PyTorch file does")
        version = interpret(file, self.name)
        if version != _LEGACY_PROTOCOL:
            raise ValueError(f"its protocol is {version!r}, not {_LEGACY_PROTOCOL}")
        interpret(file, self.name)  # sizes of C types on the machine that wrote it
        storages: dict[str, Storage] = {}
        self.content = interpret(file, self.name, storages)
        for key in interpret(file, self.name):
            count = int.from_bytes(_exactly(file, 8), "little")
            storage = storages.get(key)
            if storage is None:
                raise ValueError(f"storage {key!r} belongs to no tensor")
            self._bytes[key] = _exactly(file, count * storage.dtype.itemsize)
        self._load = lambda key: b""  # a key that the file does not list has no bytes


def _exactly(file: BinaryIO, count: int) -> bytes:
    here = file.tell()
    if count > file.seek(0, io.SEEK_END) - here:
        raise ValueError(f"{count} bytes at byte {here} go beyond its end")
    file.seek(here)
    return file.read(count)
