"""From the files of a source to its triplets: pairing by file name, and what is wrong with it."""

import collections
import dataclasses

from absl import logging

from data_tfds.names import Parser
from data_tfds.source import Source
from facenet_jax.types import UserError

BAND_FOLDERS = ("vis", "ni", "th")
"""The folders of the visible, near-infrared and thermal images of an identity."""

SHOWN = 20
"""How many file names one message lists before it only counts."""


@dataclasses.dataclass(frozen=True)
class Triplet:
    """One sample of a split: its labels and the source's paths of its three images.

    `files` has one path where a single file holds the three images side by side.
    """

    name: str
    identity: int
    camera: int
    scene: int
    night: int
    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong with a source, told as a sentence without its full stop."""

    kind: str  # "empty", "identity", "name", "incomplete", "stray"
    name: str  # the file name, or the folder
    text: str


@dataclasses.dataclass
class Listing:
    """The triplets of each split, sorted by identity and name, and every problem met on the way."""

    splits: dict[str, list[Triplet]] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def add(self, kind: str, name: str, text: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, name, text))

    def close(self, split: str, triplets: list[Triplet], folder: str) -> None:
        """Take the triplets of a split, sorted, and note where there are none."""
        self.splits[split] = sorted(triplets, key=lambda t: (t.identity, t.name))
        if not triplets:
            self.add("empty", folder, f"{folder} holds no complete triplet of images")


def read_banded(
    listing: Listing, source: Source, split: str, folder: str, parse: Parser, pattern: str
) -> None:
    """Add a split whose files lie in `folder/<identity>/{vis,ni,th}/<name>` to the listing.

    The three images of a triplet have the same name. `pattern` describes a name in messages.
    """
    bands = collections.defaultdict(set)  # (identity folder, name) -> bands it exists in
    for path in source.files:
        if not path.startswith(f"{folder}/"):
            continue
        parts = path[len(folder) + 1 :].split("/")
        if len(parts) == 3 and parts[1] in BAND_FOLDERS:
            bands[parts[0], parts[2]].add(parts[1])
        else:
            listing.add(
                "stray", path, f"{source.where(path)} is not at <identity>/vis, ni or th/<name>"
            )
    for identity in sorted({identity for identity, _ in bands}):
        if not identity.isdecimal():
            where = source.where(f"{folder}/{identity}")
            listing.add("identity", identity, f"{where} is no identity: its name must be a number")
    triplets = []
    for (identity, name), present in sorted(bands.items()):
        paths = {band: f"{folder}/{identity}/{band}/{name}" for band in BAND_FOLDERS}
        if identity.isdecimal() and _named(listing, source, paths, int(identity), parse, pattern):
            missing = [band for band in BAND_FOLDERS if band not in present]
            if missing:
                where = " and ".join(source.where(paths[band]) for band in missing)
                listing.add("incomplete", f"{split}/{name}", f"{where} is missing")
            else:
                parsed = parse(name)
                triplets.append(
                    Triplet(
                        name=name,
                        identity=int(identity),
                        camera=parsed.camera,
                        scene=parsed.scene,
                        night=parsed.night,
                        files=tuple(paths.values()),
                    )
                )
    listing.close(split, triplets, source.where(folder))


def _named(listing, source, paths: dict[str, str], identity: int, parse, pattern: str) -> bool:
    """Whether the name parses and agrees with the identity folder; problems go to the listing."""
    path = next(path for path in paths.values() if path in source.files)
    name = path.rsplit("/", 1)[1]
    parsed = parse(name)
    if parsed is None:
        text = f"{source.where(path)} does not follow the naming {pattern}"
        listing.add("name", name, text)
    elif parsed.identity != identity:
        listing.add(
            "name",
            name,
            f"{source.where(path)} names identity {parsed.identity} and lies in the folder of "
            f"identity {identity}",
        )
    return parsed is not None and parsed.identity == identity


def accept(listing: Listing, incomplete: str, dataset: str) -> dict[str, list[Triplet]]:
    """The triplets to prepare: all complete ones of a sound listing.

    Files that belong to no triplet are left out with one warning. Incomplete triplets are an error,
    or are left out with one warning where `incomplete` is "skip". Every other problem is a
    UserError that tells the first one and counts the rest.
    """
    if incomplete not in ("error", "skip"):
        raise UserError(f'data.incomplete is "{incomplete}" and must be "error" or "skip".')
    by_kind = collections.defaultdict(list)
    for problem in listing.problems:
        by_kind[problem.kind].append(problem)
    if by_kind["stray"]:
        logging.warning(
            "%s: %d files that belong to no triplet are left out: %s",
            dataset,
            len(by_kind["stray"]),
            _some(by_kind["stray"]),
        )
    for kind in ("identity", "name"):
        _refuse(by_kind[kind], "; rename or remove it")
    if incomplete == "error":
        _refuse(
            by_kind["incomplete"],
            "; add the file, or leave such triplets out with --config.data.incomplete=skip",
        )
    elif by_kind["incomplete"]:
        logging.warning(
            "%s: %d incomplete triplets are left out: %s",
            dataset,
            len(by_kind["incomplete"]),
            _some(by_kind["incomplete"]),
        )
    _refuse(by_kind["empty"], "; check that the archive was unpacked whole")
    return listing.splits


def _refuse(problems: list[Problem], advice: str) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0].text}{more}{advice}.")


def _some(problems: list[Problem]) -> str:
    names = sorted(problem.name for problem in problems)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
