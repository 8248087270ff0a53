"""What the builders of all data sets share: features, protocol, and preparing on all cores."""

import abc
import concurrent.futures
import dataclasses
import functools
import io
import os
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from PIL import Image

from data_tfds import flare
from data_tfds.accept import accept, check_incomplete, sides, some, unmatched
from data_tfds.errors import UserError
from data_tfds.images import decode, is_cut_off
from data_tfds.limits import Limits
from data_tfds.listing import Listing
from data_tfds.samples import LABELS, NEAR_INFRARED, THERMAL, VISIBLE, Protocol, Sample
from data_tfds.sizes import Size
from data_tfds.source import Source, open_source

SHARD_SAMPLES = 512
"""Samples per file: TFDS holds one file's examples in memory while it writes them."""

STRIP = "strip"
"""The feature of a file that holds the images of all modalities side by side."""

STATISTICS = ("flare_fraction", "histogram_ratio")
"""Float32 `[M]`, the statistics of flare; 0 for modalities without flare and missing images."""


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(tfds.core.BuilderConfig):
    """A builder config with the protocol of its scores and where its files come from.

    `published` is the size its authors give, `stored` the size of the files that are in circulation
    where that differs.
    """

    protocol: Protocol
    instructions: str
    published: Size | None = None
    stored: Size | None = None
    clean: bool = False  # skip incomplete samples, and drop test identities from train
    prepared_as: str = ""  # another config with the same samples, whose prepared files it uses


