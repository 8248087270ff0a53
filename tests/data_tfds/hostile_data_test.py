"""Data sets of an attacker or of a broken disk: what they may cost, in seconds and bytes."""

import io
import itertools
import os
import random
import stat
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from data_tfds import doctor, images
from data_tfds.errors import UserError
from data_tfds.limits import Limits
from data_tfds.prepare import prepare
from data_tfds.source import open_source
from tests.support import corruptions
from tests.support import small_datasets as trees


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(size=(64, 96), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture
def root(tmp_path):
    return trees.wmveid863(tmp_path / "set")


def first_image(root):
    return sorted((root / "train" / "0001" / "vis").iterdir())[0]


@pytest.mark.parametrize("kind", ["GIF", "PPM", "EPS", "PCX", "TGA", "ICO", "PDF"])
def test_formats_that_are_not_named_are_not_decoded(kind):
    data = encoded(noise(), kind)
    with pytest.raises(images.ImageError, match=r"is not an image that is read here \(JPEG, PNG"):
        images.decode(data, "x")


@pytest.mark.parametrize("kind", images.FORMATS)
def test_formats_that_are_named_are_decoded(kind):
    assert images.decode(encoded(noise(), kind), "x").size == (96, 64)


def test_no_image_starts_another_program(root, tmp_path, monkeypatch):
    """An EPS file under the name of a JPEG, and a Ghostscript that notes its calls."""
    program, called = tmp_path / "bin" / "gs", tmp_path / "called"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $@ >> {called}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    first_image(root).write_bytes(encoded(noise(), "EPS"))
    with pytest.raises(UserError, match="is not an image that is read here"):
        prepare("wmveid863", str(root), str(tmp_path / "prepared"))
    report = doctor.examine("wmveid863", str(root))
    assert any("1 files are no image" in finding.what for finding in report.findings)
    assert not called.exists()


def half(data, share=0.6):
    """A JPEG that lost its end and got an end marker."""
    return data[: int(len(data) * share)] + b"\xff\xd9"


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}]
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_jpeg_that_lost_its_end_is_noticed(options, share):
    whole = encoded(noise(), **options)
    assert not images.is_cut_off(whole, images.decode(whole, "x"))
    cut = half(whole, share)
    assert images.is_cut_off(cut, images.decode(cut, "x"))


@pytest.mark.parametrize("grey", [127, 128, 129])
def test_a_grey_picture_is_no_cut_one(grey):
    for size in ((8, 8), (17, 33), (64, 96)):
        whole = encoded(Image.new("RGB", size, (grey,) * 3))
        assert not images.is_cut_off(whole, images.decode(whole, "x"))
    assert not images.is_cut_off(encoded(noise(), "PNG"), noise())


def test_doctor_and_prepare_name_the_images_that_are_cut_off(root, tmp_path, caplog):
    path = first_image(root)
    noise().save(path, quality=95)
    path.write_bytes(half(path.read_bytes()))
    report = doctor.examine("wmveid863", str(root))
    (finding,) = [x for x in report.findings if "cut off" in x.what]
    assert finding.what == "1 images are cut off, and grey from there on"
    assert path.name in finding.files[0]
    lines = []
    prepare_with_warnings(root, tmp_path, lines)
    assert any("1 images are cut off" in line and path.name in line for line in lines)


def prepare_with_warnings(root, tmp_path, lines):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "data_tfds.prepare.logging.warning", lambda text, *values: lines.append(text % values)
        )
        prepare("wmveid863", str(root), str(tmp_path / "prepared"))


