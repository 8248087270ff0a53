"""RGBNT201: persons in three spectra."""

from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds import names
from data_tfds.builder import Config, TripletBuilder
from data_tfds.listing import Layout, Listing, read_split
from data_tfds.samples import Protocol
from data_tfds.source import Source


class RGBNT201(TripletBuilder):
    """`{train_171,test}/{RGB,NI,TI}/000258_cam1_0_00.jpg`; test is both query and gallery."""

    name = "rgbnt201"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Triplets paired by file name, sorted by identity, name."}
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
            published={"train": (3951, 171), "gallery": (836, 30)},
        )
    ]

    def listing(self, source: Source) -> Listing:
        """Train and gallery as stored; the whole gallery queries."""
        listing, layout = Listing(), Layout(bands=("RGB", "NI", "TI"), identities=False)
        read_split(listing, source, "train", "train_171", layout, names.RGBNT201)
        read_split(listing, source, "gallery", "test", layout, names.RGBNT201)
        return listing
