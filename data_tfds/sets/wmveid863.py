"""WMVeID863: vehicles in three spectra with flare; also the tree that the rendered set mimics."""

from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds import names
from data_tfds.builder import Config, TripletBuilder
from data_tfds.listing import Layout, Listing, read_split
from data_tfds.samples import Protocol
from data_tfds.source import Source

INSTRUCTIONS = (
    "Get its archive (WMVeID863, named by its authors) from Google Drive, file "
    "186Ep0YgHY0a8BQ1Z59HP1D2-kZazbH02, or Baidu, 1UpFTwqfWEPnSUC-cQEYSFA with code 8a2c; "
    "it must unpack to DIR/{train,test,query}/<identity>/{vis,ni,th}/*.jpg."
)


class WMVeID863(TripletBuilder):
    """`{train,query,test}/<identity>/{vis,ni,th}/0001_v1_n1_s012_003.jpg`; test is the gallery."""

    name = "wmveid863"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Triplets paired by file name, sorted by identity, name."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    DESCRIPTION = "Vehicles as aligned visible, near-infrared and thermal images, many with flare."
    CITATION = (
        "Zheng et al., Flare-Aware Cross-modal Enhancement Network for Multi-spectral Vehicle "
        "Re-identification, Information Fusion, 2024"
    )
    FOLDERS = ("train", "query", "test")
    BUILDER_CONFIGS: ClassVar = [
        Config(
            name="official",
            description="All triplets, under the rules the published scores follow.",
            protocol=Protocol("wmveid863/official", "camera"),
            instructions=INSTRUCTIONS,
            published={"train": (3482, 603), "query": (959, None), "gallery": (1226, 260)},
        ),
        Config(
            name="clean",
            description="Without incomplete triplets and without test identities in train.",
            protocol=Protocol("wmveid863/clean", "camera"),
            instructions=INSTRUCTIONS,
            clean=True,
        ),
        Config(
            name="rendered",
            description="The rendered demo set, which comes in the same tree.",
            protocol=Protocol("rendered/camera", "camera"),
            instructions=(
                "This project draws it: run `make demo`, or call "
                "data_tfds.rendered.tree.write_tree(DIR)."
            ),
        ),
    ]

    def listing(self, source: Source) -> Listing:
        """The splits as stored; without a folder query the whole test set queries."""
        listing = Listing()
        for split, folder in (("train", "train"), ("query", "query"), ("gallery", "test")):
            if split != "query" or any(path.startswith("query/") for path in source.files):
                read_split(listing, source, split, folder, Layout(), names.WMVEID863)
        return listing
