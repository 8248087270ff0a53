"""The data set of a config: splits as arrays, with a validation split and flare labels."""

import dataclasses
import time
from collections.abc import Mapping

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data_tfds import door, flare
from data_tfds.errors import UserError
from data_tfds.limits import Limits
from data_tfds.samples import Protocol, Side, Split

ORDER = ("train", "validation", "query", "gallery")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set ready for training and retrieval, with the protocol its scores belong to."""

    name: str
    modalities: tuple[str, ...]  # the order of every modality axis
    splits: Mapping[str, Split]
    """train, validation (identities taken out of train), query, gallery, ..., as far as the data
    set has them; without a split query the gallery queries, and both are one object."""
    protocol: Protocol
    folder: str = ""  # of the decoded files; "": arrays in memory
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of train, query, gallery, ... as stored, see data_tfds/digest.py; none where it is not known.
    What is held out of train for validation belongs to the digest of train."""

    def split(self, name: str) -> Split:
        """One split. Raises UserError where the data set has none of that name."""
        if name not in self.splits:
            has = ", ".join(self.splits) or "none"
            raise UserError(
                f'The data set {self.name} has no split "{name}" (it has: {has}), which this needs;'
                " add it to the data set, or name another one in data.name."
            )
        return self.splits[name]


def load(data: ConfigDict, training: bool = True) -> Dataset:
    """The data set that the config section `data` names, at its image size.

    The first call prepares it below `data.prepared` and decodes it with all cores; a later one with
    the same files and size opens memory maps. Without
    `training` the splits train and validation are neither read nor asked for.
    `validation_identities = k` takes the last k training identities out of train. Every split gets
    the label "flare", bool `[N, M]`. Raises UserError, with exit code 2 where the set is
    missing.
    """
    from data_tfds.sets import open_door  # TFDS: arrays in memory do without it

    start = time.time()
    found = open_door(data.name)
    if isinstance(found, type):
        dataset = _from_files(data, training)
    else:
        dataset = _from_function(found, data, training)
    # Each split is changed once, so that query and gallery stay one object where they are one.
    changed = {id(split): _with_flare(split, data) for split in dataset.splits.values()}
    names = sorted(dataset.splits, key=lambda name: ORDER.index(name) if name in ORDER else 9)
    splits = {name: changed[id(dataset.splits[name])] for name in names}
    dataset = dataclasses.replace(dataset, splits=splits)
    protocol = dataset.protocol
    logging.info(
        "Loaded %s (%s; protocol %s, junk = %s) %s in %.1f s: %s.",
        data.name,
        ", ".join(dataset.modalities),
        protocol.name,
        "none" if protocol.junk == "none" else f"same {protocol.junk}",
        f"from {dataset.folder}" if dataset.folder else "from memory",
        time.time() - start,
        ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items()),
    )
    return dataset


def refuse_absent(data: ConfigDict) -> None:
    """Raises UserError where the files of the data set are not there; loads nothing."""
    from data_tfds import prepare as preparing
    from data_tfds.sets import open_door

    if isinstance(open_door(data.name), type):
        preparing.refuse_absent(data.name, data.root)


def describe(dataset: Dataset) -> str:
    """A table of the splits: samples, identities, cameras, share of flared images (luma > 5 %)."""
    flaring = [m for m in dataset.modalities if m in flare.MODALITIES]
    header = ("split", "samples", "identities", "cameras", *(f"flare {m}" for m in flaring))
    widths = [max(12, len(title) + 2) for title in header]
    lines = [f"{dataset.name}, protocol {dataset.protocol.name}"]
    table = [header]
    for name, split in dataset.splits.items():
        flared = _flared(split, statistic="luma", rule="per_modality", threshold=0.05)
        counts = (
            len(split),
            len(np.unique(split.identity)),
            len(np.unique(split.labels["camera"])),
        )
        shares = [
            f"{flared[split.present[column], column].mean():.1%}" if present.any() else "-"
            for column, present in enumerate(split.present)
            if dataset.modalities[column] in flaring
        ]
        table.append((name, *map(str, counts), *shares))
    lines += [
        "".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in table
    ]
    return "\n".join(lines)


def _from_files(data: ConfigDict, training: bool) -> Dataset:
    from data_tfds import decoded, digest
    from data_tfds import prepare as preparing

    names = [name for name in ("pixels", "file_bytes") if f"max_{name}" in data]
    limits = Limits(**{name: data[f"max_{name}"] for name in names})
    prepared = preparing.prepare(data.name, data.root, data.prepared, data.incomplete, limits)
    stored = prepared.builder.info.splits
    removal = data.get("flare_removal", "none")

    def split(name: str, resize: str) -> Split:
        return decoded.split(prepared, name, tuple(data.image_size), resize, removal)

    splits = {}
    if "train" in stored and training:
        train = split("train", data.train_resize)
        first = _first_held_out(train.identity, data.validation_identities)
        splits["train"] = train[:first]
        if first < len(train):
            splits["validation"] = split("train", data.test_resize)[first:]
    for name in stored:
        if name != "train":
            splits[name] = split(name, data.test_resize)
    protocol = prepared.protocol
    if "query" not in stored and "gallery" in stored and protocol.query.split == "query":
        logging.info("%s has no query split: every gallery sample is a query.", data.name)
        splits["query"] = splits["gallery"]
    return Dataset(
        data.name,
        prepared.builder.modalities,
        splits,
        protocol,
        str(prepared.folder),
        {name: digest.of_files(prepared, name) for name in stored if name in splits},
    )


