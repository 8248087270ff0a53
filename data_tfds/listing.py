"""From the files of a source to its samples: pairing by file name, and what is wrong with it."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping

from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE, Sample
from data_tfds.source import Source

LARGEST = 2**31 - 1
"""The largest identity, camera or scene: they are stored as int32."""


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a file name says; -1 where it does not say."""

    identity: str = ""  # as written; "": the name does not say
    camera: int = -1
    scene: int = -1
    view: int = -1
    night: int = -1


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a data set names its files."""

    parse: Callable[[str], Parsed | None]  # None where a name does not follow the pattern
    pattern: str  # an example and its parts, for messages


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong with a source, told as a sentence without its full stop."""

    kind: str  # "empty", "identity", "name", "incomplete", "stray"
    name: str  # the split and the file name, or the path
    text: str
    usable: bool = True  # of "incomplete": whether what is there of the sample can be kept


@dataclasses.dataclass
class Listing:
    """The samples of each split, and every problem met on the way.

    `settle` brings it to its end: then `splits` holds the samples to prepare, sorted by identity
    and name. `images` are the files of all samples, incomplete and misnamed ones included, with
    the modality of each ("" where one file holds all modalities).
    """

    modalities: tuple[str, ...]
    splits: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    images: dict[str, str] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)  # split -> where it lies
    names_as_identities: bool = False  # whether identities may be other than whole numbers
    may_be_unpaired: bool = False  # whether each image may be a sample of its own

    @property
    def unpaired(self) -> bool:
        """Whether each image is a sample of its own, as in visible-infrared sets.

        So it is where the data set allows it, there are images of several modalities, and no two of
        them are of one sample.
        """
        samples = [each for split in self.splits.values() for each in split]
        there = {tuple(map(bool, each.files)) for each in samples}
        return self.may_be_unpaired and len(there) > 1 and all(sum(each) == 1 for each in there)

    def add(self, kind: str, name: str, text: str, usable: bool = True) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, name, text, usable))

    def close(self, split: str, samples: Iterable[Sample], place: str) -> None:
        """Take the samples of a split, complete or not, and where they come from, for messages."""
        self.splits[split] = list(samples)
        self.places[split] = place

    def settle(self, incomplete: str, place: str) -> None:
        """Number the identities, keep the samples that `incomplete` allows, note empty splits.

        `place` says in a message where the data set lies. Images that are samples of their own lack
        nothing.
        """
        self._number()
        if self.unpaired:
            incomplete = "keep"
            self.problems = [p for p in self.problems if not (p.kind == "incomplete" and p.usable)]
        for split, samples in self.splits.items():
            kept = [each for each in samples if each.complete or incomplete == "keep"]
            self.splits[split] = sorted(kept, key=lambda each: (each.identity, each.name))
            if not kept:
                text = f"{self.places[split]} holds no complete sample of images"
                self.add("empty", split, text)
        if not self.splits:
            self.add("empty", place, f"{place} holds no sample of any split")

    def _number(self) -> None:
        """Identities that all are whole numbers keep them; names get 0, 1, ... in sorted order."""
        names = sorted({each.identity_name for split in self.splits.values() for each in split})
        if self.names_as_identities and not all(name.isdecimal() for name in names):
            numbers = {name: number for number, name in enumerate(names)}
        else:
            numbers = {name: int(name) for name in names}
        for split, samples in self.splits.items():
            self.splits[split] = [
                dataclasses.replace(each, identity=numbers[each.identity_name]) for each in samples
            ]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the images of a split lie in its folder: `[<identity>/][<modality>/]<name>`.

    `folders` gives the folder of each modality; one entry {"": ""} means that one file holds all
    modalities. `spellings` are other names of these folders, in lower case.
    """

    folders: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {VISIBLE: "vis", NEAR_INFRARED: "ni", THERMAL: "th"}
    )
    identities: bool = True  # whether each identity has a folder
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)  # folder -> modality

    def locate(self, path: str) -> tuple[str, str, str] | None:
        """(identity folder, modality, name) of a path in the split's folder; None for others."""
        parts = path.split("/")
        identity = parts.pop(0) if self.identities and len(parts) > 1 else ""
        folder = parts.pop(0) if "" not in self.folders and len(parts) > 1 else ""
        modality = self.modality(folder)
        known = modality is not None and bool(identity) == self.identities
        return (identity, modality, parts[0]) if known and len(parts) == 1 else None

    def modality(self, folder: str) -> str | None:
        """The modality whose images a folder of this name holds; None for any other name."""
        own = {name: modality for modality, name in self.folders.items()}
        return own.get(folder, self.spellings.get(folder.lower()))

    def __str__(self) -> str:
        folders = f"{{{','.join(self.folders.values())}}}/" if "" not in self.folders else ""
        return f"{'<identity>/' * self.identities}{folders}<name>"


