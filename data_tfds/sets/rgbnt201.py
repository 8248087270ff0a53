"""RGBNT201: persons in three modalities."""

import re
from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.builder import Config, SampleBuilder, Size
from data_tfds.listing import Layout, Listing, Naming, Parsed, read_split
from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE, Protocol
from data_tfds.source import Source


def _parse(name: str) -> Parsed | None:
    match = re.fullmatch(r"(\d+)_cam(\d+)_\d+_\d+\.jpe?g", name, re.IGNORECASE)
    return match and Parsed(match[1], camera=int(match[2]))


NAMING = Naming(_parse, "000258_cam1_0_00.jpg (identity, camera, track, number)")


class RGBNT201(SampleBuilder):
    """`{train_171,test}/{RGB,NI,TI}/000258_cam1_0_00.jpg`; test is both query and gallery."""

    name = "rgbnt201"
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "Samples paired by file name, sorted by identity, name.",
        "2.0.0": "Samples say which modalities they have; identity_name and view are labels.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get its archive (RGBNT201) from Google Drive, folder 1EscBadX-wMAT56_It5lXY-S3-b5nK1wH; "
        "it must unpack to DIR/{train_171,test}/{RGB,NI,TI}/*.jpg."
    )
    DESCRIPTION = "Persons as aligned visible, near-infrared and thermal images."
    CITATION = "Zheng et al., Robust Multi-Modality Person Re-identification, AAAI, 2021 (RGBNT201)"
    FOLDERS = ("train_171", "test")
    BUILDER_CONFIGS: ClassVar = [
        Config(
            name="camera",
            description="Junk: the query's identity under the query's camera.",
            protocol=Protocol("rgbnt201/camera", "camera"),
            instructions=MANUAL_DOWNLOAD_INSTRUCTIONS,
            published=Size(3951, 171, 836, 836, 30),
        )
    ]

    def read(self, listing: Listing, source: Source) -> None:
        """Train and gallery as stored; the whole gallery queries."""
        layout = Layout({VISIBLE: "RGB", NEAR_INFRARED: "NI", THERMAL: "TI"}, identities=False)
        read_split(listing, source, "train", "train_171", layout, NAMING, optional=True)
        read_split(listing, source, "gallery", "test", layout, NAMING)


BUILDER = RGBNT201
