"""RGBNT100: vehicles in three modalities, one strip of three tiles per file."""

import re
from typing import ClassVar

import tensorflow_datasets as tfds
from PIL import Image

from data_tfds.builder import Config, SampleBuilder, Size
from data_tfds.errors import UserError
from data_tfds.listing import Layout, Listing, Naming, Parsed, read_split
from data_tfds.samples import Protocol
from data_tfds.source import Source

TILE = (256, 128)
"""Width and height of one modality's tile."""


def _parse(name: str) -> Parsed | None:
    match = re.fullmatch(r"(\d+)_c(\d+)_\d+\.jpe?g", name, re.IGNORECASE)
    if match is None or not (1 <= int(match[1]) <= 600 and 1 <= int(match[2]) <= 8):
        return None
    return Parsed(match[1], camera=int(match[2]))


NAMING = Naming(_parse, "0502_c0001_000.jpg (identity 1-600, camera 1-8, number)")


class RGBNT100(SampleBuilder):
    """`rgbir/{bounding_box_train,query,bounding_box_test}/0502_c0001_000.jpg`, 768 x 128 pixels."""

    name = "rgbnt100"
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "The strips as stored, sorted by identity and name.",
        "2.0.0": "Samples say which modalities they have; identity_name and view are labels.",
    }
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
    STRIP = True
    IMAGE_SIZE = (128, 256)
    GREY = True  # the release converts every strip to RGB
    BUILDER_CONFIGS: ClassVar = [
        Config(
            name="camera",
            description="Junk: the query's identity under the query's camera.",
            protocol=Protocol("rgbnt100/camera", "camera"),
            instructions=MANUAL_DOWNLOAD_INSTRUCTIONS,
            published=Size(8675, 50, 1715, 8575, 50, query_identities=50),
        )
    ]

    def read(self, listing: Listing, source: Source) -> None:
        """The three splits as stored; a copy without train can still be scored."""
        strips = Layout({"": ""}, identities=False)
        for split, folder in zip(("train", "query", "gallery"), self.FOLDERS, strict=True):
            optional = split == "train"
            read_split(listing, source, split, folder, strips, NAMING, optional)

    def tiles(self, strip: Image.Image, where: str) -> list[Image.Image]:
        """The three 256 x 128 tiles of a strip: visible, near-infrared, thermal."""
        (width, height), count = TILE, len(self.modalities)
        if strip.size != (count * width, height):
            raise UserError(
                f"{where} measures {strip.width} x {strip.height} pixels where a strip of three "
                f"{width} x {height} tiles, {count * width} x {height}, is needed; replace it."
            )
        return [strip.crop((width * tile, 0, width * (tile + 1), height)) for tile in range(count)]


BUILDER = RGBNT100
