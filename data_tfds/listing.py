"""From the files of a source to its triplets: pairing by file name, and what is wrong with it."""

import collections
import dataclasses

from absl import logging

from data_tfds.errors import UserError
from data_tfds.names import Naming
from data_tfds.source import Source

SHOWN = 20
"""How many file names one message lists before it only counts."""


LARGEST = 2**31 - 1
"""The largest identity, camera or scene: they are stored as int32."""


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
    name: str  # the split and the file name, or the path
    text: str


@dataclasses.dataclass
class Listing:
    """The triplets of each split, sorted by identity and name, and every problem met on the way.

    `images` are the files of all triplets, incomplete and misnamed ones included.
    """

    splits: dict[str, list[Triplet]] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    images: list[str] = dataclasses.field(default_factory=list)

    def add(self, kind: str, name: str, text: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, name, text))

    def close(self, split: str, triplets: list[Triplet], folder: str) -> None:
        """Take the triplets of a split, sorted, and note where there are none."""
        self.splits[split] = sorted(triplets, key=lambda t: (t.identity, t.name))
        if not triplets:
            self.add("empty", split, f"{folder} holds no complete triplet of images")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the images of a split lie in its folder: `[<identity>/]<band>/<name>`."""

    bands: tuple[str, ...] = ("vis", "ni", "th")  # ("",): one file holds all three
    identities: bool = True  # whether each identity has a folder

    def locate(self, path: str) -> tuple[str, str, str] | None:
        """(identity folder, band, name) of a path in the split's folder; None for other files."""
        parts = path.split("/")
        identity = parts.pop(0) if self.identities and len(parts) > 1 else ""
        band = parts.pop(0) if self.bands != ("",) and len(parts) > 1 else ""
        known = band in self.bands and bool(identity) == self.identities
        return (identity, band, parts[0]) if known and len(parts) == 1 else None

    def path(self, folder: str, identity: str, band: str, name: str) -> str:
        """The inverse of `locate`, with the split's folder before it."""
        return "/".join(filter(None, (folder, identity, band, name)))

    def __str__(self) -> str:
        bands = f"{{{','.join(self.bands)}}}/" if self.bands != ("",) else ""
        return f"{'<identity>/' * self.identities}{bands}<name>"


def read_split(
    listing: Listing, source: Source, split: str, folder: str, layout: Layout, naming: Naming
) -> None:
    """Add the split that lies in `folder` to the listing; the images of a triplet share a name."""
    bands = collections.defaultdict(set)  # (identity folder, name) -> bands it exists in
    for path in source.files:
        if path.startswith(f"{folder}/"):
            found = layout.locate(path.removeprefix(f"{folder}/"))
            if found is None:
                text = f"{source.where(path)} is not at {folder}/{layout}"
                listing.add("stray", path, text)
            else:
                bands[found[0], found[2]].add(found[1])
                listing.images.append(path)
    wrong = _wrong_folders(listing, source, folder, sorted({identity for identity, _ in bands}))
    triplets = []
    for (identity, name), present in sorted(bands.items()):
        paths = [layout.path(folder, identity, band, name) for band in layout.bands]
        missing = [
            path for path, band in zip(paths, layout.bands, strict=True) if band not in present
        ]
        if missing:  # before the name is looked at: WMVeID863 has a misnamed image without partners
            where = " and ".join(map(source.where, missing))
            verb = "is" if len(missing) == 1 else "are"
            listing.add("incomplete", f"{split}/{name}", f"{where} {verb} missing")
        elif identity not in wrong and _named(listing, source, paths[0], identity, naming):
            parsed = naming.parse(name)
            number = int(identity) if identity else parsed.identity
            triplets.append(
                Triplet(name, number, parsed.camera, parsed.scene, parsed.night, tuple(paths))
            )
    listing.close(split, triplets, source.where(folder))


