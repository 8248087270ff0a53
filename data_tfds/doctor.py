"""Everything that is wrong or odd about a data set's files, found in one pass before training."""

import collections
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator

import numpy as np

from data_tfds import flare
from data_tfds.accept import sides, unmatched
from data_tfds.builder import SampleBuilder
from data_tfds.images import ImageError
from data_tfds.listing import Listing
from data_tfds.pixels import Pixels, read_pixels
from data_tfds.samples import Protocol, Sample
from data_tfds.sets import lookup
from data_tfds.source import Source

USED = "uses them as they are"
REFUSED = "refuses the data set"

LISTED = {
    "stray": ("warning", "files belong to no sample", "leaves them out"),
    "identity": ("error", "identities cannot be used", REFUSED),
    "name": ("error", "names do not say what they must", REFUSED),
    "empty": ("error", "splits are empty", REFUSED),
}
"""Problems of a listing: severity, what, what the builder does about them."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of trouble and every file it was found in."""

    severity: str  # "error": the builder refuses the set; "warning": somebody should know
    what: str
    builder: str  # what the builder does about it
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found; `splits` holds the numbers of each split, JSON-ready."""

    dataset: str
    root: str
    protocol: str
    modalities: tuple[str, ...]
    splits: dict[str, dict]
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """1 with an error among the findings, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))


def examine(name: str, root: str, incomplete: str = "error") -> Report:
    """The report on the data set `name` at `root`; nothing is written.

    `incomplete` is the option the set would be prepared with. Raises UserError only where there is
    no such data set at all.
    """
    cls, config = lookup(name)
    with tempfile.TemporaryDirectory() as scratch:
        builder = cls(data_dir=scratch, config=config, root=root, incomplete=incomplete)
    source = builder.source
    listing = builder.listing(source)
    pixels = read_pixels(builder, source, listing.images)
    splits = builder.select(listing.splits)
    findings = [
        *_listed(listing, builder),
        *_counts(splits, builder),
        *_images(source, pixels),
        *_sizes(listing, pixels),
        *_across(listing, builder),
        *_duplicates(splits, pixels),
        *_unmatched(splits, builder),
        *(Finding("warning", remark, USED) for remark in builder.remarks(splits)),
    ]
    return Report(
        dataset=name,
        root=str(source.root),
        protocol=builder.builder_config.protocol.name,
        modalities=builder.modalities,
        splits={split: _numbers(found, pixels, builder) for split, found in splits.items()},
        findings=sorted(findings, key=lambda finding: finding.severity),
    )


def _listed(listing: Listing, builder: SampleBuilder) -> Iterator[Finding]:
    by_kind = collections.defaultdict(list)
    for problem in listing.problems:
        by_kind[problem.kind].append(problem)
    for kind, (severity, what, does) in LISTED.items():
        if by_kind[kind]:
            texts = tuple(problem.text for problem in by_kind[kind])
            yield Finding(severity, f"{len(texts)} {what}", does, texts)
    if by_kind["incomplete"]:
        texts = tuple(problem.text for problem in by_kind["incomplete"])
        what = f"{len(texts)} samples are incomplete"
        if builder.incomplete == "skip":
            yield Finding("warning", what, "leaves them out", texts)
        elif builder.incomplete == "keep":
            does = "keeps them and marks what is absent, but for files whose names say nothing"
            yield Finding("warning", what, does, texts)
        else:
            does = f"{REFUSED}; with --config.data.incomplete=skip it leaves them out"
            yield Finding("error", what, does, texts)


def _counts(splits: dict[str, list[Sample]], builder: SampleBuilder) -> Iterator[Finding]:
    published = builder.builder_config.published
    for split, (samples, identities) in published.splits().items() if published else ():
        found = splits.get(split)
        if found is None:
            what = f"no split {split}, published with {samples} samples"
            does = "lets the whole gallery query" if split == "query" else "goes on without it"
            yield Finding("warning", what, does)
            continue
        known = len({each.identity for each in found})
        if samples and (len(found) != samples or identities not in (0, known)):
            of = f" of {identities} identities" if identities else ""
            what = f"{split} has {len(found)} samples of {known} identities, published {samples}"
            yield Finding("warning", what + of, USED)


def _images(source: Source, pixels: dict[str, Pixels]) -> Iterator[Finding]:
    unusable = collections.defaultdict(list)
    for found in pixels.values():
        if found.error is not None:
            kind = found.error.kind if isinstance(found.error, ImageError) else "unusable"
            unusable[kind].append(str(found.error))
    names = {
        "no image": "files are no image",
        "truncated": "images are truncated or damaged",
        "too large": "images have too many pixels",
        "L": "images are grey",
        "unusable": "files cannot be used",
    }
    for kind, texts in sorted(unusable.items()):
        what = names.get(kind, f"images have mode {kind}")
        yield Finding("error", f"{len(texts)} {what}", REFUSED, tuple(texts))
    grey = tuple(source.where(path) for path, found in pixels.items() if found.grey)
    if grey:
        does = "takes them as three equal channels"
        yield Finding("warning", f"{len(grey)} images are grey", does, grey)
    cut = tuple(source.where(path) for path, found in pixels.items() if found.cut_off)
    if cut:
        what = f"{len(cut)} images are cut off, and grey from there on"
        yield Finding("warning", what, USED, cut)
    rotated = tuple(source.where(path) for path, found in pixels.items() if found.rotated)
    if rotated:
        what = f"{len(rotated)} images carry an EXIF rotation"
        yield Finding("warning", what, "ignores it and takes the pixels as stored", rotated)


