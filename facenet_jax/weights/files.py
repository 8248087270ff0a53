"""The tensors in a weight file of any of the known formats, under the names they have there."""

import io
import os
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from data_tfds.errors import UserError
from facenet_jax.runtime import npz
from facenet_jax.weights.messages import listed, reading, shown
from facenet_jax.weights.torch_file import TorchFile
from facenet_jax.weights.torch_pickle import Script, Tensor

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


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every tensor of a PyTorch (zip, legacy, TorchScript), safetensors or NumPy file, by name.

    The format is recognised by the content. `path` may be a URL (gs://, hf://OWNER/NAME/FILE,
    s3://, https://) where the package of that file system is installed. Wrappers such as
    {"model": ...}, {"state_dict": ...}
    and DINO's {"teacher": ..., "student": ...} are opened, the first of them that the file has;
    what is not a tensor is left out. Types stay as stored (bfloat16 as ml_dtypes'); arrays may be
    read-only. Raises UserError for files that cannot be read; nothing of the file is ever run.
    """
    name = os.fspath(path)
    with opened(name) as file, reading(name):
        start = file.read(9)
        if start[8:] == b"{":
            return _read_safetensors(file)
        if start[:4] == b"PK\x03\x04":
            archive = zipfile.ZipFile(file)
            if any(entry.filename.endswith(".npy") for entry in archive.infolist()):
                return npz.read_arrays(archive, file.seek(0, io.SEEK_END), harmless=0)
        elif start[:1] != b"\x80":
            raise UserError(
                f"{name} is no PyTorch, safetensors or NumPy .npz file; it begins with {start!r}"
            )
        torch_file = TorchFile(file, name)
        tensors = _unwrap(torch_file.content)
        return {key: torch_file.array(tensor) for key, tensor in tensors.items()}


def as_float32(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """`arrays` as float32, for a model to start from.

    Raises UserError for arrays that are not of a floating type, or not finite in float32, naming
    all of them: in training they would only show as a loss that is NaN. `source` is where they are
    from.
    """
    problems, weights = [], {}
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
            problems.append(f"{shown(name)} has type {shown(str(array.dtype))}")
            continue
        with np.errstate(over="ignore"):
            weights[name] = array.astype(np.float32, copy=False)
        if not np.isfinite(weights[name]).all():
            problems.append(f"{shown(name)} holds NaN or values beyond float32")
    if problems:
        raise UserError(
            f"{source} has arrays that can be no weights: {listed(problems)}; "
            "fetch the file again, or take another one"
        )
    return weights


def opened(name: str) -> BinaryIO:
    """A file or a URL to read bytes from; raises UserError where there is none."""
    try:
        if "://" not in name:
            return open(name, "rb")
        import fsspec  # only URLs need it

        return fsspec.open(name, "rb").open()
    except ImportError as error:
        raise UserError(
            f"{name} needs a file system package that is not installed ({error}); "
            "install it (gcsfs for gs://, huggingface_hub for hf://), or copy the file here"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist; give the path of a weight file") from error
    except Exception as error:  # each file system has its own errors
        raise UserError(f"{name} cannot be opened: {error}") from error


def _unwrap(content: Any) -> dict[str, Tensor]:
    if isinstance(content, Script):
        content = content.tensors()
    for _ in range(len(_WRAPPERS)):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
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
