"""The rendered set: the vehicles that this project draws, in WMVeID863's tree and names."""

from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.builder import Config, Size
from data_tfds.samples import Protocol, Sample
from data_tfds.sets.wmveid863 import WMVeID863

INSTRUCTIONS = "This project draws it: facenet render DIR (`make demo` does so)."


class Rendered(WMVeID863):
    """`{train,query,test}/<identity>/{vis,ni,th}/0001_v1_n1_s012_003.jpg`; test is the gallery."""

    name = "rendered"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "A data set of its own; before a config of wmveid863."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    DESCRIPTION = "Drawn vehicles as visible, near-infrared and thermal images, many with flare."
    CITATION = ""
    BUILDER_CONFIGS: ClassVar = [
        Config(
            name="camera",
            description="Junk: the query's identity in the query's view.",
            protocol=Protocol("rendered/camera", "camera"),
            instructions=INSTRUCTIONS,
            stored=Size(3520, 176, 300, 800, 50),  # by the defaults of facenet render
        )
    ]

    def remarks(self, splits: dict[str, list[Sample]]) -> Iterator[str]:
        """Nothing: what is known of WMVeID863's own images does not hold here."""
        yield from ()


BUILDER = Rendered