class Cost:
    """Seconds and bytes of a block."""

    def __enter__(self):
        tracemalloc.start()
        self.start = time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.start
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def test_an_archive_that_unpacks_to_much_is_not_unpacked(root, tmp_path):
    """64 MB of zeros in 64 kB, and the same file in a tree."""
    name = str(first_image(root).relative_to(root))
    path = corruptions.archive(lambda data: data)(root)
    with zipfile.ZipFile(path) as whole:
        entries = {each: whole.read(each) for each in whole.namelist() if not each.endswith("/")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for each, content in entries.items():
            archive.writestr(each, bytes(2**26) if each == name else content)
    os.truncate(first_image(root), 2**26)
    for place in (path, root):
        with Cost() as cost, pytest.raises(UserError, match=r"67108864 bytes, more than the 1000"):
            prepare(
                "wmveid863", str(place), str(tmp_path / "prepared"), limits=Limits(file_bytes=10**7)
            )
        assert cost.bytes < 30e6
        assert cost.seconds < 10


def test_an_image_of_many_pixels_is_not_decoded(root, tmp_path):
    """A PNG of 8,000 x 8,000, of which there is a header alone."""
    header = b"IHDR" + struct.pack(">II", 8000, 8000) + b"\x08\x02\0\0\0"
    data = encoded(noise(), "PNG")
    data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    first_image(root).write_bytes(data)
    words = r"8000 x 8000 pixels, more than the 50000000 of config.data.max_pixels"
    with Cost() as cost, pytest.raises(UserError, match=words):
        prepare("wmveid863", str(root), str(tmp_path / "prepared"))
    assert cost.bytes < 30e6
    assert cost.seconds < 10
    report = doctor.examine("wmveid863", str(root))
    assert any("1 images have too many pixels" in finding.what for finding in report.findings)


def test_links_that_fan_out_are_refused_in_bounded_time(root):
    """12 folders, each with 8 links to the next: 8^11 paths."""
    steps = [root / "train" / f"step{number}" for number in range(12)]
    for folder in steps:
        folder.mkdir()
    for here, there in itertools.pairwise(steps):
        for number in range(8):
            (here / f"link{number}").symlink_to(there)
    with Cost() as cost, pytest.raises(UserError, match="More than 16 paths, by links, lead to"):
        open_source(str(root), ("train", "test", "query"))
    assert cost.seconds < 2
    assert cost.bytes < 10e6


def test_folders_that_link_to_each_other_are_one_short_sentence(root):
    one, other = root / "train" / "0001", root / "train" / "0002"
    (one / "link").symlink_to(other)
    (other / "link").symlink_to(one)
    with pytest.raises(UserError, match="is by a link a folder that it lies in") as refused:
        open_source(str(root), ("train", "test", "query"))
    assert len(str(refused.value)) < 300


def test_a_folder_may_have_a_few_names(root):
    """As where `query` is a link to the gallery."""
    for number in range(5):
        (root / f"query{number}").symlink_to(root / "test")
    found = open_source(str(root), ("train", "test", *(f"query{n}" for n in range(5))))
    assert sum(path.startswith("query4/") for path in found.files) == 12


@pytest.mark.parametrize("kind", ["pipe", "/dev/null", "~nosuchuser/x", "long", "\0"])
@pytest.mark.parametrize("name", ["wmveid863", "folder/none"])
def test_what_is_no_place_of_a_data_set_is_one_sentence(tmp_path, kind, name):
    where = {"long": "a" * 5000, "pipe": str(tmp_path / "pipe")}.get(kind, kind)
    if kind == "pipe":
        os.mkfifo(where)
    for call in (
        lambda: doctor.examine(name, where),
        lambda: prepare(name, where, str(tmp_path / "prepared")),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert len(str(refused.value)) < 600


def test_damaged_jpegs_end_in_an_image_or_in_one_sentence():
    """300 mutations with a fixed seed."""
    data, draw = encoded(noise(), quality=90), random.Random(0)
    for _ in range(300):
        spoiled = bytearray(data)
        for _ in range(draw.randint(1, 6)):
            spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
        try:
            image = images.decode(bytes(spoiled[: draw.randint(20, len(data))]), "x", grey=True)
        except images.ImageError:
            continue
        images.is_cut_off(bytes(spoiled), image)
