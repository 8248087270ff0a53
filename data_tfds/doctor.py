"""Everything that is wrong or odd about a data set's files, found in one pass before training."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import statistics
import tempfile
from collections.abc import Iterator

import numpy as np
import tqdm
from PIL import Image

from data_tfds import flare
from data_tfds.builder import TripletBuilder, cores
from data_tfds.errors import UserError
from data_tfds.images import ImageError, decode
from data_tfds.listing import Listing, Triplet, check_incomplete, unmatched
from data_tfds.prepare import lookup
from data_tfds.source import Source

EXIF_ORIENTATION = 0x0112
USED = "uses them as they are"
REFUSED = "refuses the data set"

LISTED = {
    "stray": ("warning", "files belong to no triplet", "leaves them out"),
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
    splits: dict[str, dict]
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """1 with an error among the findings, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))


@dataclasses.dataclass(frozen=True)
class Pixels:
    """What one file's content says; sizes are (width, height)."""

    digest: bytes
    error: ImageError | UserError | None = None
    size: tuple[int, int] = (0, 0)
    grey: bool = False
    rotated: bool = False
    bands: tuple[tuple[float, float], ...] = ()  # luma fraction and histogram ratio of each image


def examine(name: str, root: str, incomplete: str = "error") -> Report:
    """The report on the data set `name` at `root`; nothing is written.

    `incomplete` is the option the set would be prepared with. Raises UserError only where there is
    no such data set at all.
    """
    check_incomplete(incomplete)
    cls, config = lookup(name)
    with tempfile.TemporaryDirectory() as scratch:
        builder = cls(data_dir=scratch, config=config, root=root, incomplete=incomplete)
    source = builder.open(root)
    listing = builder.listing(source)
    pixels = _read(builder, source, listing.images)
    splits = builder.select(listing.splits)
    findings = [
        *_listed(listing, builder),
        *_counts(splits, builder),
        *_images(source, pixels),
        *_sizes(listing, pixels),
        *_across(listing, builder),
        *_duplicates(splits, pixels),
        *_unmatched(splits, builder),
        *_relatives(splits, builder),
    ]
    return Report(
        dataset=name,
        root=str(source.root),
        protocol=builder.builder_config.protocol.name,
        splits={split: _numbers(found, pixels) for split, found in splits.items()},
        findings=sorted(findings, key=lambda finding: finding.severity),
    )


def _read(builder: TripletBuilder, source: Source, paths: list[str]) -> dict[str, Pixels]:
    """The content of every image, read once on all cores."""
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        found = pool.map(lambda path: _pixels(builder, source, path), paths)
        bar = tqdm.tqdm(found, "reading", len(paths), unit=" files", mininterval=1.0)
        return dict(zip(paths, bar, strict=True))


def _pixels(builder: TripletBuilder, source: Source, path: str) -> Pixels:
    try:
        encoded = source.read(path)
    except UserError as error:
        return Pixels(path.encode(), error)
    digest = hashlib.blake2b(encoded, digest_size=16).digest()
    try:
        image, grey = _decode(builder, encoded, source.where(path))
        strip = len(builder.IMAGES) == 1
        images = builder.tiles(image, source.where(path)) if strip else [image]
    except UserError as error:
        return Pixels(digest, error)
    return Pixels(
        digest,
        size=image.size,
        grey=grey,
        rotated=_rotated(image),
        bands=tuple((flare.luma_fraction(i), flare.histogram_ratio(i)) for i in images),
    )


def _rotated(image: Image.Image) -> bool:
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except SyntaxError:  # metadata that cannot be read rotate nothing
        return False


def _decode(builder: TripletBuilder, encoded: bytes, where: str) -> tuple[Image.Image, bool]:
    """The image and whether it is grey, which not every data set may be."""
    try:
        return decode(encoded, where), False
    except ImageError as error:
        if error.kind != "L" or not builder.GREY:
            raise
        return decode(encoded, where, grey=True), True


def _listed(listing: Listing, builder: TripletBuilder) -> Iterator[Finding]:
    by_kind = collections.defaultdict(list)
    for problem in listing.problems:
        by_kind[problem.kind].append(problem)
    for kind, (severity, what, does) in LISTED.items():
        if by_kind[kind]:
            texts = tuple(problem.text for problem in by_kind[kind])
            yield Finding(severity, f"{len(texts)} {what}", does, texts)
    if by_kind["incomplete"]:
        texts = tuple(problem.text for problem in by_kind["incomplete"])
        what = f"{len(texts)} triplets are incomplete"
        if builder.incomplete == "skip":
            yield Finding("warning", what, "leaves them out", texts)
        else:
            does = f"{REFUSED}; with --config.data.incomplete=skip it leaves them out"
            yield Finding("error", what, does, texts)


def _counts(splits: dict[str, list[Triplet]], builder: TripletBuilder) -> Iterator[Finding]:
    for split, (triplets, identities) in builder.builder_config.published.items():
        found = splits.get(split)
        if found is None:
            what = f"no split {split}, published with {triplets} triplets"
            yield Finding("warning", what, "lets the whole gallery query")
            continue
        known = len({triplet.identity for triplet in found})
        if len(found) != triplets or identities not in (None, known):
            of = "" if identities is None else f" of {identities} identities"
            what = f"{split} has {len(found)} triplets of {known} identities, published {triplets}"
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
    rotated = tuple(source.where(path) for path, found in pixels.items() if found.rotated)
    if rotated:
        what = f"{len(rotated)} images carry an EXIF rotation"
        yield Finding("warning", what, "ignores it and takes the pixels as stored", rotated)


