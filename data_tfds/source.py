"""Where the files of a data set come from: an extracted tree, or the zip archive as downloaded."""

# Not fsspec: its local file system calls linked folders, pipes and dangling links all "other" and
# does not enter the first, which data sets have; its zip one only wraps zipfile.

import collections
import dataclasses
import hashlib
import lzma
import os
import pathlib
import stat
import zipfile
import zlib
from collections.abc import Sequence
from typing import Protocol

from data_tfds.errors import UserError, printable
from data_tfds.limits import Limits
from data_tfds.paths import is_remote, local_path

BROKEN = (
    *(OSError, EOFError, RuntimeError, ValueError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What zipfile raises for an archive that is damaged, encrypted or packed in an unknown way."""


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What tells one version of a file from another: size in bytes, and mtime in ns or CRC."""

    size: int
    time_or_crc: int


class Source(Protocol):
    """The files of one data set, by path relative to the folder its splits lie in."""

    root: pathlib.Path
    files: dict[str, Stamp]
    most_bytes: int  # larger files are not read

    def read(self, path: str) -> bytes:
        """Content of one file; safe to call from several threads."""

    def where(self, path: str) -> str:
        """The place of a file in words that a user can act on."""


def open_source(root: str, folders: Sequence[str]) -> Source | None:
    """The files below `folders` of a tree or a .zip file, or None where there are none.

    The folders may lie in `root` itself or in one folder inside it, as archives often have it.
    Hidden files are no part of a data set. Raises UserError for a broken archive or for two
    folders that both look like the data set.
    """
    if is_remote(root):
        raise UserError(
            f"{root} is not on this machine, and training fetches nothing but a .zip on a bucket "
            f"(gs://...) by itself; copy it with gcloud storage cp -r {root} DIR, then give DIR."
        )
    path = local_path(root, "data.root")
    if not root or not path.exists():
        return None
    if path.is_file():
        return _Archive.open(path, folders)
    if not path.is_dir():
        raise UserError(f"data.root is {path}, which is neither a folder nor a file.")
    children = [child.name for child in path.iterdir() if child.is_dir() and _visible(child.name)]
    base = _base(path, ["", *children], lambda at: any((path / at / f).exists() for f in folders))
    return None if base is None else Tree(path / base, folders)


def fingerprint(source: Source, *facts: str) -> str:
    """16 hex digits that change with the source's place, with any of its files, or with `facts`."""
    digest = hashlib.sha256("\0".join([*facts, str(source.root)]).encode())
    for path, stamp in sorted(source.files.items()):
        fields = f"\n{path}\0{stamp.size}\0{stamp.time_or_crc}"
        digest.update(fields.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


MOST_WAYS = 16
"""By so many paths, by links, a folder may be reached: each of them is a part of the data set."""


class Tree:
    """Files on disk."""

    most_bytes = Limits.file_bytes

    def __init__(self, root: pathlib.Path, folders: Sequence[str]):
        self.root = root
        self.files = {}
        self._ways = collections.Counter()  # how often each folder was entered
        self._inside: list[tuple[int, int]] = []  # the folders that are being looked through
        for folder in folders:
            self._scan(folder)

    def _scan(self, folder: str) -> None:
        if (self.root / folder).is_file():
            self._add(folder, (self.root / folder).stat())
        elif (self.root / folder).is_dir():
            self._enter(folder)
            with os.scandir(self.root / folder) as entries:
                for entry in filter(lambda entry: _visible(entry.name), entries):
                    found = _stat(entry)
                    if stat.S_ISDIR(found.st_mode):
                        self._scan(f"{folder}/{entry.name}")
                    else:
                        self._add(f"{folder}/{entry.name}", found)
            self._inside.pop()

    def _enter(self, folder: str) -> None:
        """Note that a folder is looked through; a UserError where links lead to it without end."""
        found = (self.root / folder).stat()
        key = (found.st_dev, found.st_ino)
        if key in self._inside:
            raise UserError(
                f"{self.where(folder)} is by a link a folder that it lies in; remove the link."
            )
        self._ways[key] += 1
        if self._ways[key] > MOST_WAYS:
            raise UserError(
                f"More than {MOST_WAYS} paths, by links, lead to the folder {self.where(folder)}; "
                "remove some of the links."
            )
        self._inside.append(key)

    def _add(self, path: str, found: os.stat_result) -> None:
        self.files[path] = Stamp(found.st_size, found.st_mtime_ns)

    def read(self, path: str) -> bytes:
        """Content of one file."""
        _refuse_large(self, path)
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise UserError(f"{self.where(path)} cannot be read: {error.strerror}.") from error

    def where(self, path: str) -> str:
        """The path itself."""
        return printable(str(self.root / path))


class _Archive:
    most_bytes = Limits.file_bytes

    @classmethod
    def open(cls, path: pathlib.Path, folders: Sequence[str]) -> "_Archive | None":
        try:
            archive = zipfile.ZipFile(path)
        except BROKEN as error:
            raise UserError(
                f"{path} is neither a folder nor a whole zip archive ({error}); "
                "download it again, or unpack it and give the folder."
            ) from error
        names = [
            info.filename for info in archive.infolist() if info.filename[-1:] not in ("", "/")
        ]
        tops = sorted({name.split("/")[0] for name in names if name.count("/")})

        def holds(at: str) -> bool:
            starts = tuple(f"{at}/{folder}/".lstrip("/") for folder in folders)
            return any(name.startswith(starts) for name in names)

        base = _base(path, ["", *filter(_visible, tops)], holds)
        return None if base is None else cls(path, archive, base, folders)

    def __init__(
        self, path: pathlib.Path, archive: zipfile.ZipFile, base: str, folders: Sequence[str]
    ):
        self.root = path
        self._archive = archive
        self._base = f"{base}/" if base else ""
        self.files = {}
        for info in archive.infolist():
            name = info.filename.removeprefix(self._base)
            inside = any(name == folder or name.startswith(f"{folder}/") for folder in folders)
            if inside and not name.endswith("/") and all(map(_visible, name.split("/"))):
                self.files[name] = Stamp(info.file_size, info.CRC)

    def read(self, path: str) -> bytes:
        _refuse_large(self, path)
        try:
            return self._archive.read(self._base + path)
        except BROKEN as error:
            reason = str(error)[:200]  # zipfile shows names of any length
            raise UserError(
                f"{self.where(path)} cannot be read ({reason}); download the archive again."
            ) from error

    def where(self, path: str) -> str:
        return printable(f"{self.root}: {self._base}{path}")


def _refuse_large(source: Source, path: str) -> None:
    """UserError for a file that would fill the memory; nothing of it is read."""
    size = source.files[path].size
    if size > source.most_bytes:
        raise UserError(
            f"{source.where(path)} has {size} bytes, more than the {source.most_bytes} of "
            "config.data.max_file_bytes; remove it or raise that option."
        )


def _base(root: pathlib.Path, candidates: Sequence[str], holds) -> str | None:
    if holds(candidates[0]):
        return candidates[0]
    found = [candidate for candidate in candidates[1:] if holds(candidate)]
    if len(found) > 1:
        raise UserError(
            f"{root} holds more than one copy of the data set ({', '.join(sorted(found))}); "
            "give the folder of the one that is meant."
        )
    return found[0] if found else None


def _visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def _stat(entry: os.DirEntry) -> os.stat_result:
    """What an entry is; a UserError for a dangling link, one to its own parents, and a pipe."""
    where = printable(entry.path)
    try:
        found = entry.stat()
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}.") from error
    if entry.is_symlink() and _leads_up(entry):
        raise UserError(f"{where} is a link to a folder that it lies in; remove the link.")
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise UserError(f"{where} is neither a file nor a folder; remove it.")
    return found


def _leads_up(link: os.DirEntry) -> bool:
    inside = pathlib.Path(os.path.realpath(os.path.dirname(link.path)))
    return inside.is_relative_to(os.path.realpath(link.path))
