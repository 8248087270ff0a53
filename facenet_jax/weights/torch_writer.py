"""A state dict as the zip file that `torch.save` writes, without PyTorch.

`torch.load(path, weights_only=True)` reads it. Only what a state dict needs is written: an ordered
dictionary of contiguous tensors, each with a storage of its own.
"""

import os
import pathlib
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.torch_pickle import STORAGES

_NAMES = {dtype: name for name, dtype in STORAGES.items()}
_ALIGNMENT = 64  # bytes; torch maps storages into memory in place


def write_state_dict(path: str | os.PathLike[str], state: Mapping[str, np.ndarray]) -> None:
    """Write {name: array} to `path`, completely or not at all.

    Raises UserError for a folder that cannot be written and for types that torch does not have.
    """
    path = pathlib.Path(path)
    for name, array in state.items():
        if array.dtype not in _NAMES:
            raise UserError(f"{name} has type {array.dtype}, which cannot be written to {path}")
    part = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            root = path.stem or "archive"
            _add(archive, f"{root}/data.pkl", _pickle(state))
            _add(archive, f"{root}/byteorder", b"little")
            for key, array in enumerate(state.values()):
                _add(archive, f"{root}/data/{key}", array.tobytes())
            _add(archive, f"{root}/version", b"3\n")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}); free space there") from error


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """An entry whose data begin at a multiple of the alignment, by padding in its header."""
    entry = zipfile.ZipInfo(name)  # dated 1980: the same weights give the same file
    start = archive.fp.tell() + 30 + len(name.encode())
    padding = -(start + 4) % _ALIGNMENT
    entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(entry, data)


def _pickle(state: Mapping[str, np.ndarray]) -> bytes:
    """The pickle (protocol 2) of an OrderedDict of tensors."""
    parts = [b"\x80\x02", _global("collections.OrderedDict"), b")R("]
    for key, (name, array) in enumerate(state.items()):
        strides = tuple(np.cumprod((1, *array.shape[:0:-1]))[::-1].tolist()) if array.ndim else ()
        reference = (
            b"(" + _text("storage") + _global(f"torch.{_NAMES[array.dtype]}") + _text(str(key))
            + _text("cpu") + _integer(array.size) + b"tQ"
        )  # fmt: skip
        parts += [_text(name), _global("torch._utils._rebuild_tensor_v2"), b"(", reference]
        parts += [_integer(0), _integers(array.shape), _integers(strides), b"\x89"]
        parts += [_global("collections.OrderedDict"), b")R", b"tR"]
    return b"".join([*parts, b"u."])


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
