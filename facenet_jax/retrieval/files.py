"""Files of embeddings as plain arrays: our own .npz, and what others write, .npz or .npy + .csv.

A file needs `embedding` [N, E], `identity` [N] and the labels that a protocol asks for. Beside an
.npy of the embeddings lies a .csv of the same name with a header and a row for each of theirs.
"""

import csv
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from data_tfds.errors import UserError
from data_tfds.paths import Place, as_os_error, is_remote, open_path
from facenet_jax.runtime import npz

UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
)
"""What NumPy and zipfile raise for a damaged archive or one that holds objects."""

HARMLESS = 2**28
"""Bytes that an archive may unpack to, however small it is."""

REQUIRED = ("embedding", "identity")

TEXTS = ("name", "identity_name", "modalities", "label_modalities", "mixed")
"""Arrays that are text; that of any other stands for the values of a label."""


def read_arrays(paths: Sequence[Place | str]) -> list[dict[str, np.ndarray]]:
    """The arrays of each file by name, labels that are text numbered alike in all of them.

    UserError, which names the file, where it is missing or damaged or lacks a required array.
    """
    tables = [_read(open_path(path), str(path)) for path in paths]
    for table, path in zip(tables, paths, strict=True):
        missing = [field for field in REQUIRED if field not in table]
        if missing:
            raise UserError(
                f"{path} has no array {', '.join(missing)}; it must have {' and '.join(REQUIRED)}, "
                "and the labels of the protocol."
            )
        embedding = table["embedding"]
        rows = np.arange(embedding.shape[0] if embedding.ndim else 0)
        table.setdefault("name", rows.astype(np.str_))
    for label in set().union(*tables) - set(TEXTS):
        _number([table for table in tables if label in table], label)
    return tables


def _number(tables: list[dict[str, np.ndarray]], label: str) -> None:
    """Put numbers in the place of a label's texts: the same for the same text in all `tables`.

    Where every text is a whole number it is that number; -1 stands for an empty one.
    """
    columns = [table[label] for table in tables]
    if not any(np.issubdtype(column.dtype, np.str_) for column in columns):
        return
    texts = [column.astype(np.str_) for column in columns]
    names = np.unique(np.concatenate([text.ravel() for text in texts]))
    if all(re.fullmatch(r"-?\d{1,9}|", name) for name in names):
        numbers = np.array([int(name or -1) for name in names])
    else:
        numbers = np.cumsum(names != "") - 1
        numbers[names == ""] = -1
    for table, text in zip(tables, texts, strict=True):
        if label == "identity":
            table.setdefault("identity_name", text)
        table[label] = numbers[np.searchsorted(names, text)].astype(np.int32)


def _read(path: Place, origin: str) -> dict[str, np.ndarray]:
    """The arrays of a file, texts as they are."""
    if path.suffix != ".npy":
        return archive_of(path, origin)
    table = path.with_suffix(".csv")
    embedding = _single(path, origin)
    arrays = _columns(table)
    rows = {len(column) for column in arrays.values()}
    if embedding.ndim == 2 and rows != {len(embedding)}:
        raise UserError(
            f"{origin} has {len(embedding)} embeddings and {table} {max(rows)} rows below its "
            "header; there must be one for each."
        )
    return {"embedding": embedding, **arrays}


def _single(path: Place, origin: str) -> np.ndarray:
    """The array of an .npy file."""
    if not path.is_file():
        raise UserError(f"There is no file {origin}.")
    try:
        return npz.read_array(path.read_bytes())
    except UNREADABLE as error:
        raise UserError(f"{origin} is not an .npy file of one plain array: {error}") from None


def _columns(path: Place) -> dict[str, np.ndarray]:
    """The columns of a CSV file as texts, by the names in its header."""
    try:
        header, *rows = csv.reader(path.read_text(encoding="utf-8-sig").splitlines())
    except FileNotFoundError:
        raise UserError(
            f"There is no file {path}; it must stand beside the .npy file and say of each "
            "embedding its identity, and camera or scene."
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no CSV table in UTF-8 with a header: {error}.") from None
    uneven = [i for i, row in enumerate(rows, start=2) if len(row) != len(header)]
    if uneven or not rows or len(set(header)) < len(header):
        what = f"line {uneven[0]} has not as many cells" if uneven else "no row, or one name twice"
        raise UserError(f"{path} does not fit its header {','.join(header)}: {what}.")
    cells = np.array(rows, np.str_).T
    return {name.strip(): np.char.strip(column) for name, column in zip(header, cells, strict=True)}


def archive_of(path: Place, origin: str) -> dict[str, np.ndarray]:
    """Every array of the archive at `path`, by name."""
    try:
        if is_remote(path):
            with as_os_error(path):
                file = io.BytesIO(path.read_bytes())
        elif path.is_file():
            file = path
        else:
            raise FileNotFoundError
    except FileNotFoundError:
        raise UserError(f"There is no file {origin}.") from None
    except OSError as error:
        raise UserError(f"{origin} cannot be read: {error.strerror or error}.") from None
    try:
        if not zipfile.is_zipfile(file):
            raise UserError(f"{origin} is not an .npz archive, or only the beginning of one.")
        with zipfile.ZipFile(file) as archive:
            size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else file.stat().st_size
            return npz.read_arrays(archive, size, harmless=HARMLESS)
    except UNREADABLE as error:
        raise UserError(f"{origin} is not an .npz archive of plain arrays: {error}") from None


def parts_of(arrays: dict[str, np.ndarray], origin: str) -> dict[str, tuple[int, int]]:
    """{name: (start, stop)} of the arrays `parts` and `modalities`, taken out of `arrays`.

    Nothing where a file has neither. UserError where they do not fit each other.
    """
    none = {"parts": np.zeros((0, 2), int), "modalities": np.zeros(0, np.str_)}
    given = {name: arrays.pop(name) for name in none if name in arrays}
    if len(given) == 1:
        has, lacks = *given, *(none.keys() - given)
        raise UserError(f"{origin} has the array {has} and not {lacks}; give both or neither.")
    parts, modalities = {**none, **given}.values()
    names = modalities.tolist() if modalities.ndim == 1 else []
    for field, array, kind, wanted in (
        ("modalities", modalities, np.str_, f"str [{len(names)}]"),
        ("parts", parts, np.integer, f"integer [{len(names)}, 2]"),
    ):
        shape = (len(names), 2)[: 1 + (field == "parts")]
        if array.shape != shape or not np.issubdtype(array.dtype, kind):
            raise UserError(
                f"The array {field} of {origin} is {array.dtype} {list(array.shape)}, not {wanted}."
            )
    if len(set(names)) < len(names):
        raise UserError(f"The array modalities of {origin} names one twice: {', '.join(names)}.")
    return dict(zip(names, map(tuple, parts.tolist()), strict=True))
