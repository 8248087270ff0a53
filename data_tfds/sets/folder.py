"""The user's own data set: folders by identity, or a CSV table, without a line of code."""

import csv
import os
import pathlib
import re
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.accept import sides
from data_tfds.builder import Config, SampleBuilder
from data_tfds.errors import UserError, printable
from data_tfds.listing import (
    LARGEST,
    Layout,
    Listing,
    Naming,
    Parsed,
    read_split,
    wrong_identity,
)
from data_tfds.paths import local_path
from data_tfds.samples import (
    INFRARED,
    MODALITIES,
    NEAR_INFRARED,
    THERMAL,
    VISIBLE,
    Protocol,
    Sample,
)
from data_tfds.source import Source, Stamp, Tree

SPELLINGS = {
    **dict.fromkeys(("vis", "visible", "rgb"), VISIBLE),
    **dict.fromkeys(("ni", "nir", "near_infrared"), NEAR_INFRARED),
    **dict.fromkeys(("th", "tir", "thermal"), THERMAL),
    **dict.fromkeys(("ir", "infrared"), INFRARED),
}
"""Names of the folders and of the columns that hold the images of a modality, in lower case."""

FOLDER_OF = {VISIBLE: "vis", NEAR_INFRARED: "ni", THERMAL: "th", INFRARED: "ir"}
"""The folder a modality is looked for in where none is there yet."""

LABEL_COLUMNS = ("camera", "scene", "view")
COLUMNS = ("split", "identity", "camera", "scene", VISIBLE, NEAR_INFRARED, THERMAL)
"""The columns of a table of three modalities; `view` may join them."""

INSTRUCTIONS = (
    "It is your own data: DIR/{train,query,gallery}/<identity>/{vis,ni,th}/<name>, any of the "
    "folders vis, ni, th and ir, the same name for the images of one sample, with _c1 or _v1 for "
    "camera or view 1 and _s12 for scene 12 in it (where no two images share a name, each is a "
    "sample of its own); or a table FILE.csv with the columns "
    f"{','.join(COLUMNS)} (or those modalities that you have). Without query the whole gallery "
    "queries."
)


def _parse(name: str) -> Parsed:
    """Camera `_c3`, view `_v3` and scene `_s012` of a name, where it has them."""
    fields = name.rpartition(".")[0].lower().split("_")
    found = {field[0]: int(field[1:]) for field in fields if re.fullmatch(r"[cvs]\d+", field)}
    view = found.get("v", -1)
    return Parsed(camera=found.get("c", view), scene=found.get("s", -1), view=view)


NAMING = Naming(_parse, "anything_c1_s12.png (camera or view, scene)")


class Folder(SampleBuilder):
    """`{train,query,gallery}/<identity>/{vis,ni,th,ir}/<name>`, or a CSV file with a row a sample.

    A data set with a protocol of its own derives from this class and gives its BUILDER_CONFIGS.
    """

    name = "folder"
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "Samples sorted by identity and name.",
        "2.0.0": "Any modalities, also missing ones; identities that are names; the label view.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    DESCRIPTION = "Images of the user's own, in one or more modalities."
    CITATION = ""
    SPLITS: tuple[str, ...] = ("train", "query", "gallery")
    FOLDERS = SPLITS
    MODALITIES = ()
    GREY = True
    NAMES_AS_IDENTITIES = True
    NEEDS_PROTOCOL = True
    MAY_BE_UNPAIRED = True
    BUILDER_CONFIGS: ClassVar = [
        Config(
            name=junk,
            description=f"Junk: {rule}.",
            protocol=Protocol(f"folder/{junk}", junk),
            instructions=INSTRUCTIONS,
        )
        for junk, rule in (
            ("camera", "the query's identity under the query's camera"),
            ("scene", "the query's identity in the query's scene"),
            ("none", "nothing"),
        )
    ]

    def open(self, root: str) -> Source:
        """The files below `root`, or those a CSV file names."""
        path = local_path(root, "data.root")
        if root.endswith(".csv") and path.is_file():
            return Table(path)
        return super().open(root)

    def find_modalities(self, source: Source) -> tuple[str, ...]:
        """Those whose folders are there, or whose columns the table has."""
        if isinstance(source, Table):
            return tuple(m for m in MODALITIES if m in source.columns.values())
        layout = _layout(())
        placed = (
            layout.locate(path.removeprefix(f"{split}/"))
            for split in self.SPLITS
            for path in source.files
            if path.startswith(f"{split}/")
        )
        found = {place[1] for place in placed if place is not None}
        if not found:
            raise UserError(
                f"{source.root} has no image at {{{','.join(self.SPLITS)}}}/{layout}; arrange its "
                "files in that way, or list them in a table FILE.csv."
            )
        return tuple(modality for modality in MODALITIES if modality in found)

    def read(self, listing: Listing, source: Source) -> None:
        """The splits that are stored or tabled, with every label that the protocol needs."""
        if isinstance(source, Table):
            _read_table(listing, source, self.SPLITS)
        else:
            for split in self.SPLITS:
                layout = _layout(listing.modalities)
                read_split(listing, source, split, split, layout, NAMING, optional=True)
        self._require(listing, source)

    def remarks(self, splits: dict[str, list[Sample]]) -> Iterator[str]:
        """That no images belong together, which may be meant, or a matter of names."""
        if Listing(self.modalities, splits, may_be_unpaired=True).unpaired:
            yield (
                "no two images belong together (have the same name, or stand in one row), so each "
                "is a sample of its own, as in visible-infrared sets"
            )

    def _require(self, listing: Listing, source: Source) -> None:
        """Note where the protocol lacks what it ranks by."""
        protocol = self.builder_config.protocol
        keep = self.incomplete == "keep" or listing.unpaired
        usable = {
            split: [each for each in samples if keep or each.complete]
            for split, samples in listing.splits.items()
        }
        queries, gallery = sides(usable, protocol, listing.modalities)
        if protocol.junk == "none":
            if queries and queries == gallery:
                text = f"{source.root} has no split query, so that under {protocol.name} each image"
                text = f"{text} would find itself; make one or use another protocol"
                listing.add("name", "query", text)
            return
        for sample in {id(each): each for each in (*gallery, *queries)}.values():
            if getattr(sample, protocol.junk) < 0:
                file = next(filter(None, sample.files))
                listing.add(
                    "name",
                    file,
                    f"{source.where(file)} has no {protocol.junk}, by which the protocol "
                    f"{protocol.name} tells junk; name it, or use folder/none",
                )


