"""What spoils a small data set of small_datasets.py: each returns a function of the set's folder.

That function changes the files and may return another root, which stands for the spoiled set.
"""

import csv
import io
import os
import pathlib
import shutil
import struct
import sys
import zipfile
import zlib

import pytest
from PIL import Image

from data_tfds.sets.folder import COLUMNS
from tests.support import small_datasets as trees


def save(file, mode="RGB", size=(16, 12), **options):
    return lambda root: Image.new(mode, size).save(root / file, **options)


def content(file, new):
    """The file's bytes replaced by `new` of them."""

    def spoil(root):
        (root / file).write_bytes(new((root / file).read_bytes()))

    return spoil


def bomb(data):
    """A PNG header that promises 60,000 x 60,000 pixels."""
    start, kind, depth, rest = data[:12], data[12:16], data[24:29], data[33:]
    header = kind + struct.pack(">II", 60000, 60000) + depth
    return start + header + struct.pack(">I", zlib.crc32(header)) + rest


def link(file, target):
    def spoil(root):
        (root / file).unlink(missing_ok=True)
        (root / file).symlink_to(root / target)

    return spoil


def pipe(root):
    os.mkfifo(root / "train" / "0002" / "vis" / "pipe.jpg")


def sample(split, name, folder=None):
    return lambda root: trees.write_sample(root, split, name, 0, folder)


def bytes_as_name(root):
    if sys.platform == "darwin":
        pytest.skip("macOS takes no file name that is not UTF-8")
    trees.write_sample(root, "train", "a\udcff.jpg", 0, "0002")


def unlink(file):
    return lambda root: (root / file).unlink()


def empty(split):
    def spoil(root):
        for path in (root / split).rglob("*.jpg"):
            path.unlink()

    return spoil


def rename(old, new):
    """`old` in every file name replaced by `new`."""

    def spoil(root):
        for path in sorted(root.rglob("*.png")):
            path.rename(path.with_name(path.name.replace(old, new)))

    return spoil


def without(folder):
    return lambda root: shutil.rmtree(root / folder)


def elsewhere(root):
    shutil.rmtree(root / "test")
    trees.write_sample(root, "test", "0077_v1_n1_s077_001.jpg", 0)


def twice(root):
    shutil.copytree(root / "train" / "1", root / "train" / "01")


def second_copy(root):
    trees.wmveid863(root.parent / "copy")
    return root.parent


def table(change, encoding="utf-8"):
    """A CSV table of the set `folder`; `change` gets its lines, the header first."""

    def spoil(root):
        lines = [list(COLUMNS)]
        for path in sorted(root.glob("*/*/vis/*.png")):
            split, identity, _, name = path.relative_to(root).parts
            files = [f"{split}/{identity}/{folder}/{name}" for folder in trees.FOLDERS]
            lines.append([split, identity, name[6], "", *files])
        with (root / "mine.csv").open("w", newline="", encoding=encoding) as file:
            csv.writer(file).writerows(change(lines))
        return root / "mine.csv"

    return spoil


def cell(column, value):
    def change(lines):
        lines[2][column] = value
        return lines

    return table(change)


def archive(harm):
    """The tree as set.zip, its bytes changed by `harm`."""

    def spoil(root):
        path = pathlib.Path(shutil.make_archive(str(root.parent / "set"), "zip", root))
        path.write_bytes(harm(path.read_bytes()))
        return path

    return spoil


def flip(data):
    """One bit of the first stored image."""
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        member = next(info for info in whole.infolist() if info.filename.endswith(".jpg"))
    at = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def header(local, central, value):
    """One 16-bit field of every member's two headers."""

    def harm(data):
        data = bytearray(data)
        for mark, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
            at = data.find(mark)
            while at >= 0:
                data[at + offset : at + offset + 2] = struct.pack("<H", value)
                at = data.find(mark, at + 4)
        return bytes(data)

    return harm
