"""Which files a data set consists of: one digest for each split, the same wherever the files lie.

A digest covers every image as it is stored, every label and the order of the samples. It does not
cover paths, times and the size that images are decoded to.
"""

import concurrent.futures
import hashlib
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_tfds import prepare as preparing
from data_tfds.builder import STATISTICS, cores
from data_tfds.errors import UserError
from data_tfds.samples import Split

DIGITS = 32
"""Hexadecimal digits of a digest: 128 bits."""

_ROWS = 64  # images of an array hashed at a time


def of_files(prepared: preparing.Prepared, name: str) -> str:
    """The digest of a prepared split, 32 hexadecimal digits.

    The first call reads every record; the digest is then kept beside the decoded images. Raises
    UserError for damaged files.
    """
    path = prepared.folder / "decoded" / f"{name}.sha256"
    if path.exists():
        with preparing.reading(prepared.folder):
            text = path.read_text()
            if len(text) != DIGITS or not set(text) <= set("0123456789abcdef"):
                raise ValueError(f"{path.name} holds no digest")
            return text
    digest = _records(prepared, name)
    try:
        with preparing.writing(prepared.folder.parent):
            path.parent.mkdir(exist_ok=True)
            draft = path.with_name(f"{preparing.INCOMPLETE}{path.name}")
            draft.write_text(digest)
            draft.rename(path)
    except UserError as error:  # prepared by an older version, on a disk that is now read-only
        logging.info("The digest of %s is computed anew at each start. %s", name, error)
    return digest


def _records(prepared: preparing.Prepared, name: str) -> str:
    builder = prepared.builder
    skip = {feature: tfds.decode.SkipDecoding() for feature in builder.images}
    with preparing.quiet():
        source = builder.as_data_source(name, decoders=skip)

    def one(index: int) -> bytes:
        with preparing.reading(prepared.folder):
            record = source[index]
        return _of_fields({key: x for key, x in record.items() if key not in STATISTICS})

    whole = hashlib.sha256()
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        for each in pool.map(one, range(len(source))):
            whole.update(each)
    return whole.hexdigest()[:DIGITS]


def _of_fields(fields: Mapping[str, object]) -> bytes:
    """The digest of one record: each field's name, length and content."""
    whole = hashlib.sha256()
    for name, value in sorted(fields.items()):
        content = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
        whole.update(f"{name}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.digest()


def of_arrays(split: Split) -> str:
    """The digest of a split of arrays, such as a function of yours makes: pixels and labels."""
    whole = hashlib.sha256()
    columns = {
        "rows": split.rows,
        "identity": split.identity,
        "identity_name": split.identity_name,
        "name": split.name,
        **{name: x for name, x in split.labels.items() if name not in STATISTICS},
    }
    for name, values in sorted(columns.items()):
        values = np.asarray(values)
        whole.update(f"{name}\0{values.dtype.kind}\0{values.shape}\0".encode())
        if values.dtype.kind in "biuf":
            whole.update(np.ascontiguousarray(values))
        else:
            whole.update("\0".join(map(str, values.ravel().tolist())).encode())
    for modality, images in split.images.items():
        whole.update(f"{modality}\0{images.shape}\0".encode())
        for first in range(0, len(images), _ROWS):
            whole.update(np.ascontiguousarray(images[first : first + _ROWS]))
    return whole.hexdigest()[:DIGITS]
