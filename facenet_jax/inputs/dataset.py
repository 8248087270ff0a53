"""Data sets as arrays: prepared, decoded and resized once, opened as memory maps ever after."""

import collections
import concurrent.futures
import dataclasses
import io
import os
import pathlib
import time

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from data_tfds import flare
from data_tfds import prepare as preparing
from data_tfds.builder import cores
from data_tfds.errors import UserError
from data_tfds.samples import BANDS, Protocol

RESIZE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
"""Filters of `data.train_resize` and `data.test_resize`; Pillow's, which antialias."""

LABELS = {
    "identity": np.int32,
    "camera": np.int32,
    "scene": np.int32,
    "night": np.int32,
    "flare_fraction": np.float32,
    "histogram_ratio": np.float32,
}


@dataclasses.dataclass(frozen=True)
class Split:
    """The triplets of one split, sorted by identity and name. M = 3 bands, N triplets."""

    images: np.ndarray  # uint8 [M, N, H, W, 3], read-only, possibly a memory map
    identity: np.ndarray  # int32 [N], the data set's own numbers
    camera: np.ndarray  # int32 [N]
    scene: np.ndarray  # int32 [N], -1 where the data set has none
    night: np.ndarray  # int32 [N], -1 where the data set does not say
    name: np.ndarray  # str [N]
    flare_fraction: np.ndarray  # float32 [N, 2], share of saturated pixels of R and N
    histogram_ratio: np.ndarray  # float32 [N, 2], the release's statistic of R and N

    def __len__(self) -> int:
        return len(self.identity)

    def __getitem__(self, rows: slice) -> "Split":
        """The split of these rows only, without a copy."""
        labels = {
            field.name: getattr(self, field.name)[rows]
            for field in dataclasses.fields(self)
            if field.name != "images"
        }
        return Split(images=self.images[:, rows], **labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set ready for training and retrieval, with the protocol its scores belong to."""

    name: str
    protocol: Protocol
    train: Split
    query: Split
    gallery: Split
    validation: Split | None  # the last identities of train, held out; queries itself


def load(data: ConfigDict) -> Dataset:
    """The data set that the config section `data` names, at its image size.

    The first call prepares it below `data.prepared` and decodes it with all cores; a later one with
    the same files and size opens memory maps. `validation_identities = k` takes the last k sorted
    training identities out of train. Raises UserError, with exit code 2 where the set is missing.
    """
    _check(data)
    start = time.time()
    prepared = preparing.prepare(data.name, data.root, data.prepared, data.incomplete)
    splits = prepared.builder.info.splits
    protocol = prepared.builder.builder_config.protocol

    def split(name: str, resize: str) -> Split:
        return _decoded(prepared, name, tuple(data.image_size), resize)

    train, validation = split("train", data.train_resize), None
    if data.validation_identities:
        first = _first_held_out(train.identity, data.validation_identities)
        validation = split("train", data.test_resize)[first:]
        train = train[:first]
    gallery = split("gallery", data.test_resize)
    query = split("query", data.test_resize) if "query" in splits else gallery
    if query is gallery:
        logging.info("%s has no query split: the whole gallery queries.", data.name)
    dataset = Dataset(data.name, protocol, train, query, gallery, validation)
    logging.info(
        "Loaded %s (protocol %s, junk = same %s) from %s in %.1f s: %s.",
        data.name,
        protocol.name,
        protocol.junk,
        prepared.folder,
        time.time() - start,
        ", ".join(f"{len(part)} {name}" for name, part in _parts(dataset).items()),
    )
    return dataset


def describe(dataset: Dataset) -> str:
    """A table of the splits: triplets, identities, cameras, flare share of R and N (luma > 5 %)."""
    lines = [f"{dataset.name}, protocol {dataset.protocol.name}"]
    header = ("split", "triplets", "identities", "cameras", "flare R", "flare N")
    lines.append("".join(f"{title:>12}" for title in header))
    for name, split in _parts(dataset).items():
        flared = flare.labels(
            split.flare_fraction,
            split.histogram_ratio,
            statistic="luma",
            rule="per_modality",
            threshold=0.05,
        )
        visible, near_infrared = flared.mean(axis=0)
        counts = (len(split), len(np.unique(split.identity)), len(np.unique(split.camera)))
        numbers = "".join(f"{count:>12}" for count in counts)
        lines.append(f"{name:>12}{numbers}{visible:>12.1%}{near_infrared:>12.1%}")
    return "\n".join(lines)


def _parts(dataset: Dataset) -> dict[str, Split]:
    parts = {name: getattr(dataset, name) for name in ("train", "validation", "query", "gallery")}
    return {name: part for name, part in parts.items() if part is not None}


def _check(data: ConfigDict) -> None:
    for field in ("train_resize", "test_resize"):
        if data[field] not in RESIZE:
            known = " or ".join(f'"{name}"' for name in RESIZE)
            raise UserError(f'data.{field} is "{data[field]}" and must be {known}.')
    size = tuple(data.image_size)
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"data.image_size is {size} and must be (height, width) in pixels.")
    if data.validation_identities < 0:
        raise UserError(
            f"data.validation_identities is {data.validation_identities} and must be 0 or more."
        )


def _first_held_out(identity: np.ndarray, count: int) -> int:
    """Row of the first triplet of the last `count` identities; rows are sorted by identity."""
    identities = np.unique(identity)
    if count >= len(identities):
        raise UserError(
            f"data.validation_identities is {count} and the training split has only "
            f"{len(identities)} identities; hold out fewer."
        )
    return int(np.searchsorted(identity, identities[-count]))


def _decoded(prepared: preparing.Prepared, split: str, size: tuple[int, int], resize: str) -> Split:
    """One split at one size, from its cache in the prepared folder or decoded into it."""
    height, width = size
    folder = prepared.folder / "decoded"
    images, labels = folder / f"{split}-{height}x{width}-{resize}.npy", folder / f"{split}.npz"
    if not (images.exists() and labels.exists()):
        with preparing.writing(prepared.folder.parent):
            folder.mkdir(exist_ok=True)
            if not (images.exists() and labels.exists()):
                _decode(prepared, split, size, resize, images, labels)
    with preparing.reading(prepared.folder), np.load(labels) as columns:
        found = Split(images=np.load(images, mmap_mode="r"), **columns)
        if len(found) != found.images.shape[1]:
            raise ValueError(f"{found.images.shape[1]} images and {len(found)} labels of {split}")
        return found


def _decode(
    prepared: preparing.Prepared,
    split: str,
    size: tuple[int, int],
    resize: str,
    images: pathlib.Path,
    labels: pathlib.Path,
) -> None:
    """Decode a split on all cores straight into a memory map; both files appear only when whole."""
    skip = {name: tfds.decode.SkipDecoding() for name in prepared.builder.IMAGES}
    with preparing.quiet():
        source = prepared.builder.as_data_source(split, decoders=skip)
    draft = images.with_name(f"{preparing.INCOMPLETE}{images.name}")
    array = np.lib.format.open_memmap(
        draft, mode="w+", dtype=np.uint8, shape=(len(BANDS), len(source), *size, 3)
    )
    _allocate(draft)

    def row(index: int) -> dict:
        with preparing.reading(prepared.folder):
            example = source[index]
        encoded = [example.pop(name) for name in prepared.builder.IMAGES]
        for band, image in enumerate(_open(prepared.builder, encoded)):
            array[band, index] = image.resize(size[::-1], RESIZE[resize])
        return example

    columns = collections.defaultdict(list)
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        rows = pool.map(row, range(len(source)))
        title = f"decoding {split}"
        for example in tqdm.tqdm(rows, title, len(source), unit=" triplets", mininterval=1.0):
            for name, value in example.items():
                columns[name].append(value)
    array.flush()
    names = np.array([name.decode() for name in columns["name"]])
    numbers = {name: np.array(columns[name], dtype) for name, dtype in LABELS.items()}
    label_draft = labels.with_name(f"{preparing.INCOMPLETE}{labels.name}")
    with label_draft.open("wb") as file:
        np.savez(file, name=names, **numbers)
    label_draft.rename(labels)
    draft.rename(images)


def _allocate(path: pathlib.Path) -> None:
    """Take the disk space of a file now: a map into a sparse file on a full disk is a crash."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _open(builder, encoded: list[bytes]) -> list[Image.Image]:
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]
    return builder.tiles(images[0], "a prepared image") if len(images) == 1 else images
