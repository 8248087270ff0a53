"""SYSU-MM01: persons seen by four visible and two infrared cameras."""

import re
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.builder import Config, SampleBuilder, Size
from data_tfds.errors import UserError
from data_tfds.listing import Listing
from data_tfds.samples import INFRARED, VISIBLE, Protocol, Sample, Side
from data_tfds.sets import sysu_trials
from data_tfds.sets.sysu_arrays import FILES, TreeWithArrays
from data_tfds.source import Source, Tree

MODALITY = {1: VISIBLE, 2: VISIBLE, 3: INFRARED, 4: VISIBLE, 5: VISIBLE, 6: INFRARED}
"""What each camera takes; 1, 2 and 3 are indoors, 2 and 3 in one room."""

TRAINING_IMAGES = {VISIBLE: 22_258, INFRARED: 11_909}
SINGLE_SHOT_GALLERY = 301
"""Published numbers that `Size` has no place for; the gallery's is that of all search."""

INSTRUCTIONS = (
    "Ask its authors for it (wuancong/SYSU-MM01 on GitHub has the licence form); it must unpack to "
    "DIR/{cam1,...,cam6}/<identity>/<number>.jpg and DIR/exp/{train,val,test}_id.txt. For the rule "
    "official, exp/rand_perm_cam.mat is evaluation/data_split/rand_perm_cam.mat of that repository."
)


def _config(mode: str, shots: str, rule: str) -> Config:
    name = f"{mode}_{shots}" + ("" if rule == "agw" else f"_{rule}")
    protocol = Protocol(
        f"sysu_mm01/{name}",
        query=Side("query", (INFRARED,)),
        gallery=Side("gallery", (VISIBLE,)),
        ignore=(("camera", 3, 2),),
        trials=sysu_trials.rule(rule, mode, sysu_trials.SHOTS[shots]),
        collapse=True,
    )
    return Config(
        name=name,
        description=f"{mode.capitalize()} search, {shots} shot, gallery by the rule {rule}.",
        protocol=protocol,
        instructions=INSTRUCTIONS,
        published=Size(34_167, 395, 3803, 0, 96, query_identities=96),
        prepared_as="" if name == "all_single" else "all_single",
    )


