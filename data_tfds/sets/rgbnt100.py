"""RGBNT100: vehicles in three spectra, one strip of three tiles per file."""

from typing import ClassVar

import tensorflow_datasets as tfds
from PIL import Image

from data_tfds import names
from data_tfds.builder import Config, TripletBuilder
from data_tfds.errors import UserError
from data_tfds.listing import Layout, Listing, read_split
from data_tfds.samples import BANDS, Protocol
from data_tfds.source import Source

TILE = (256, 128)
"""Width and height of one band's tile."""


class RGBNT100(TripletBuilder):
    """`rgbir/{bounding_box_train,query,bounding_box_test}/0502_c0001_000.jpg`, 768 x 128 pixels."""

    name = "rgbnt100"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The strips as stored, sorted by identity and name."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get RGBNT100.zip (1,584,573,535 bytes, sha256 "
        "9fecdf2978cade2a3d165fc3f63e1d0b8aa3283e31aebaacd0f755187b219a30; research only) from "
        "Baidu, 1xqqh7N4Lctm3RcUdskG0Ug with code rjin; it must unpack to "
        "DIR/rgbir/{bounding_box_train,query,bounding_box_test}/*.jpg."
    )
    DESCRIPTION = "Vehicles as strips of a visible, a near-infrared and a thermal image."
    CITATION = (
        "Li et al., Multi-Spectral Vehicle Re-Identification: A Challenge, AAAI, 2020 (RGBNT100)"
    )
    FOLDERS = ("rgbir/bounding_box_train", "rgbir/query", "rgbir/bounding_box_test")
    IMAGES = ("strip",)
    IMAGE_SIZE = (128, 256)
    GREY = True  # the release converts every strip to RGB
    BUILDER_CONFIGS: ClassVar = [
        Config(
            name="camera",
            description="Junk: the query's identity under the query's camera.",
            protocol=Protocol("rgbnt100/camera", "camera"),
            instructions=MANUAL_DOWNLOAD_INSTRUCTIONS,
            published={"train": (8675, 50), "query": (1715, 50), "gallery": (8575, 50)},
        )
    ]

    def listing(self, source: Source) -> Listing:
        """The three splits as stored."""
        listing, strips = Listing(), Layout(bands=("",), identities=False)
        for split, folder in zip(("train", "query", "gallery"), self.FOLDERS, strict=True):
            read_split(listing, source, split, folder, strips, names.RGBNT100)
        return listing

    def tiles(self, strip: Image.Image, where: str) -> list[Image.Image]:
        """The three 256 x 128 tiles of a strip, in the order R, N, T."""
        width, height = TILE
        if strip.size != (len(BANDS) * width, height):
            raise UserError(
                f"{where} measures {strip.width} x {strip.height} pixels where a strip of three "
                f"{width} x {height} tiles, {len(BANDS) * width} x {height}, is needed; replace it."
            )
        return [
            strip.crop((width * tile, 0, width * (tile + 1), height)) for tile in range(len(BANDS))
        ]