def _from_function(found, data: ConfigDict, training: bool) -> Dataset:
    """The data set that the user's function returned, checked."""
    from data_tfds import digest

    if data.get("flare_removal", "none") != "none":
        raise UserError(
            f"config.data.flare_removal is {data.flare_removal!r}, which changes images that are "
            f"decoded from files, but {data.name} gives arrays; change them in that function, with "
            "data_tfds.flare.removed, and set the option to 'none'."
        )
    door.check_call(found, f"The function {data.name} (data.name)", "load(config.data)", data)
    made = found(data)
    for field in ("modalities", "splits", "protocol"):
        if not hasattr(made, field):
            raise UserError(
                f"The function {data.name} (data.name) returned {type(made).__name__} without "
                f'"{field}"; it must return a facenet_jax.inputs.dataset.Dataset.'
            )
    if not isinstance(made.protocol, Protocol):
        raise UserError(
            f"The protocol of {data.name} (data.name) is a {type(made.protocol).__name__}, not a "
            "data_tfds.samples.Protocol."
        )
    for name, split in made.splits.items():
        _check(split, tuple(made.modalities), f"The split {name} of {data.name} (data.name)")
    splits = dict(made.splits)
    named = [name for name in splits if training or name not in ("train", "validation")]
    digests = {name: digest.of_arrays(splits[name]) for name in named}
    train = splits.get("train")
    if train is not None and "validation" not in splits:
        first = _first_held_out(train.identity, data.validation_identities)
        if first < len(train):
            splits |= {"train": train[:first], "validation": train[first:]}
    if "gallery" in splits and "query" not in splits:
        splits["query"] = splits["gallery"]
    if not training:
        splits = {k: split for k, split in splits.items() if k not in ("train", "validation")}
    return Dataset(data.name, tuple(made.modalities), splits, made.protocol, digests=digests)


def _check(split: Split, modalities: tuple[str, ...], what: str) -> None:
    """Raises UserError for arrays that do not fit each other."""
    samples, columns = len(split.identity), len(modalities)
    if split.modalities != modalities:
        raise UserError(f"{what} has the modalities {split.modalities}, the data set {modalities}.")
    if split.rows.shape != (columns, samples):
        raise UserError(
            f"{what} has rows of shape {split.rows.shape} for {columns} modalities and {samples} "
            "samples; give one row for each."
        )
    for modality, rows in zip(modalities, split.rows, strict=True):
        images = split.images[modality]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(
                f"{what} has {modality} images of {images.dtype} {images.shape}; they must be "
                "uint8 [N, H, W, 3]."
            )
        if rows.max(initial=-1) >= len(images):
            raise UserError(
                f"{what} names row {rows.max()} of its {len(images)} {modality} images."
            )
    for label in ("camera", "flare_fraction", "histogram_ratio"):
        if label not in split.labels:
            raise UserError(
                f"{what} has no label {label}; make the split with "
                "data_tfds.arrays.split_of, which adds it."
            )
    columns = {"identity_name": split.identity_name, "name": split.name, **split.labels}
    for name, values in columns.items():
        if len(values) != samples:
            raise UserError(f"{what} has {len(values)} of {name} and {samples} samples.")
    if (np.diff(split.identity) < 0).any():
        raise UserError(f"{what} is not sorted by identity; sort it.")


def _with_flare(split: Split, data: ConfigDict) -> Split:
    if "flare" in split.labels:  # labelled by the user's function
        return split
    labels = _flared(
        split,
        statistic=data.flare_statistic,
        rule=data.flare_rule,
        threshold=data.flare_threshold,
    )
    return dataclasses.replace(split, labels={**split.labels, "flare": labels})


def _flared(split: Split, **options) -> np.ndarray:
    return flare.labels(
        split.labels["flare_fraction"],
        split.labels["histogram_ratio"],
        split.modalities,
        present=split.present.T,
        **options,
    )


def _first_held_out(identity: np.ndarray, count: int) -> int:
    """Row of the first sample of the last `count` identities; rows are sorted by identity."""
    if count == 0:
        return len(identity)
    identities = np.unique(identity)
    if count >= len(identities):
        raise UserError(
            f"data.validation_identities is {count} and the training split has only "
            f"{len(identities)} identities; hold out fewer."
        )
    return int(np.searchsorted(identity, identities[-count]))


def image_bytes(dataset: Dataset, config: ConfigDict, training: bool) -> tuple[int, int]:
    """Bytes of all images that would be resident at once, and of those of one sample."""
    sides = [dataset.protocol.query, dataset.protocol.gallery]
    if training:
        sides += [Side("train"), *(Side("validation", each.modalities) for each in sides)]
    images = [(dataset.splits[x.split].images, x) for x in sides if x.split in dataset.splits]
    total = sum(has[m].nbytes for has, x in images for m in x.modalities or has if m in has)
    height, width = config.data.image_size
    return total, len(dataset.modalities) * height * width * 3
