"""LLCM: persons in visible and near-infrared images of nine cameras, much of it in low light."""

import functools
import re
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.builder import Config, SampleBuilder, Size
from data_tfds.errors import UserError, printable
from data_tfds.listing import Listing
from data_tfds.samples import NEAR_INFRARED, VISIBLE, Protocol, Sample, Side
from data_tfds.sets import sysu_trials
from data_tfds.source import Source

CAMERAS = tuple(range(1, 10))
FOLDER = {VISIBLE: "vis", NEAR_INFRARED: "nir"}
"""How each modality is called in the names of folders and lists."""

TRAINING_IMAGES = {VISIBLE: 16_946, NEAR_INFRARED: 13_975}
QUERIES = {VISIBLE: 8_680, NEAR_INFRARED: 7_166}

INSTRUCTIONS = (
    "Ask its authors for it (ZYK100/LLCM on GitHub has the agreement); it must unpack to "
    "DIR/{vis,nir}/<identity>/*.jpg, DIR/{test_vis,test_nir}/cam<1-9>/<identity>/*.jpg and "
    "DIR/idx/{train_vis,train_nir,test_id}.txt."
)


def _config(query: str, gallery: str) -> Config:
    name = f"{query}_to_{gallery}"
    protocol = Protocol(
        f"llcm/{name}",
        junk="camera",
        query=Side("gallery", (query,)),
        gallery=Side("gallery", (gallery,)),
        trials=functools.partial(sysu_trials.agw, cameras=CAMERAS, shots=1),
        collapse=True,
    )
    return Config(
        name=name,
        description=f"{query} queries; of each camera and identity one {gallery} image a trial.",
        protocol=protocol,
        instructions=INSTRUCTIONS,
        published=Size(30_921, 713, 15_846, 15_846, 351),
        prepared_as="" if query == NEAR_INFRARED else f"{gallery}_to_{query}",
    )


class LLCM(SampleBuilder):
    """One image a sample; the split gallery has all test images, one modality queries the other.

    Ten trials draw one image of each camera and identity, as for SYSU-MM01. What is of the query's
    identity and camera is left out, and CMC counts identities at their first occurrence, as the
    public evaluation of DEEN (Zhang and Wang 2023) does.
    """

    name = "llcm"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "One image a sample, sorted by identity and path."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    DESCRIPTION = "Persons in visible and near-infrared images of nine cameras, in low light."
    CITATION = (
        "Zhang and Wang, Diverse Embedding Expansion Network and Low-Light Cross-Modality "
        "Benchmark for Visible-Infrared Person Re-identification, CVPR, 2023"
    )
    FOLDERS = ("vis", "nir", "test_vis", "test_nir", "idx")
    MODALITIES = (VISIBLE, NEAR_INFRARED)
    IMAGE_SIZE = (288, 144)
    MAY_BE_UNPAIRED = True
    BUILDER_CONFIGS: ClassVar = [_config(NEAR_INFRARED, VISIBLE), _config(VISIBLE, NEAR_INFRARED)]

    def read(self, listing: Listing, source: Source) -> None:
        """The lists of training images; the test folders of the identities in test_id.txt."""
        train = []
        for modality in self.modalities:
            train += _listed(listing, source, modality)
        listing.close("train", train, f"the lists of {source.root}")
        wanted, test = _test_identities(source), []
        for path in sorted(source.files):
            if not path.startswith("test_"):
                continue
            match = re.fullmatch(r"test_(vis|nir)/cam([1-9])/(\d{4})/[^/]+\.jpg", path)
            if match is None:
                where = f"{source.where(path)} is not at test_{{vis,nir}}/cam<1-9>/<identity>/*.jpg"
                listing.add("stray", path, where)
                continue
            if int(match[3]) in wanted:
                modality = VISIBLE if match[1] == "vis" else NEAR_INFRARED
                test.append(_sample(listing, path, match[3], modality, int(match[2])))
        listing.close("gallery", test, f"the test identities of {source.root}")

    def remarks(self, splits: dict[str, list[Sample]]) -> Iterator[str]:
        """Where the numbers of images of a modality are not the published ones."""
        published = {"train": TRAINING_IMAGES, "gallery": QUERIES}
        for split, numbers in published.items():
            for column, (modality, number) in enumerate(numbers.items()):
                found = sum(bool(each.files[column]) for each in splits.get(split, ()))
                if found and found != number:
                    yield f"{split} has {found} {modality} images, published {number}"


BUILDER = LLCM


def _sample(listing: Listing, path: str, identity: str, modality: str, camera: int) -> Sample:
    listing.images[path] = modality
    files = (path, "") if modality == VISIBLE else ("", path)
    return Sample(name=path, identity_name=identity, files=files, camera=camera)


def _text(source: Source, path: str) -> str:
    """A list of the data set. Raises UserError where it is missing."""
    if path not in source.files:
        raise UserError(f"{source.where(path)} is missing; unpack the archive whole.")
    return source.read(path).decode("utf-8", "replace")


def _test_identities(source: Source) -> set[int]:
    """The identities in idx/test_id.txt, numbers between commas."""
    path = "idx/test_id.txt"
    fields = _text(source, path).replace(",", " ").split()
    if not fields or not all(field.isdecimal() for field in fields):
        raise UserError(f"{source.where(path)} must be whole numbers between commas, as in 1,2,3.")
    return set(map(int, fields))


def _listed(listing: Listing, source: Source, modality: str) -> Iterator[Sample]:
    """The training samples of a list, whose lines are "vis/0001/0001_c01_...jpg <label>"."""
    folder, seen = FOLDER[modality], set()
    path = f"idx/train_{folder}.txt"
    for number, line in enumerate(_text(source, path).splitlines(), start=1):
        where = f"{source.where(path)} line {number}"
        if not line.strip():
            continue
        pattern = rf"({folder}/(\d{{4}})/\d{{4}}_c(\d{{1,2}})_[^/]*\.jpg)\s+\d+"
        match = re.fullmatch(pattern, line.strip())
        if match is None:
            expected = f"{folder}/<identity>/<identity>_c<camera>_....jpg <label>"
            listing.add("name", where, f'{where} is "{printable(line)}" and must be {expected}')
            continue
        file, identity, camera = match.groups()
        if file not in source.files:
            listing.add("name", file, f"{source.where(file)}, which {where} names, is missing")
        elif file in seen:
            listing.add("name", file, f"{where} names {file} again")
        else:
            seen.add(file)
            yield _sample(listing, file, identity, modality, int(camera))