def _sizes(listing: Listing, pixels: dict[str, Pixels]) -> Iterator[Finding]:
    odd = []
    for split, found in listing.splits.items():
        for sample in found:
            files = filter(None, sample.files)
            sizes = [pixels[file].size for file in files if not pixels[file].error]
            if len(set(sizes)) > 1:
                shown = ", ".join(f"{width} x {height}" for width, height in sizes)
                odd.append(f"{split}/{sample.name}: {shown}")
    if odd:
        what = f"{len(odd)} samples have images of different sizes"
        yield Finding("warning", what, "resizes each image by itself", tuple(odd))


def _across(listing: Listing, builder: SampleBuilder) -> Iterator[Finding]:
    """What train shares with the splits that are tested on."""
    train = listing.splits.get("train", [])
    tested = [each for split, found in listing.splits.items() if split != "train" for each in found]
    clean = builder.builder_config.clean
    does = "leaves the training samples of these identities out" if clean else USED
    identities = {each.identity for each in train} & {each.identity for each in tested}
    if identities:
        what = f"{len(identities)} identities are in train and in test"
        written = {each.identity: each.identity_name for each in train}
        numbers = tuple(written[identity] for identity in sorted(identities))
        yield Finding("warning", what, does, numbers)
    names = {(e.identity, e.name) for e in train} & {(e.identity, e.name) for e in tested}
    if names:
        what = f"{len(names)} samples of the same name are in train and in test"
        yield Finding("warning", what, does, tuple(name for _, name in sorted(names)))


def _duplicates(splits: dict[str, list[Sample]], pixels: dict[str, Pixels]) -> Iterator[Finding]:
    """Equal files in train and test, and under two names of one split."""
    places = collections.defaultdict(list)
    for split, found in splits.items():
        for sample in found:
            for file in filter(None, sample.files):
                places[pixels[file].digest].append((split, file))
    across, within = [], []
    for copies in places.values():
        splits = [split for split, _ in copies]
        text = " = ".join(file for _, file in copies)
        if len(set(splits)) > 1 and "train" in splits:
            across.append(text)
        elif len(set(splits)) < len(splits):
            within.append(text)
    if across:
        what = f"{len(across)} images are in train and in test, byte for byte"
        yield Finding("warning", what, USED, tuple(across))
    if within:
        what = f"{len(within)} images are stored more than once in a split"
        yield Finding("warning", what, USED, tuple(within))


def _unmatched(splits: dict[str, list[Sample]], builder: SampleBuilder) -> Iterator[Finding]:
    """Queries that the protocols of the data set, and no protocol at all, leave without a match."""
    own = builder.builder_config.protocol
    protocols = {c.protocol.name: c.protocol for c in builder.BUILDER_CONFIGS}
    anyone = dataclasses.replace(own, name="any protocol", junk="none", ignore=())
    different = {(anyone.junk, anyone.ignore): anyone}
    for protocol in (*protocols.values(), own):
        different[protocol.junk, protocol.ignore] = protocol
    for protocol in different.values():
        found = sides(splits, protocol, () if builder.STRIP else builder.modalities)
        yield from _lost(*found, protocol, refused=protocol.name == own.name)


def _lost(
    queries: list[Sample], gallery: list[Sample], protocol: Protocol, refused: bool
) -> Iterator[Finding]:
    junk = protocol.junk
    if not queries or not gallery:
        return
    if junk != "none" and any(getattr(each, junk) < 0 for each in (*queries, *gallery)):
        return  # a folder without these labels: its builder refuses this protocol
    lost = unmatched(queries, gallery, protocol)
    if not lost:
        return
    what = f"{len(lost)} of {len(queries)} queries have no match under {protocol.name}"
    names = tuple(each.name for each in lost)
    if len(lost) == len(queries) and refused:
        yield Finding("error", what, REFUSED, names)
    else:
        yield Finding("warning", what, "keeps them; evaluation skips and counts them", names)


def _numbers(found: list[Sample], pixels: dict[str, Pixels], builder: SampleBuilder) -> dict:
    """Counts of one split, and its flare shares by the rules of the paper and of the release."""
    samples = collections.Counter(each.identity for each in found)
    cameras = collections.Counter(each.camera for each in found)
    counts = list(samples.values()) or [0]
    luma, histogram = (
        _flared(found, pixels, builder, statistic=statistic, threshold=threshold)
        for statistic, threshold in (("luma", 0.05), ("histogram", 0.095))
    )
    images = {
        modality: sum(bool(builder.STRIP or each.files[column]) for each in found)
        for column, modality in enumerate(builder.modalities)
    }
    return {
        "samples": len(found),
        "images": images,
        "identities": len(samples),
        "samples_per_identity": [min(counts), statistics.median(counts), max(counts)],
        "samples_per_camera": {str(camera): cameras[camera] for camera in sorted(cameras)},
        "flare_luma": luma,
        "flare_histogram": histogram,
    }


def _flared(
    found: list[Sample], pixels: dict[str, Pixels], builder: SampleBuilder, **rule
) -> dict[str, float]:
    """The share of flared images among those that can be read, for each modality with flare."""
    shares = {}
    for modality in builder.modalities:
        if modality in flare.MODALITIES:
            files = (pixels[file].flare for each in found for file in filter(None, each.files))
            seen = np.float32([each[modality] for each in files if modality in each])
            seen = seen.reshape(-1, 1, 2)
            flared = flare.labels(
                seen[..., 0], seen[..., 1], (modality,), rule="per_modality", **rule
            )
            shares[modality] = float(flared.sum() / max(len(seen), 1))
    return shares