def _sizes(listing: Listing, pixels: dict[str, Pixels]) -> Iterator[Finding]:
    odd = []
    for split, found in listing.splits.items():
        for triplet in found:
            sizes = [pixels[file].size for file in triplet.files if not pixels[file].error]
            if len(set(sizes)) > 1:
                shown = ", ".join(f"{width} x {height}" for width, height in sizes)
                odd.append(f"{split}/{triplet.name}: {shown}")
    if odd:
        what = f"{len(odd)} triplets have bands of different sizes"
        yield Finding("warning", what, "resizes each band by itself", tuple(odd))


def _across(listing: Listing, builder: TripletBuilder) -> Iterator[Finding]:
    """What train shares with the splits that are tested on."""
    train = listing.splits.get("train", [])
    tested = [t for split, found in listing.splits.items() if split != "train" for t in found]
    clean = builder.builder_config.clean
    does = "leaves the training triplets of these identities out" if clean else USED
    identities = {t.identity for t in train} & {t.identity for t in tested}
    if identities:
        what = f"{len(identities)} identities are in train and in test"
        yield Finding("warning", what, does, tuple(map(str, sorted(identities))))
    names = {(t.identity, t.name) for t in train} & {(t.identity, t.name) for t in tested}
    if names:
        what = f"{len(names)} triplets of the same name are in train and in test"
        yield Finding("warning", what, does, tuple(name for _, name in sorted(names)))


def _duplicates(splits: dict[str, list[Triplet]], pixels: dict[str, Pixels]) -> Iterator[Finding]:
    """Equal files in train and test, and under two names of one split."""
    places = collections.defaultdict(list)
    for split, found in splits.items():
        for triplet in found:
            for file in triplet.files:
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


def _unmatched(splits: dict[str, list[Triplet]], builder: TripletBuilder) -> Iterator[Finding]:
    """Queries that the protocols of the data set, and no protocol at all, leave without a match."""
    gallery = splits.get("gallery", [])
    queries = splits.get("query", gallery)
    protocols = {c.protocol.junk: c.protocol.name for c in reversed(builder.BUILDER_CONFIGS)}
    own = builder.builder_config.protocol
    for junk, name in {"none": "any protocol", **protocols, own.junk: own.name}.items():
        if junk != "none" and any(getattr(t, junk) < 0 for t in (*queries, *gallery)):
            continue  # a folder without these labels: its builder refuses this protocol
        lost = unmatched(queries, gallery, junk)
        if lost:
            what = f"{len(lost)} of {len(queries)} queries have no match under {name}"
            names = tuple(triplet.name for triplet in lost)
            if len(lost) == len(queries) and name == own.name:
                yield Finding("error", what, REFUSED, names)
            else:
                does = "keeps them; evaluation skips and counts them"
                yield Finding("warning", what, does, names)


def _relatives(splits: dict[str, list[Triplet]], builder: TripletBuilder) -> Iterator[Finding]:
    """WMVeID863 contains MSVR310: its triplets of night digit 9 and scenes 0 to 30."""
    rule = "a model trained on one set may not be scored on the other"
    if builder.name == "msvr310":
        yield Finding("warning", f"WMVeID863 contains MSVR310: {rule}", USED)
    if builder.name == "wmveid863" and builder.builder_config.name != "rendered":
        shared = {
            split: sum(t.night == 9 and 0 <= t.scene <= 30 for t in found)
            for split, found in splits.items()
        }
        if any(shared.values()):
            counts = ", ".join(f"{count} of {split}" for split, count in shared.items())
            yield Finding("warning", f"{counts} are triplets of MSVR310: {rule}", USED)


def _numbers(found: list[Triplet], pixels: dict[str, Pixels]) -> dict:
    """Counts of one split, and its flare shares by the rules of the paper and of the release."""
    samples = collections.Counter(triplet.identity for triplet in found)
    cameras = collections.Counter(triplet.camera for triplet in found)
    rows = []
    for triplet in found:
        bands = [band for file in triplet.files for band in pixels[file].bands]
        if len(bands) == 3:
            rows.append(bands[:2])
    seen = np.float32(rows).reshape(-1, 2, 2)
    luma, histogram = (
        flare.labels(
            seen[..., 0], seen[..., 1], statistic=name, rule="per_modality", threshold=threshold
        )
        for name, threshold in (("luma", 0.05), ("histogram", 0.095))
    )
    counts = list(samples.values()) or [0]
    return {
        "triplets": len(found),
        "identities": len(samples),
        "samples_per_identity": [min(counts), statistics.median(counts), max(counts)],
        "samples_per_camera": {str(camera): cameras[camera] for camera in sorted(cameras)},
        "flare_luma": [float(share) for share in luma.sum(axis=0) / max(len(rows), 1)],
        "flare_histogram": [float(share) for share in histogram.sum(axis=0) / max(len(rows), 1)],
    }
