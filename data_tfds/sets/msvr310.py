"""MSVR310: vehicles in three modalities, matched across scenes."""

import re
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.builder import Config, SampleBuilder, Size
from data_tfds.listing import Layout, Listing, Naming, Parsed, read_split
from data_tfds.samples import Protocol, Sample
from data_tfds.source import Source


def _parse(name: str) -> Parsed | None:
    """There is no camera in the names; the view stands for it, as in WMVeID863."""
    match = re.fullmatch(r"(\d{4})_s(\d{3})_v([0-7])_\d+\.jpe?g", name, re.IGNORECASE)
    if match is None:
        return None
    return Parsed(match[1], camera=int(match[3]), scene=int(match[2]), view=int(match[3]))


NAMING = Naming(_parse, "0002_s002_v0_000.jpg (identity, scene, view 0-7, number)")


class MSVR310(SampleBuilder):
    """`{bounding_box_train,query3,bounding_box_test}/<identity>/{vis,ni,th}/0002_s002_v0_000.jpg`.

    The archive's folder `query` is another query list, which the published scores do not use.
    """

    name = "msvr310"
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "Samples paired by file name, sorted by identity, name.",
        "2.0.0": "Samples say which modalities they have; identity_name and view are labels.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get MSVR310.zip (491,186,967 bytes, sha256 "
        "c6b15d61fdee6c34e6d25e5acbf103586dd46ee76138874652d92c4404f3359f) from Google Drive, file "
        "1IxI-fGiluPO_Ies6YjDHeTEuVYhFdYwD; it must unpack to "
        "DIR/{bounding_box_train,query3,bounding_box_test}/<identity>/{vis,ni,th}/*.jpg."
    )
    DESCRIPTION = "Vehicles as aligned visible, near-infrared and thermal images of many scenes."
    CITATION = (
        "Zheng et al., Cross-directional Consistency Network with Adaptive Layer Normalization for "
        "Multi-spectral Vehicle Re-identification and a High-quality Benchmark, Information "
        "Fusion, 2023"
    )
    FOLDERS = ("bounding_box_train", "query3", "bounding_box_test")
    IMAGE_SIZE = (128, 256)
    BUILDER_CONFIGS: ClassVar = [
        Config(
            name="scene",
            description="Junk: the query's identity in the query's scene.",
            protocol=Protocol("msvr310/scene", "scene"),
            instructions=MANUAL_DOWNLOAD_INSTRUCTIONS,
            published=Size(1032, 155, 591, 1055, 155, query_identities=52),
        )
    ]

    def read(self, listing: Listing, source: Source) -> None:
        """The three splits as stored; a copy without train can still be scored."""
        for split, folder in zip(("train", "query", "gallery"), self.FOLDERS, strict=True):
            optional = split == "train"
            read_split(listing, source, split, folder, Layout(), NAMING, optional)

    def remarks(self, splits: dict[str, list[Sample]]) -> Iterator[str]:
        """That another data set contains this one."""
        yield (
            "WMVeID863 contains MSVR310: a model trained on one set may not be scored on the other"
        )


BUILDER = MSVR310
