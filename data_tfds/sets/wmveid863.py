"""WMVeID863: vehicles in three modalities with flare."""

import re
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.builder import Config, SampleBuilder, Size
from data_tfds.listing import Layout, Listing, Naming, Parsed, read_split
from data_tfds.samples import Protocol, Sample
from data_tfds.source import Source

PLACEHOLDER_SCENE = 999
"""The scene number that its names have where there is none."""

INSTRUCTIONS = (
    "Get its archive (WMVeID863, named by its authors) from Google Drive, file "
    "186Ep0YgHY0a8BQ1Z59HP1D2-kZazbH02, or Baidu, 1UpFTwqfWEPnSUC-cQEYSFA with code 8a2c; "
    "it must unpack to DIR/{train,test,query}/<identity>/{vis,ni,th}/*.jpg."
)


def _parse(name: str) -> Parsed | None:
    """The published protocol takes the view for the camera."""
    match = re.fullmatch(r"(\d+)_v(\d)_n(\d)_s(\d+)_\d+\.jpe?g", name, re.IGNORECASE)
    if match is None:
        return None
    view, night, scene = map(int, match.groups()[1:])
    scene = -1 if scene == PLACEHOLDER_SCENE else scene
    return Parsed(match[1], camera=view, scene=scene, view=view, night=night)


NAMING = Naming(_parse, "0001_v1_n1_s012_003.jpg (identity, view, night, scene, number)")


class WMVeID863(SampleBuilder):
    """`{train,query,test}/<identity>/{vis,ni,th}/0001_v1_n1_s012_003.jpg`; test is the gallery."""

    name = "wmveid863"
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "Samples paired by file name, sorted by identity, name.",
        "2.0.0": "Samples say which modalities they have; identity_name and view are labels.",
    }
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
            description="All samples, under the rules the published scores follow.",
            protocol=Protocol("wmveid863/official", "camera"),
            instructions=INSTRUCTIONS,
            published=Size(3482, 603, 959, 1226, 260),
            # The names in circulation: 3482 visible images, 3481 complete samples; no query list.
            stored=Size(3482, 603, 1228, 1228, 272),
        ),
        Config(
            name="clean",
            description="Without incomplete samples and without test identities in train.",
            protocol=Protocol("wmveid863/clean", "camera"),
            instructions=INSTRUCTIONS,
            stored=Size(3441, 596, 1228, 1228, 272),
            clean=True,
        ),
    ]

    def read(self, listing: Listing, source: Source) -> None:
        """The splits as stored; without a folder query the whole test set queries."""
        for split, folder in (("train", "train"), ("query", "query"), ("gallery", "test")):
            optional = split != "gallery"
            read_split(listing, source, split, folder, Layout(), NAMING, optional)

    def remarks(self, splits: dict[str, list[Sample]]) -> Iterator[str]:
        """WMVeID863 contains MSVR310: its samples of night digit 9 and scenes 0 to 30."""
        shared = {
            split: sum(each.night == 9 and 0 <= each.scene <= 30 for each in found)
            for split, found in splits.items()
        }
        if any(shared.values()):
            counts = ", ".join(f"{count} of {split}" for split, count in shared.items())
            yield (
                f"{counts} are samples of MSVR310: a model trained on one set may not be scored on "
                "the other"
            )


BUILDER = WMVeID863
