"""The user's own data set: folders by identity, or a CSV table, without a line of code."""

import csv
import os
import pathlib
from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.builder import Config, TripletBuilder
from data_tfds.errors import UserError
from data_tfds.listing import LARGEST, Layout, Listing, Triplet, read_split
from data_tfds.names import FOLDER
from data_tfds.samples import Protocol
from data_tfds.source import Source, Stamp, Tree, printable

SPLITS = ("train", "query", "gallery")
COLUMNS = (
    *("split", "identity", "camera", "scene"),
    *("visible", "near_infrared", "thermal"),
)
INSTRUCTIONS = (
    "It is your own data: DIR/{train,query,gallery}/<identity>/{vis,ni,th}/<name>, the same name "
    "in the three folders, with _c1 or _v1 for camera 1 and _s12 for scene 12 in it; or a table "
    f"FILE.csv with the columns {','.join(COLUMNS)}. Without query the whole gallery queries."
)


class Folder(TripletBuilder):
    """`{train,query,gallery}/<identity>/{vis,ni,th}/<name>`, or a CSV file with a row a triplet."""

    name = "folder"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Triplets sorted by identity and name."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    DESCRIPTION = "Triplets of aligned images of the user's own."
    CITATION = ""
    FOLDERS = SPLITS
    GREY = True
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
        path = pathlib.Path(root).expanduser().absolute()
        if root.endswith(".csv") and path.is_file():
            return Table(path)
        return super().open(root)

    def listing(self, source: Source) -> Listing:
        """The splits as stored or tabled, with every label that the protocol needs."""
        listing = Listing()
        if isinstance(source, Table):
            _read_table(listing, source)
        else:
            for split in SPLITS:
                if split != "query" or any(path.startswith("query/") for path in source.files):
                    read_split(listing, source, split, split, Layout(), FOLDER)
        self._require(listing, source)
        return listing

    def _require(self, listing: Listing, source: Source) -> None:
        """Note where the protocol lacks what it ranks by."""
        junk = self.builder_config.protocol.junk
        if junk == "none":
            if "query" not in listing.splits:
                text = f"{source.root} has no split query, so that under folder/none each image "
                listing.add("name", "query", f"{text}would find itself; make one or use another")
            return
        for split in sorted(set(listing.splits) - {"train"}):
            for triplet in listing.splits[split]:
                if getattr(triplet, junk) < 0:
                    listing.add(
                        "name",
                        triplet.files[0],
                        f"{source.where(triplet.files[0])} has no {junk}, by which the protocol "
                        f"folder/{junk} tells junk; name it, or use folder/none",
                    )


class Table(Tree):
    """The files that a CSV file names, by path relative to its folder, and its rows."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path.parent, [path.name])
        self.table = path
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                self.columns = tuple(reader.fieldnames or ())
                self.rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is no CSV table in UTF-8: {error}.") from error
        if sorted(self.columns) != sorted(COLUMNS):
            has = printable(",".join(self.columns)) or "none"
            raise UserError(f"{path} has the columns {has} and must have {','.join(COLUMNS)}.")
        for row in self.rows:
            for file in filter(None, (row[band] for band in COLUMNS[4:])):
                if os.path.isfile(self.root / file):
                    stat = os.stat(self.root / file)
                    self.files[file] = Stamp(stat.st_size, stat.st_mtime_ns)


def _read_table(listing: Listing, source: Table) -> None:
    triplets = {split: {} for split in SPLITS}
    for number, row in enumerate(source.rows, start=2):
        where = f"{source.table} line {number}"
        triplet = _row(listing, source, row, where)
        if triplet is not None:
            split = triplets[row["split"]]
            if triplet.name in split:
                listing.add("name", where, f"{where} repeats {triplet.name} in its split")
            split[triplet.name] = triplet
    for split, found in triplets.items():
        if found or split != "query":
            listing.close(split, list(found.values()), f"the split {split} of {source.table}")


def _row(listing: Listing, source: Table, row: dict[str, str], where: str) -> Triplet | None:
    if None in row or None in row.values():  # as DictReader tells of too many and too few cells
        listing.add("name", where, f"{where} has not as many cells as the table has columns")
        return None
    if row["split"] not in SPLITS:
        split = printable(row["split"])
        text = f'{where} has the split "{split}", which must be one of {", ".join(SPLITS)}'
        listing.add("name", where, text)
        return None
    try:
        identity = int(row["identity"])
        labels = [int(row[label]) if row[label] else None for label in ("camera", "scene")]
        if not all(0 <= number <= LARGEST for number in (identity, *labels) if number is not None):
            raise ValueError
    except ValueError:
        text = f"{where} needs whole numbers from 0 to {LARGEST} as identity, camera and scene"
        listing.add("identity", where, f"{text} (camera and scene empty: not known)")
        return None
    camera, scene = (-1 if number is None else number for number in labels)
    files = tuple(row[band] for band in COLUMNS[4:])
    listing.images.extend(file for file in files if file in source.files)
    missing = [printable(file) or "an empty path" for file in files if file not in source.files]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        text = f"{' and '.join(missing)} of {where} {verb} missing"
        listing.add("incomplete", f"{row['split']}/{files[0]}", text)
        return None
    return Triplet(files[0], identity, camera, scene, -1, files)