BUILDER = Folder


def _layout(modalities: tuple[str, ...]) -> Layout:
    folders = {modality: FOLDER_OF[modality] for modality in modalities or MODALITIES}
    return Layout(folders, spellings=SPELLINGS)


class Table(Tree):
    """The files that a CSV file names, by path relative to its folder, and its rows.

    `columns` gives for each column of the file what it holds: a label or a modality.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__(path.parent, [path.name])
        self.table = path
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                header = tuple(reader.fieldnames or ())
                self.rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is no CSV table in UTF-8: {error}.") from error
        own = {name: name for name in ("split", "identity", *LABEL_COLUMNS)}
        self.columns = {name: own.get(name, SPELLINGS.get(name.lower())) for name in header}
        self._check(header)
        self._stamp()

    def _check(self, header: tuple[str, ...]) -> None:
        known = list(self.columns.values())
        twice = len(set(known)) < len(known) or len(self.columns) < len(header)
        sound = {"split", "identity"} <= set(known) and set(known) & set(MODALITIES)
        if None in known or twice or not sound:
            has = printable(",".join(header)) or "none"
            raise UserError(
                f"{self.table} has the columns {has} and must have split,identity and any of "
                f"{','.join(LABEL_COLUMNS)}, and one or more of {','.join(MODALITIES)}, each once."
            )

    def _stamp(self) -> None:
        """Note the version of every file that a row names."""
        images = [column for column, held in self.columns.items() if held in MODALITIES]
        for row in self.rows:
            for file in filter(None, (row[column] for column in images)):
                if os.path.isfile(self.root / file):
                    stat = os.stat(self.root / file)
                    self.files[file] = Stamp(stat.st_size, stat.st_mtime_ns)


def _read_table(listing: Listing, source: Table, splits: tuple[str, ...]) -> None:
    samples = {split: {} for split in splits}
    for number, cells in enumerate(source.rows, start=2):
        where = f"{source.table} line {number}"
        if None in cells or None in cells.values():  # so DictReader gives too many and too few
            listing.add("name", where, f"{where} has not as many cells as the table has columns")
            continue
        row = {source.columns[column]: cell for column, cell in cells.items()}
        sample = _row(listing, source, row, where, splits)
        if sample is not None:
            split = samples[row["split"]]
            if sample.name in split:
                listing.add("name", where, f"{where} repeats {sample.name} in its split")
            split[sample.name] = sample
    if not source.rows:
        listing.add("name", str(source.table), f"{source.table} has no row below its header")
    for split, found in samples.items():
        if found:
            listing.close(split, found.values(), f"the split {split} of {source.table}")


def _row(
    listing: Listing, source: Table, row: dict[str, str], where: str, splits: tuple[str, ...]
) -> Sample | None:
    if row["split"] not in splits:
        split = printable(row["split"])
        text = f'{where} has the split "{split}", which must be one of {", ".join(splits)}'
        listing.add("name", where, text)
        return None
    wrong = wrong_identity(row["identity"], names=True)
    if wrong:
        text = f'{where} has the identity "{printable(row["identity"])}", which {wrong}'
        listing.add("identity", where, text)
        return None
    labels = {label: row.get(label, "") for label in LABEL_COLUMNS}
    if not all(not cell or (cell.isdecimal() and int(cell) <= LARGEST) for cell in labels.values()):
        text = f"{where} needs whole numbers from 0 to {LARGEST} as camera, scene and view"
        listing.add("name", where, f"{text} (empty: not known)")
        return None
    named = {modality: row[modality] for modality in listing.modalities}
    there = {m: file for m, file in named.items() if file in source.files}
    listing.images.update({file: modality for modality, file in there.items()})
    missing = [printable(file) or "an empty path" for m, file in named.items() if m not in there]
    first = next(iter(there.values()), "")
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        text = f"{' and '.join(missing)} of {where} {verb} missing"
        listing.add("incomplete", f"{row['split']}/{first}", text, usable=bool(first))
    if not first:
        return None
    return Sample(
        name=first,
        identity_name=row["identity"],
        files=tuple(there.get(modality, "") for modality in listing.modalities),
        **{label: int(cell) if cell else -1 for label, cell in labels.items()},
    )