def read_split(
    listing: Listing,
    source: Source,
    split: str,
    folder: str,
    layout: Layout,
    naming: Naming,
    optional: bool = False,
) -> None:
    """Add the split that lies in `folder`; the images of a sample share their name.

    An `optional` split of which there is no file at all is left out of the listing.
    """
    found = collections.defaultdict(dict)  # (identity folder, name) -> {modality: path}
    folders = dict(layout.folders)  # as they are spelled here
    inside = sorted(path for path in source.files if path.startswith(f"{folder}/"))
    if optional and not inside:
        return
    for path in inside:
        place = layout.locate(path.removeprefix(f"{folder}/"))
        if place is None:
            listing.add("stray", path, f"{source.where(path)} is not at {folder}/{layout}")
            continue
        identity, modality, name = place
        other = found[identity, name].setdefault(modality, path)
        if other != path:
            text = f"{source.where(path)} and {source.where(other)} are the same image of a sample"
            listing.add("name", path, text)
        listing.images[path] = modality
        if modality:
            folders[modality] = path.split("/")[-2]
    wrong = _wrong_folders(listing, source, folder, sorted({identity for identity, _ in found}))
    samples = []
    for (identity, name), paths in sorted(found.items()):
        missing = [
            "/".join(filter(None, (folder, identity, folders[modality], name)))
            for modality in listing.modalities
            if not paths.get("", paths.get(modality))
        ]
        sample = None
        known = [] if missing else listing.problems  # what a name says matters first if complete
        if identity not in wrong:
            sample = _sample(listing, source, paths, identity, naming, known)
        if missing:  # WMVeID863 has a misnamed image without partners
            where = " and ".join(map(source.where, missing))
            verb = "is" if len(missing) == 1 else "are"
            text = f"{where} {verb} missing"
            listing.add("incomplete", f"{split}/{name}", text, usable=sample is not None)
        if sample is not None:
            samples.append(sample)
    listing.close(split, samples, source.where(folder))


def _sample(
    listing: Listing,
    source: Source,
    paths: dict[str, str],
    identity: str,
    naming: Naming,
    problems: list[Problem],
) -> Sample | None:
    """The sample of these files; None where the name cannot be used, which joins `problems`."""
    files = (paths[""],) if "" in paths else tuple(paths.get(m, "") for m in listing.modalities)
    first = next(filter(None, files))
    name = first.rpartition("/")[2]
    text = _misnamed(source.where(first), name, identity, naming)
    if text:
        problems.append(Problem("name", first, text))
        return None
    parsed = naming.parse(name)
    return Sample(
        name=name,
        identity_name=identity or parsed.identity,
        files=files,
        camera=parsed.camera,
        scene=parsed.scene,
        view=parsed.view,
        night=parsed.night,
    )


def _wrong_folders(
    listing: Listing, source: Source, folder: str, identities: list[str]
) -> set[str]:
    """Those of the identity folders that name no identity; problems go to the listing."""
    wrong, numbers = set(), {}
    named = listing.names_as_identities and not all(map(str.isdecimal, filter(None, identities)))
    for identity in filter(None, identities):
        where = source.where(f"{folder}/{identity}")
        text = wrong_identity(identity, listing.names_as_identities)
        if text:
            text = f"{where} is no identity folder: its name {text}"
        elif not named and int(identity) in numbers:
            other = source.where(f"{folder}/{numbers[int(identity)]}")
            text = f"{where} and {other} are folders of the same identity {int(identity)}"
        else:
            if not named:
                numbers[int(identity)] = identity
            continue
        wrong.add(identity)
        listing.add("identity", f"{folder}/{identity}", text)
    return wrong


def wrong_identity(identity: str, names: bool) -> str:
    """What is wrong with the name of an identity, "" where nothing is.

    It is a whole number that fits into int32; with `names` also any other text that can be read.
    """
    if identity.isdecimal():
        return (
            ""
            if len(identity) < 99 and int(identity) <= LARGEST
            else f"must be a number up to {LARGEST}"
        )
    if not names:
        return f"must be a number up to {LARGEST}"
    if not identity.strip() or not identity.isprintable():
        return "has characters that are no readable text"
    if identity[0] in "+-" and identity[1:].isdecimal():
        return f"must be a whole number from 0 to {LARGEST}, or a name"
    return ""


def _misnamed(where: str, name: str, identity: str, naming: Naming) -> str:
    """What is wrong with a file name, "" where nothing is."""
    if not name.isprintable():
        return f"{where} has characters in its name that are no readable text"
    parsed = naming.parse(name)
    if parsed is None:
        return f"{where} does not follow the naming {naming.pattern}"
    if max(int(parsed.identity or 0), *dataclasses.astuple(parsed)[1:]) > LARGEST:
        return f"{where} has a number in its name that is larger than {LARGEST}"
    if parsed.identity and identity and int(parsed.identity) != int(identity):
        return (
            f"{where} names identity {int(parsed.identity)} and lies in the folder of "
            f"identity {int(identity)}"
        )
    return ""
