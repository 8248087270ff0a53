"""The splits of a prepared data set as arrays: decoded and resized once, then memory maps.

A split is kept beside the prepared files as one .npy of images for each modality, size and filter,
and one .npz of labels. Images are decoded twice in all: when a data set is prepared, to validate
them and to measure flare, and here, at the size that is asked for.
"""

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from data_tfds import flare
from data_tfds import prepare as preparing
from data_tfds.builder import LABELS, STATISTICS, SampleBuilder, cores
from data_tfds.images import open_image
from data_tfds.samples import Split

RESIZE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Filters of `data.train_resize` and `data.test_resize`; Pillow's, which antialias."""


def split(
    prepared: preparing.Prepared,
    name: str,
    size: tuple[int, int],
    resize: str,
    removal: str = "none",
) -> Split:
    """One split at one size (height, width), from its files or decoded into them.

    `resize` is the filter, a key of `RESIZE`. Images of any size are resized to `size`, each by
    itself. With a `removal` other than "none" the saturated pixels of visible and near-infrared
    images are made black before, see `flare.removed`; these are files of their own, whose labels
    are those of the images as they are. Raises UserError for damaged files and a full disk.
    """
    height, width = size
    folder, modalities = prepared.folder / "decoded", prepared.builder.modalities
    images = {
        modality: folder
        / f"{name}-{modality}-{height}x{width}-{resize}{_suffix(modality, removal)}.npy"
        for modality in modalities
    }
    labels = folder / f"{name}.npz"

    def there() -> bool:
        return labels.exists() and all(path.exists() for path in images.values())

    if not there():
        with preparing.writing(prepared.folder.parent):
            folder.mkdir(exist_ok=True)
            if not there():
                _decode(prepared, name, size, resize, removal, images, labels)
    with preparing.reading(prepared.folder), np.load(labels) as columns:
        columns = dict(columns)
        arrays = {modality: np.load(path, mmap_mode="r") for modality, path in images.items()}
        own = {each: columns.pop(each) for each in ("rows", "identity", "identity_name", "name")}
        for modality, rows in zip(modalities, own["rows"], strict=True):
            stored, named = len(arrays[modality]), np.count_nonzero(rows >= 0)
            if stored != named:
                raise ValueError(f"{stored} images and {named} labels of {name}, {modality}")
        return Split(images=arrays, labels=columns, **own)


def _suffix(modality: str, removal: str) -> str:
    """What the name of a file of images adds for a flare removal that changes the modality."""
    changes = removal != "none" and modality in flare.MODALITIES
    return f"-removed-{removal}" if changes else ""


def _decode(
    prepared: preparing.Prepared,
    name: str,
    size: tuple[int, int],
    resize: str,
    removal: str,
    images: Mapping[str, pathlib.Path],
    labels: pathlib.Path,
) -> None:
    """Decode a split on all cores straight into memory maps; files appear only when whole."""
    builder = prepared.builder
    skip = {feature: tfds.decode.SkipDecoding() for feature in builder.images}
    with preparing.quiet():
        source = builder.as_data_source(name, decoders=skip)
    rows = _rows(prepared, source)
    drafts = {
        path: path.with_name(f"{preparing.INCOMPLETE}{path.name}") for path in images.values()
    }
    arrays = [
        _allocate(drafts[path], (int((own >= 0).sum()), *size, 3))
        for path, own in zip(images.values(), rows, strict=True)
    ]

    def row(index: int) -> dict:
        with preparing.reading(prepared.folder):
            example = source[index]
        encoded = [example.pop(feature) for feature in builder.images]
        for number, image in enumerate(_open(builder, encoded, rows[:, index] >= 0)):
            if image is not None:
                if _suffix(builder.modalities[number], removal):
                    image = flare.removed(image, removal)
                resized = image.resize(size[::-1], RESIZE[resize])
                arrays[number][rows[number, index]] = resized
        return example

    columns = collections.defaultdict(list)
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        examples = pool.map(row, range(len(source)))
        title = f"decoding {name}"
        for example in tqdm.tqdm(examples, title, len(source), unit=" samples", mininterval=1.0):
            for feature, value in example.items():
                columns[feature].append(value)
    for array in arrays:
        array.flush()
    _write_labels(labels, columns, rows)
    for path, draft in drafts.items():
        draft.rename(path)


def _rows(prepared: preparing.Prepared, source) -> np.ndarray:
    """The row of each sample in the images of each modality: int32 `[M, N]`, -1 without one.

    Only where incomplete samples are kept must all records be read to know. They are also where
    each image is a sample of its own, which the first record tells.
    """
    builder = prepared.builder
    present = np.ones((len(source), len(builder.modalities)), bool)
    with preparing.reading(prepared.folder):
        if builder.incomplete == "keep" or not (len(source) and source[0]["present"].all()):
            present = np.array([source[index]["present"] for index in range(len(source))])
    return np.where(present, np.cumsum(present, axis=0) - 1, -1).astype(np.int32).T


def _write_labels(path: pathlib.Path, columns: Mapping[str, list], rows: np.ndarray) -> None:
    draft = path.with_name(f"{preparing.INCOMPLETE}{path.name}")
    texts = {
        name: np.array([text.decode() for text in columns[name]])
        for name in ("name", "identity_name")
    }
    types = {"identity": np.int32, **LABELS, **dict.fromkeys(STATISTICS, np.float32)}
    numbers = {name: np.array(columns[name], dtype) for name, dtype in types.items()}
    with draft.open("wb") as file:
        np.savez(file, rows=rows, **texts, **numbers)
    draft.rename(path)


def _allocate(path: pathlib.Path, shape: tuple[int, ...]) -> np.memmap:
    """A memory map whose disk space is taken: a map into a sparse file on a full disk crashes."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _open(
    builder: SampleBuilder, encoded: list[bytes], present: np.ndarray
) -> list[Image.Image | None]:
    """The image of each modality, None where the sample lacks it."""
    if builder.STRIP:
        return builder.tiles(_image(encoded[0]), "a prepared image")
    return [_image(data) if there else None for data, there in zip(encoded, present, strict=True)]


def _image(encoded: bytes) -> Image.Image:
    return open_image(encoded).convert("RGB")
