"""What the builders of all data sets share: features, protocol, and preparing on all cores."""

import abc
import concurrent.futures
import dataclasses
import functools
import io
import os
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from PIL import Image

from data_tfds import flare
from data_tfds.errors import UserError
from data_tfds.images import decode
from data_tfds.listing import Listing, Triplet, accept, some, unmatched
from data_tfds.samples import BANDS, Protocol
from data_tfds.source import Source, open_source

SHARD_TRIPLETS = 512
"""Triplets per file: TFDS holds one file's examples in memory while it writes them."""


def features(images: tuple[str, ...] = BANDS) -> tfds.features.FeaturesDict:
    """The features of every data set: encoded images as on disk, labels, the flare statistics."""
    return tfds.features.FeaturesDict(
        {
            **{name: tfds.features.Image(shape=(None, None, 3)) for name in images},
            "name": tfds.features.Text(),
            "identity": np.int32,
            "camera": np.int32,
            "scene": np.int32,  # -1 where the data set has none
            "night": np.int32,  # -1 where the data set does not say
            "flare_fraction": tfds.features.Tensor(shape=(2,), dtype=np.float32),  # R, N
            "histogram_ratio": tfds.features.Tensor(shape=(2,), dtype=np.float32),  # R, N
        }
    )


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(tfds.core.BuilderConfig):
    """A builder config with the protocol of its scores and where its files come from.

    `published` gives triplets and identities of each split as its authors count them.
    """

    protocol: Protocol
    instructions: str
    published: Mapping[str, tuple[int, int | None]] = dataclasses.field(default_factory=dict)
    clean: bool = False  # skip incomplete triplets, and drop test identities from train


class TripletBuilder(tfds.core.ShardBasedBuilder):
    """Base of the builders. A data set adds its place, its tree and its names.

    ShardBasedBuilder writes examples as they come: the order is ours, memory is bounded, and there
    is no shuffle buffer, which TFDS spills to disk through TensorFlow beyond 1 GiB.
    """

    DESCRIPTION: str
    CITATION: str
    FOLDERS: tuple[str, ...]  # the folders that hold the splits
    IMAGES: tuple[str, ...] = BANDS  # the image features: one per file of a triplet
    IMAGE_SIZE = (256, 128)  # height and width its published recipe trains at
    GREY = False  # whether one-channel images are taken, as three equal channels

    def __init__(self, *, root: str = "", incomplete: str = "error", **kwargs):
        """A builder that reads `root`, or TFDS's manual_dir where it is empty.

        `incomplete` says what becomes of a triplet with a missing image: "error" or "skip".
        """
        self._root = root
        self._incomplete = incomplete
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    @abc.abstractmethod
    def listing(self, source: Source) -> Listing:
        """The triplets of the splits train, query and gallery, and the problems of the source.

        A listing without the split query means that the whole gallery queries.
        """

    def open(self, root: str) -> Source:
        """The files of the data set at `root`; a UserError with exit code 2 where it is missing."""
        source = open_source(root, self.FOLDERS)
        if source is None:
            at = f"not at {root}" if root else "missing: no folder is set"
            config = self.builder_config.name
            name = self.name if config == "official" else f"{self.name}/{config}"
            raise UserError(
                f"The data set {name} is {at}. {self.builder_config.instructions} Then set "
                "--config.data.root=DIR (--root DIR of scripts/prepare.py) to that folder.",
                exit_code=2,
            )
        return source

    def tiles(self, strip: Image.Image, where: str) -> list[Image.Image]:
        """The three images of a file that holds them side by side; a UserError where it cannot."""
        raise NotImplementedError

    def triplets(self, listing: Listing) -> dict[str, list[Triplet]]:
        """What is prepared of a listing, by split; a UserError where it is not sound."""
        title = f"{self.name}/{self.builder_config.name}"
        splits = accept(listing, self.incomplete, title)
        selected = self.select(splits)
        dropped = set(splits["train"]) - set(selected["train"])
        if dropped:
            message = "%s: %d training triplets of test identities are left out: %s"
            logging.warning(message, title, len(dropped), some({t.identity for t in dropped}))
        queries = selected.get("query", selected["gallery"])
        protocol = self.builder_config.protocol
        if len(unmatched(queries, selected["gallery"], protocol.junk)) == len(queries):
            raise UserError(
                f"None of the {len(queries)} queries, the first {queries[0].files[0]}, has a match "
                f"in the gallery under the protocol {protocol.name}, so that nothing could be "
                "scored; check the identities, or name another protocol in data.name."
            )
        return selected

    @property
    def incomplete(self) -> str:
        """What becomes of a triplet with a missing image: "error" or "skip"."""
        return "skip" if self.builder_config.clean else self._incomplete

    def select(self, splits: dict[str, list[Triplet]]) -> dict[str, list[Triplet]]:
        """The splits, a clean config's without the test identities in train."""
        if not self.builder_config.clean:
            return splits
        tested = {t.identity for split in splits if split != "train" for t in splits[split]}
        return {**splits, "train": [t for t in splits["train"] if t.identity not in tested]}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=features(self.IMAGES),
            citation=self.CITATION,
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        source = self.open(self._root or os.fspath(dl_manager.manual_dir))
        splits = self.triplets(self.listing(source))
        bar = tqdm.tqdm(
            total=sum(map(len, splits.values())),
            desc=f"preparing {self.name}/{self.builder_config.name}",
            unit=" triplets",
            mininterval=1.0,
        )
        return {
            split: [
                functools.partial(self._examples, source, triplets[at : at + SHARD_TRIPLETS], bar)
                for at in range(0, len(triplets), SHARD_TRIPLETS)
            ]
            for split, triplets in splits.items()
        }

    def _examples(self, source: Source, triplets: list[Triplet], bar: tqdm.tqdm) -> Iterator[tuple]:
        # Threads are enough: Pillow decodes outside the interpreter lock.
        with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
            jobs = [pool.submit(self._example, source, triplet) for triplet in triplets]
            whole = False
            try:
                for triplet, job in zip(triplets, jobs, strict=True):
                    yield f"{triplet.identity}/{triplet.name}", job.result()
                    bar.update()
                whole = True
            finally:
                for job in jobs:
                    job.cancel()
                if not whole or bar.n == bar.total:
                    bar.close()

    def _example(self, source: Source, triplet: Triplet) -> dict:
        encoded = [source.read(path) for path in triplet.files]
        images = [
            decode(data, source.where(path), self.GREY)
            for data, path in zip(encoded, triplet.files, strict=True)
        ]
        if len(images) == 1:
            images = self.tiles(images[0], source.where(triplet.files[0]))
        return {
            **{name: io.BytesIO(data) for name, data in zip(self.IMAGES, encoded, strict=True)},
            "name": triplet.name,
            "identity": triplet.identity,
            "camera": triplet.camera,
            "scene": triplet.scene,
            "night": triplet.night,
            "flare_fraction": np.float32([flare.luma_fraction(image) for image in images[:2]]),
            "histogram_ratio": np.float32([flare.histogram_ratio(image) for image in images[:2]]),
        }


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