def _wrong_folders(
    listing: Listing, source: Source, folder: str, identities: list[str]
) -> set[str]:
    """Those of the identity folders that name no identity; problems go to the listing."""
    wrong, numbers = set(), {}
    for identity in filter(None, identities):
        where = source.where(f"{folder}/{identity}")
        if not identity.isdecimal() or int(identity) > LARGEST:
            text = f"{where} is no identity folder: its name must be a number up to {LARGEST}"
        elif int(identity) in numbers:
            other = source.where(f"{folder}/{numbers[int(identity)]}")
            text = f"{where} and {other} are folders of the same identity {int(identity)}"
        else:
            numbers[int(identity)] = identity
            continue
        wrong.add(identity)
        listing.add("identity", f"{folder}/{identity}", text)
    return wrong


def _named(listing: Listing, source: Source, path: str, identity: str, naming: Naming) -> bool:
    """Whether the name parses and agrees with the identity folder; problems go to the listing."""
    name = path.rpartition("/")[2]
    if not name.isprintable():
        text = f"{source.where(path)} has characters in its name that are no readable text"
        listing.add("name", path, text)
        return False
    parsed = naming.parse(name)
    if parsed is not None and max(dataclasses.astuple(parsed)) > LARGEST:
        text = f"{source.where(path)} has a number in its name that is larger than {LARGEST}"
        listing.add("name", path, text)
        return False
    if parsed is None:
        text = f"{source.where(path)} does not follow the naming {naming.pattern}"
        listing.add("name", path, text)
        return False
    if identity and parsed.identity not in (-1, int(identity)):
        listing.add(
            "name",
            path,
            f"{source.where(path)} names identity {parsed.identity} and lies in the folder of "
            f"identity {int(identity)}",
        )
        return False
    return True


def accept(listing: Listing, incomplete: str, dataset: str) -> dict[str, list[Triplet]]:
    """The triplets to prepare: all complete ones of a sound listing.

    Files that belong to no triplet are left out with one warning. Incomplete triplets are an error,
    or are left out with one warning where `incomplete` is "skip". Every other problem is a
    UserError that tells the first one and counts the rest.
    """
    check_incomplete(incomplete)
    by_kind = collections.defaultdict(list)
    for problem in listing.problems:
        by_kind[problem.kind].append(problem)
    _leave_out(by_kind["stray"], "files that belong to no triplet", dataset)
    for kind in ("identity", "name"):
        _refuse(by_kind[kind], "; mend or remove it")
    if incomplete == "error":
        _refuse(
            by_kind["incomplete"],
            "; add the file, or leave such triplets out with --config.data.incomplete=skip",
        )
    _leave_out(by_kind["incomplete"], "incomplete triplets", dataset)
    _refuse(by_kind["empty"], "; check that the archive was unpacked whole")
    return listing.splits


def check_incomplete(incomplete: str) -> None:
    """UserError unless `incomplete` is "error" or "skip"."""
    if incomplete not in ("error", "skip"):
        raise UserError(f'data.incomplete is "{incomplete}" and must be "error" or "skip".')


def unmatched(queries: list[Triplet], gallery: list[Triplet], junk: str) -> list[Triplet]:
    """The queries whose identity the gallery lacks, or has as `junk` ("camera", "scene") only."""
    matches = collections.Counter(triplet.identity for triplet in gallery)
    if junk == "none":
        return [t for t in queries if not matches[t.identity]]
    same = collections.Counter((t.identity, getattr(t, junk)) for t in gallery)
    return [t for t in queries if matches[t.identity] == same[t.identity, getattr(t, junk)]]


def _refuse(problems: list[Problem], advice: str) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0].text}{more}{advice}.")


def _leave_out(problems: list[Problem], what: str, dataset: str) -> None:
    if problems:
        names = some(problem.name for problem in problems)
        logging.warning("%s: %d %s are left out: %s", dataset, len(problems), what, names)


def some(names) -> str:
    """The first names of a sorted list, and how many more there are."""
    names = sorted(map(str, names))
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
