"""The samples of a folder of images: which files belong together, and what their names say."""

import csv
import dataclasses
import pathlib
import zlib
from collections.abc import Mapping, Sequence

from PIL import Image

from data_tfds.errors import UserError
from data_tfds.sets.folder import NAMING, SPELLINGS

NUMBERS = ("camera", "scene", "view")
"""Labels that are whole numbers, -1 where they are not known."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images of one vehicle at one instant."""

    name: str  # the path within the folder, without the folder of the modality and the ending
    files: Mapping[str, pathlib.Path]  # {modality: file}
    labels: Mapping[str, str | int]

    def stamp(self) -> str:
        """Size and time of change of each file and the labels: another stamp, another content."""
        stats = [(modality, path.stat()) for modality, path in sorted(self.files.items())]
        words = [f"{m}:{stat.st_size}:{stat.st_mtime_ns}" for m, stat in stats]
        return ";".join([*words, *(f"{k}={v}" for k, v in sorted(self.labels.items()))])


def samples(
    folder: pathlib.Path,
    modality: str | None = None,
    table: pathlib.Path | None = None,
    part: tuple[int, int] = (1, 1),
) -> list[Sample]:
    """The samples below a folder, sorted by name.

    A folder vis, ni, th or ir anywhere on the way to an image says its modality, else `modality`
    does. Images whose paths are the same without that folder and the ending are one sample, which
    may lack modalities. The folder that an image then lies in is its identity; camera, view and
    scene stand in its name as _c1, _v1, _s12. A `table` (CSV with the column name) gives or
    replaces labels. `part` (i, n) is one of n parts, by the name. UserError for a folder without
    images, an image of no known modality, two files for one image, and a table that does not fit.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", 2)
    known, files = Image.registered_extensions(), {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in known or path.name.startswith(".") or not path.is_file():
            continue
        name, of = _named(folder, path, modality)
        if not is_in_part(name, part):
            continue
        here = files.setdefault(name, {})
        if of in here:
            raise UserError(
                f"{here[of]} and {path} are both the {of} image of {name}; rename or remove one."
            )
        here[of] = path.resolve()
    if not files and part[1] == 1:
        raise UserError(f"{folder} holds no image.", 2)
    told = _read_table(table) if table else {}
    unknown = sorted(set(told) - set(files)) if part[1] == 1 else []
    if unknown:
        raise UserError(
            f"{table} names {unknown[0]}, which is no sample of {folder}; the samples are named "
            f"like {next(iter(files))}."
        )
    return [Sample(name, files[name], _labels(name) | told.get(name, {})) for name in sorted(files)]


def is_in_part(name: str, part: tuple[int, int]) -> bool:
    """Whether a name belongs to part i of n: by its checksum, so everywhere the same."""
    return zlib.crc32(name.encode()) % part[1] == part[0] - 1


def _named(folder: pathlib.Path, path: pathlib.Path, modality: str | None) -> tuple[str, str]:
    """(name, modality) of an image."""
    inside = path.relative_to(folder).with_suffix("").parts
    told = [i for i, each in enumerate(inside[:-1]) if each.lower() in SPELLINGS]
    if told:
        last = told[-1]
        return "/".join(inside[:last] + inside[last + 1 :]), SPELLINGS[inside[last].lower()]
    if modality is None:
        raise UserError(
            f"{path} lies in no folder vis, ni, th or ir, so its modality is not known; give "
            "--modality visible, near_infrared, thermal or infrared.",
            2,
        )
    return "/".join(inside), SPELLINGS.get(modality.lower(), modality)


def _labels(name: str) -> dict[str, str | int]:
    """What a name says."""
    way = name.split("/")
    said = NAMING.parse(f"{way[-1]}.")
    numbers = {label: getattr(said, label) for label in NUMBERS}
    return {"identity": way[-2] if len(way) > 1 else "", **numbers}


def _read_table(path: pathlib.Path) -> dict[str, dict[str, str | int]]:
    """{name: labels} of a CSV file. UserError where it cannot be read or has no column name."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            head, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labels {path} cannot be read ({error}).") from error
    if "name" not in head or any(not each.isidentifier() for each in head):
        raise UserError(
            f"--labels {path} has the columns {','.join(head) or '(none)'}; it needs name, and the "
            "others must be words of letters, digits and _."
        )
    found = {}
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path} line {line} has not as many cells as the table has columns.")
        if row["name"] in found:
            raise UserError(f"{path} line {line} repeats the name {row['name']}.")
        cells = {k: _cell(path, line, k, x) for k, x in row.items() if k != "name"}
        found[row["name"]] = cells
    return found


def _cell(path: pathlib.Path, line: int, label: str, text: str) -> str | int:
    """A label of a table: a whole number where the label is one."""
    if label not in NUMBERS:
        return text
    if text and not text.isdecimal():
        raise UserError(f"{path} line {line} has the {label} {text!r}, not a whole number.")
    return int(text) if text else -1


def labels_beyond(found: Sequence[Sample]) -> list[str]:
    """Labels of samples beside identity and the NUMBERS, sorted."""
    return sorted({label for each in found for label in each.labels} - {"identity", *NUMBERS})