class SampleBuilder(tfds.core.ShardBasedBuilder):
    """Base of the builders. A data set adds its place, its tree, its names and its protocols.

    ShardBasedBuilder writes examples as they come: the order is ours, memory is bounded, and there
    is no shuffle buffer, which TFDS spills to disk through TensorFlow beyond 1 GiB.
    """

    DESCRIPTION: str
    CITATION: str
    FOLDERS: tuple[str, ...]  # the folders that hold the splits
    MODALITIES: tuple[str, ...] = (VISIBLE, NEAR_INFRARED, THERMAL)  # (): found in the source
    STRIP = False  # whether one file holds the images of all modalities
    IMAGE_SIZE = (256, 128)  # height and width its published recipe trains at
    GREY = False  # whether one-channel images are taken, as three equal channels
    NAMES_AS_IDENTITIES = False  # whether identities may be other than whole numbers
    NEEDS_PROTOCOL = False  # whether data.name must say which of the configs is meant
    MAY_BE_UNPAIRED = False  # whether each image may be a sample of its own, see Listing.unpaired

    def __init__(
        self,
        *,
        root: str = "",
        incomplete: str = "error",
        source: Source | None = None,
        limits: Limits | None = None,
        **kwargs,
    ):
        """A builder that reads `root`, or TFDS's manual_dir where it is empty.

        `incomplete` says what becomes of a sample that lacks an image: "error", "skip" or "keep".
        `source` is what another builder has as its `source`, where there is one already; `limits`
        say how large files may be.
        """
        check_incomplete(incomplete)
        self._root = root
        self._incomplete = incomplete
        self._source = source
        self.limits = limits or Limits()
        self.cut_off: list[str] = []  # the files of images that lack their end, as far as prepared
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    @abc.abstractmethod
    def read(self, listing: Listing, source: Source) -> None:
        """Add the samples of every split of the source, and its problems, to the listing.

        Without a split query the whole gallery queries.
        """

    def find_modalities(self, source: Source) -> tuple[str, ...]:
        """The modalities of the source, for data sets that do not know them before."""
        raise NotImplementedError

    def find_protocol(self, config: Config, source: Source) -> Protocol:
        """The protocol of a config, for data sets whose source has a part of its rules."""
        return config.protocol

    def remarks(self, splits: dict[str, list[Sample]]) -> Iterator[str]:
        """What the doctor shall say of a sound set of this kind."""
        yield from ()

    def tiles(self, strip: Image.Image, where: str) -> list[Image.Image]:
        """The images of a file that holds all modalities; a UserError where it cannot."""
        raise NotImplementedError

    def open(self, root: str) -> Source:
        """The files of the data set at `root`; a UserError with exit code 2 where it is missing."""
        source = open_source(root, self.FOLDERS)
        if source is None:
            at = f"not at {root}" if root else "missing: no folder is set"
            name = self.builder_config.protocol.name
            name = self.name if name == f"{self.name}/official" else name
            raise UserError(
                f"The data set {name} is {at}. {self.builder_config.instructions} Then set "
                "--config.data.root=DIR (--root DIR of doctor and prepare) to that folder.",
                exit_code=2,
            )
        return source

    @functools.cached_property
    def source(self) -> Source:
        """The files of the data set; a UserError with exit code 2 where it is missing."""
        source = self._source or self.open(self._root)
        source.most_bytes = self.limits.file_bytes
        return source

    @functools.cached_property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the data set, in the order of every modality axis."""
        if self.MODALITIES:
            return self.MODALITIES
        return self.find_modalities(self.source)

    @property
    def images(self) -> tuple[str, ...]:
        """The image features: one for each file of a sample."""
        return (STRIP,) if self.STRIP else self.modalities

    @property
    def incomplete(self) -> str:
        """What becomes of a sample that lacks an image: "error", "skip" or "keep"."""
        return "skip" if self.builder_config.clean else self._incomplete

    def listing(self, source: Source) -> Listing:
        """The samples that are there, settled, and everything that is wrong with the source."""
        listing = Listing(
            self.modalities,
            names_as_identities=self.NAMES_AS_IDENTITIES,
            may_be_unpaired=self.MAY_BE_UNPAIRED,
        )
        self.read(listing, source)
        listing.settle(self.incomplete, str(source.root))
        return listing

    def samples(self, listing: Listing) -> dict[str, list[Sample]]:
        """What is prepared of a listing, by split; a UserError where it is not sound."""
        title = f"{self.name}/{self.builder_config.name}"
        if listing.unpaired:
            logging.info(
                "%s: no two images belong together, so each is a sample of its own (%s).",
                title,
                " or ".join(self.modalities),
            )
        splits = accept(listing, self.incomplete, title)
        selected = self.select(splits)
        dropped = set(splits.get("train", ())) - set(selected.get("train", ()))
        if dropped:
            message = "%s: %d training samples of test identities are left out: %s"
            names = some({each.identity_name for each in dropped})
            logging.warning(message, title, len(dropped), names)
        protocol = self.builder_config.protocol
        queries, gallery = sides(selected, protocol, () if self.STRIP else self.modalities)
        if queries and gallery and len(unmatched(queries, gallery, protocol)) == len(queries):
            first = next(filter(None, queries[0].files))
            raise UserError(
                f"None of the {len(queries)} queries, the first {first}, has a match "
                f"in the gallery under the protocol {protocol.name}, so that nothing could be "
                "scored; check the identities, or name another protocol in data.name."
            )
        return selected

    def select(self, splits: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
        """The splits, a clean config's without the test identities in train."""
        if not (self.builder_config.clean and "train" in splits):
            return splits
        tested = {each.identity for split in splits if split != "train" for each in splits[split]}
        train = [each for each in splits["train"] if each.identity not in tested]
        return {**splits, "train": train}

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (len(self.modalities),)
        statistic = tfds.features.Tensor(shape=shape, dtype=np.float32)
        features = {
            **{name: tfds.features.Image(shape=(None, None, 3)) for name in self.images},
            "name": tfds.features.Text(),
            "identity": np.int32,
            "identity_name": tfds.features.Text(),
            "present": tfds.features.Tensor(shape=shape, dtype=np.bool_),
            **LABELS,
            **dict.fromkeys(STATISTICS, statistic),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            citation=self.CITATION,
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        if not (self._root or self._source):
            self._root = os.fspath(dl_manager.manual_dir)
        source = self.source
        splits = self.samples(self.listing(source))
        bar = tqdm.tqdm(
            total=sum(map(len, splits.values())),
            desc=f"preparing {self.name}/{self.builder_config.name}",
            unit=" samples",
            mininterval=1.0,
        )
        return {
            split: [
                functools.partial(self._examples, source, samples[at : at + SHARD_SAMPLES], bar)
                for at in range(0, len(samples), SHARD_SAMPLES)
            ]
            for split, samples in splits.items()
        }

    def _examples(self, source: Source, samples: list[Sample], bar: tqdm.tqdm) -> Iterator[tuple]:
        # Threads are enough: Pillow decodes outside the interpreter lock.
        with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
            jobs = [pool.submit(self._example, source, sample) for sample in samples]
            whole = False
            try:
                for sample, job in zip(samples, jobs, strict=True):
                    yield f"{sample.identity}/{sample.name}", job.result()
                    bar.update()
                whole = True
            finally:
                for job in jobs:
                    job.cancel()
                if not whole or bar.n == bar.total:
                    bar.close()

    def _example(self, source: Source, sample: Sample) -> dict:
        encoded = [source.read(path) if path else _black() for path in sample.files]
        images = [
            decode(data, source.where(path), self.GREY, self.limits.pixels) if path else None
            for data, path in zip(encoded, sample.files, strict=True)
        ]
        for data, image, path in zip(encoded, images, sample.files, strict=True):
            if path and is_cut_off(data, image):
                self.cut_off.append(path)
        if self.STRIP:
            images = self.tiles(images[0], source.where(sample.files[0]))
        flaring = [
            image if modality in flare.MODALITIES else None
            for image, modality in zip(images, self.modalities, strict=True)
        ]
        return {
            **{name: io.BytesIO(data) for name, data in zip(self.images, encoded, strict=True)},
            "name": sample.name,
            "identity": sample.identity,
            "identity_name": sample.identity_name,
            "present": np.array([image is not None for image in images]),
            **{label: getattr(sample, label) for label in LABELS},
            **{
                name: np.float32([0 if image is None else measure(image) for image in flaring])
                for name, measure in zip(
                    STATISTICS, (flare.luma_fraction, flare.histogram_ratio), strict=True
                )
            },
        }


@functools.cache
def _black() -> bytes:
    """What stands for an image that is missing, because TFDS takes no empty feature."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
