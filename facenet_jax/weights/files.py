"""The tensors in a weight file, whatever its format: the step before any name is looked at."""

import io
import math
import os
import zipfile
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.torch_pickle import Tensor, reading
from facenet_jax.weights.torch_reader import TorchFile

_WRAPPERS = ("model", "state_dict", "teacher", "student")
_SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_PLAUSIBLE_RATIO = 100  # weights hardly compress; a file that grows more than this is a bomb


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every tensor of a PyTorch (zip or legacy), safetensors or NumPy file, by its name there.

    The format is told by the content. `path` may be a URL (gs://, s3://, https://) where the
    package of that file system is installed. Wrappers such as {"model": ...}, {"state_dict": ...}
    and DINO's {"teacher": ..., "student": ...} are opened, the first of them that is there; what
    is not a tensor is left out. Types stay as stored (bfloat16 as ml_dtypes'); arrays may be
    read-only. Raises `UserError`; nothing of the file is ever run.
    """
    name = os.fspath(path)
    with _open(name) as file, reading(name):
        start = file.read(9)
        if start[8:] == b"{":
            return _read_safetensors(file)
        if start[:4] == b"PK\x03\x04":
            archive = zipfile.ZipFile(file)
            if any(entry.filename.endswith(".npy") for entry in archive.infolist()):
                return _read_npz(archive, file.seek(0, io.SEEK_END))
        elif start[:1] != b"\x80":
            raise UserError(
                f"{name} is no PyTorch, safetensors or NumPy .npz file; it begins with {start!r}"
            )
        torch_file = TorchFile(file, name)
        tensors = _unwrap(torch_file.content)
        return {key: torch_file.array(tensor) for key, tensor in tensors.items()}


def _open(name: str) -> BinaryIO:
    try:
        if "://" not in name:
            return open(name, "rb")
        import fsspec  # only URLs need it

        return fsspec.open(name, "rb").open()
    except ImportError as error:
        raise UserError(
            f"{name} needs a file system package that is not installed ({error}); "
            "install it (gcsfs for gs://), or copy the file to this machine"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist; give the path of a weight file") from error
    except Exception as error:  # each file system has its own errors
        raise UserError(f"{name} cannot be opened: {error}") from error


def _unwrap(content: Any) -> dict[str, Tensor]:
    for _ in range(len(_WRAPPERS)):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError("it holds no tensors by name")
    return tensors


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    import safetensors

    file.seek(0)
    arrays = {}
    for name, entry in safetensors.deserialize(file.read()):
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{name} has type {entry['dtype']}, which is not supported")
        flat = np.frombuffer(entry["data"], _SAFETENSORS_DTYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


def _read_npz(archive: zipfile.ZipFile, file_size: int) -> dict[str, np.ndarray]:
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > _PLAUSIBLE_RATIO * file_size:
        raise ValueError(f"its entries claim more than {_PLAUSIBLE_RATIO} times its size")
    return {e.filename.removesuffix(".npy"): _read_npy(archive.read(e)) for e in entries}


def _read_npy(raw: bytes) -> np.ndarray:
    """One array of an .npz, its header checked against the bytes before any memory is taken."""
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}")
    read_header = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)
    shape, fortran, dtype = read_header[version[0] - 1](file)
    if dtype.hasobject:
        raise ValueError("an entry holds Python objects, which are never loaded")
    if dtype == np.dtype("V2"):  # how NumPy stores a bfloat16 that it does not know
        dtype = np.dtype(ml_dtypes.bfloat16)
    if math.prod(shape) * dtype.itemsize != len(raw) - file.tell():
        raise ValueError(f"an entry of shape {shape} has {len(raw) - file.tell()} bytes")
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape, order="FC"[not fortran])
