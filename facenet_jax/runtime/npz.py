"""The arrays of an .npz archive, read without an object and without memory that it only claims."""

import io
import math
import zipfile

import ml_dtypes
import numpy as np

RATIO = 100
"""Arrays of numbers hardly compress; an archive that grows more is an attack."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_arrays(archive: zipfile.ZipFile, file_size: int, harmless: int) -> dict[str, np.ndarray]:
    """Every array of the archive, a file of `file_size` bytes, by name. Arrays are read-only.

    Raises ValueError for entries that claim more than `RATIO` times the file and more than
    `harmless` bytes, and for what is no array; zipfile's errors for a damaged archive.
    """
    entries = archive.infolist()
    claimed = sum(entry.file_size for entry in entries)
    if claimed > max(RATIO * file_size, harmless):
        raise ValueError(f"its entries claim {claimed} bytes, more than {RATIO} times its size")
    return {
        entry.filename.removesuffix(".npy"): read_array(archive.read(entry)) for entry in entries
    }


def read_array(raw: bytes) -> np.ndarray:
    """One array of an .npz, its header checked against the bytes before any memory is taken."""
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"npy version {version}")
    try:
        shape, fortran, dtype = _HEADERS[version](file)
    except Exception as error:  # Python's tokenizer has errors of its own
        raise ValueError(
            f"a damaged header ({str(error)[:100] or type(error).__name__})"
        ) from error
    if dtype.hasobject:
        raise ValueError("an entry holds Python objects, which are never loaded")
    if dtype == np.dtype("V2"):  # how NumPy stores a bfloat16 that it does not know
        dtype = np.dtype(ml_dtypes.bfloat16)
    if math.prod(shape) * dtype.itemsize != len(raw) - file.tell():
        raise ValueError(f"an entry of shape {shape} has {len(raw) - file.tell()} bytes")
    if not math.prod(shape) or not dtype.itemsize:
        return np.empty(shape, dtype)
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape, order="FC"[not fortran])
