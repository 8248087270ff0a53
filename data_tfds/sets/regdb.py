"""RegDB: persons as visible and thermal images, in ten divisions into train and test."""

import dataclasses
import re
from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.builder import Config, SampleBuilder, Size
from data_tfds.errors import UserError, printable
from data_tfds.listing import Listing
from data_tfds.samples import THERMAL, VISIBLE, Protocol, Sample, Side
from data_tfds.source import Source

TRIALS = range(1, 11)

CAMERA = {VISIBLE: 1, THERMAL: 2}
"""The label camera: each modality has a camera of its own."""

INSTRUCTIONS = (
    "Ask its authors for it (Dongguk University, DBPerson-Recog-DB1); it must unpack to "
    "DIR/{Visible,Thermal}/<person>/*.bmp and DIR/idx/{train,test}_{visible,thermal}_<1-10>.txt. "
    "A model belongs to one trial: train one for each, regdb/visible_to_thermal_1 to _10, and "
    "average their scores."
)


@dataclasses.dataclass(eq=False, kw_only=True)
class Trial(Config):
    """A config that belongs to one of the ten divisions."""

    trial: int


def _config(query: str, gallery: str, trial: int) -> Trial:
    name = f"{query}_to_{gallery}_{trial}"
    shared = f"visible_to_thermal_{trial}"
    return Trial(
        name=name,
        description=f"Trial {trial}: {query} queries, {gallery} gallery.",
        protocol=Protocol(
            f"regdb/{name}", query=Side("gallery", (query,)), gallery=Side("gallery", (gallery,))
        ),
        instructions=INSTRUCTIONS,
        published=Size(4120, 206, 4120, 4120, 206),
        prepared_as="" if name == shared else shared,
        trial=trial,
    )


class RegDB(SampleBuilder):
    """`Visible/<person>/*.bmp` and `Thermal/<person>/*.bmp`, one image a sample.

    `idx/train_visible_1.txt` and its like list, by lines "path label", what a trial has. The split
    gallery has all test images: one modality of it queries the other.
    """

    name = "regdb"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "One image a sample, sorted by identity and path."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    DESCRIPTION = "Persons as visible and thermal images of one camera each."
    CITATION = (
        "Nguyen et al., Person Recognition System Based on a Combination of Body Images from "
        "Visible Light and Thermal Cameras, Sensors, 2017"
    )
    FOLDERS = ("Visible", "Thermal", "idx")
    MODALITIES = (VISIBLE, THERMAL)
    IMAGE_SIZE = (288, 144)
    GREY = True
    MAY_BE_UNPAIRED = True
    BUILDER_CONFIGS: ClassVar = [
        _config(query, gallery, trial)
        for query, gallery in ((VISIBLE, THERMAL), (THERMAL, VISIBLE))
        for trial in TRIALS
    ]

    def read(self, listing: Listing, source: Source) -> None:
        """Train and test of the config's trial; identities are the persons' folders."""
        for split, part in (("train", "train"), ("gallery", "test")):
            samples, person_of = [], {}
            for modality in self.modalities:
                path = f"idx/{part}_{modality}_{self.builder_config.trial}.txt"
                if path not in source.files:
                    raise UserError(
                        f"{source.where(path)} is missing, which lists {part}'s {modality} images; "
                        "unpack the archive whole."
                    )
                samples += _listed(listing, source, path, modality, person_of)
            listing.close(split, samples, f"{part} of trial {self.builder_config.trial}")


BUILDER = RegDB


def _listed(
    listing: Listing, source: Source, path: str, modality: str, person_of: dict[str, str]
) -> list[Sample]:
    """The samples of a list; `person_of` has the person of each label met before in the split."""
    samples, seen = [], set()
    lines = source.read(path).decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, start=1):
        where = f"{source.where(path)} line {number}"
        if not line.strip():
            continue
        match = re.fullmatch(rf"({modality}/(\d+)/[^/]+)\s+(\d+)", line.strip(), re.IGNORECASE)
        if match is None:
            expected = f"{modality.capitalize()}/<person>/<file> <label>"
            text = f'{where} is "{printable(line)}" and must be {expected}'
            listing.add("name", where, text)
            continue
        file, person, label = match.groups()
        if file not in source.files:
            listing.add("name", file, f"{source.where(file)}, which {where} names, is missing")
        elif file in seen:
            listing.add("name", file, f"{where} names {file} again")
        elif person_of.setdefault(label, person) != person:
            text = f"{where} gives the label {label} to person {person}, and another line to person"
            listing.add("name", file, f"{text} {person_of[label]}")
        else:
            seen.add(file)
            listing.images[file] = modality
            files = (file, "") if modality == VISIBLE else ("", file)
            samples.append(
                Sample(name=file, identity_name=person, files=files, camera=CAMERA[modality])
            )
    return samples