class SYSUMM01(SampleBuilder):
    """`cam1..cam6/0026/0054.jpg`, one image a sample, with the identities of each split in `exp`.

    Where the cameras' folders have no training image, the four arrays of AGW's preprocessing are
    the training split; they know no cameras.
    """

    name = "sysu_mm01"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "One image a sample, sorted by identity and path."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    DESCRIPTION = "Persons in visible and infrared images of six cameras, matched between the two."
    CITATION = "Wu et al., RGB-Infrared Cross-Modality Person Re-identification, ICCV, 2017"
    FOLDERS = (*(f"cam{camera}" for camera in MODALITY), "exp", *FILES)
    MODALITIES = (VISIBLE, INFRARED)
    IMAGE_SIZE = (288, 144)
    MAY_BE_UNPAIRED = True
    BUILDER_CONFIGS: ClassVar = [
        _config(mode, shots, rule)
        for rule in ("agw", "official")
        for mode in sysu_trials.CAMERAS
        for shots in sysu_trials.SHOTS
    ]

    def open(self, root: str) -> Source:
        """The files at `root`, and the images of the arrays where there are any."""
        source = super().open(root)
        if isinstance(source, Tree) and any(name in source.files for name in FILES):
            return TreeWithArrays(source)
        return source

    def find_protocol(self, config: Config, source: Source) -> Protocol:
        """The protocol; for the rule official with the permutations of the source."""
        protocol = config.protocol
        if not config.name.endswith("_official"):
            return protocol
        path = sysu_trials.PERMUTATIONS
        if path not in source.files:
            raise UserError(f"{source.where(path)} is missing. {config.instructions}")
        found = sysu_trials.read_permutations(source.read(path), source.where(path))
        mode, shots, rule = config.name.split("_")
        trials = sysu_trials.rule(rule, mode, sysu_trials.SHOTS[shots], permutations=found)
        return Protocol(**{**vars(protocol), "trials": trials})

    def read(self, listing: Listing, source: Source) -> None:
        """Train and val together; the infrared test images query the visible ones."""
        lists = {name: _identities(source, name) for name in ("train", "val", "test")}
        train = lists["train"] | lists["val"]
        split_of = dict.fromkeys(train, "train")
        split_of |= dict.fromkeys(lists["test"], "test")
        samples = {split: [] for split in ("train", "query", "gallery")}
        for path in sorted(source.files):
            if not path.startswith("cam"):
                continue
            match = re.fullmatch(r"cam([1-6])/(\d{4})/\d{4}\.jpg", path)
            if match is None:
                text = f"{source.where(path)} is not at cam<1-6>/<identity>/<number>.jpg"
                listing.add("stray", path, text)
                continue
            split = split_of.get(int(match[2]))
            if split is None:  # persons that belong to no experiment
                continue
            modality = MODALITY[int(match[1])]
            if split == "test":
                split = "query" if modality == INFRARED else "gallery"
            listing.images[path] = modality
            samples[split].append(_sample(path, match[2], modality, int(match[1])))
        if not samples["train"] and isinstance(source, TreeWithArrays):
            samples["train"] = list(_of_arrays(listing, source, sorted(train)))
        for split, found in samples.items():
            if found or not (split == "train" or isinstance(source, TreeWithArrays)):
                listing.close(split, found, f"the {split} identities of {source.root}")

    def remarks(self, splits: dict[str, list[Sample]]) -> Iterator[str]:
        """Where the numbers of training images or of a trial's gallery are not the published."""
        train = splits.get("train", ())
        for column, (modality, published) in enumerate(TRAINING_IMAGES.items()):
            found = sum(bool(each.files[column]) for each in train)
            if train and found != published:
                yield f"train has {found} {modality} images, published {published}"
        drawn = len({(each.identity, each.camera) for each in splits.get("gallery", ())})
        if drawn and drawn != SINGLE_SHOT_GALLERY:
            yield f"a trial of all search draws {drawn} images, published {SINGLE_SHOT_GALLERY}"


BUILDER = SYSUMM01


def _identities(source: Source, name: str) -> set[int]:
    """The identities in exp/<name>_id.txt, numbers between commas."""
    path = f"exp/{name}_id.txt"
    if path not in source.files:
        raw = any(file.startswith("cam") for file in source.files)
        if isinstance(source, TreeWithArrays) and not raw:
            return set()
        raise UserError(
            f"{source.where(path)} is missing, which lists the identities of {name}; unpack the "
            "archive whole."
        )
    fields = source.read(path).decode("utf-8", "replace").replace(",", " ").split()
    if not fields or not all(field.isdecimal() for field in fields):
        raise UserError(f"{source.where(path)} must be whole numbers between commas, as in 1,2,3.")
    return set(map(int, fields))


def _sample(path: str, identity: str, modality: str, camera: int) -> Sample:
    files = (path, "") if modality == VISIBLE else ("", path)
    return Sample(name=path, identity_name=identity, files=files, camera=camera)


def _of_arrays(listing: Listing, source: TreeWithArrays, identities: list[int]) -> Iterator[Sample]:
    """The images of the arrays; label n is the n-th identity, or itself where none are listed."""
    for modality, labels in source.labels.items():
        if labels.min(initial=0) < 0 or (identities and labels.max(initial=0) >= len(identities)):
            raise UserError(
                f"{source.root} has {modality} labels up to {labels.max()} in its array and "
                f"{len(identities)} training identities in exp; they do not belong together."
            )
        for row, label in enumerate(labels):
            path = source.path(modality, row)
            listing.images[path] = modality
            identity = identities[label] if identities else label
            yield _sample(path, f"{identity:04d}", modality, -1)
