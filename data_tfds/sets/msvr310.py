"""MSVR310: vehicles in three spectra, matched across scenes."""

from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds import names
from data_tfds.builder import Config, TripletBuilder
from data_tfds.listing import Layout, Listing, read_split
from data_tfds.samples import Protocol
from data_tfds.source import Source


class MSVR310(TripletBuilder):
    """`{bounding_box_train,query3,bounding_box_test}/<identity>/{vis,ni,th}/0002_s002_v0_000.jpg`.

    The archive's folder `query` is another query list, which the published scores do not use.
    """

    name = "msvr310"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Triplets paired by file name, sorted by identity, name."}
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
            published={"train": (1032, 155), "query": (591, 52), "gallery": (1055, 155)},
        )
    ]

    def listing(self, source: Source) -> Listing:
        """The three splits as stored."""
        listing = Listing()
        for split, folder in zip(("train", "query", "gallery"), self.FOLDERS, strict=True):
            read_split(listing, source, split, folder, Layout(), names.MSVR310)
        return listing
