"""The real data sets' names in the real trees: the counts of names/README.md must come out."""

import pathlib

import pytest
import trees

from data_tfds.prepare import lookup
from data_tfds.source import Stamp
from facenet_jax import data
from facenet_jax.types import UserError


class Names:
    """A source whose files have names and nothing else."""

    root = pathlib.Path("/names")

    def __init__(self, files):
        self.files = {file: Stamp(0, 0) for file in files}

    def where(self, path):
        return path


def lines(shared, file):
    text = (shared / "names" / file).read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def banded(folder, band, names, width):
    return [f"{folder}/{name[:width]}/{band}/{name}" for name in names]


def wmveid863(shared):
    for split in ("train", "test"):
        for band, label in (("vis", "RGB"), ("ni", "NI"), ("th", "TI")):
            yield from banded(split, band, lines(shared, f"WMVeID863_{split}_{label}.txt"), 4)


def msvr310(shared):
    for folder, split in (
        ("bounding_box_train", "train"),
        ("query3", "query"),
        ("bounding_box_test", "test"),
    ):
        for band in ("vis", "ni", "th"):
            yield from banded(folder, band, lines(shared, f"MSVR310_{split}.txt"), 4)


def rgbnt100(shared):
    for folder, split in (
        ("bounding_box_train", "train"),
        ("query", "query"),
        ("bounding_box_test", "test"),
    ):
        yield from (f"rgbir/{folder}/{name}" for name in lines(shared, f"RGBNT100_{split}.txt"))


def rgbnt201(shared):
    for folder, split in (("train_171", "train"), ("test", "test")):
        for band in ("RGB", "NI", "TI"):
            names = lines(shared, f"RGBNT201_{split}.txt")
            yield from (f"{folder}/{band}/{name}" for name in names)


def triplets(name, files, tmp_path, incomplete="error"):
    cls, config = lookup(name)
    builder = cls(data_dir=tmp_path, config=config, incomplete=incomplete)
    return builder.triplets(builder.listing(Names(files)))


def counts(splits):
    return {
        split: (len(found), len({triplet.identity for triplet in found}))
        for split, found in splits.items()
    }


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("wmveid863/clean", wmveid863, {"train": (3441, 596), "gallery": (1228, 272)}),
        (
            "msvr310",
            msvr310,
            {"train": (1032, 155), "query": (591, 52), "gallery": (1055, 155)},
        ),
        ("rgbnt100", rgbnt100, {"train": (8675, 50), "query": (1715, 50), "gallery": (8575, 50)}),
        ("rgbnt201", rgbnt201, {"train": (3951, 171), "gallery": (836, 30)}),
    ],
)
def test_published_counts(shared, tmp_path, name, files, expected):
    assert counts(triplets(name, files(shared), tmp_path)) == expected


def test_wmveid863_has_incomplete_triplets(shared, tmp_path):
    files = list(wmveid863(shared))
    with pytest.raises(UserError, match=r"--config\.data\.incomplete=skip"):
        triplets("wmveid863", files, tmp_path)
    complete = triplets("wmveid863", files, tmp_path, incomplete="skip")
    assert counts(complete) == {"train": (3481, 603), "gallery": (1228, 272)}
    leaked = {t.identity for t in complete["train"]} & {t.identity for t in complete["gallery"]}
    assert leaked == {325, 331, 397, 406, 451, 471, 862}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "files", "size", "rows"),
    [
        ("wmveid863/clean", wmveid863, (2, 2), (3441, 1228, 1228)),
        ("msvr310", msvr310, (2, 2), (1032, 591, 1055)),
        ("rgbnt100", rgbnt100, (128, 768), (8675, 1715, 8575)),
        ("rgbnt201", rgbnt201, (2, 2), (3951, 836, 836)),
    ],
)
def test_the_whole_real_layout_with_generated_pixels(shared, tmp_path, name, files, size, rows):
    trees.picture(0, size).save(tmp_path / "image.jpg")
    for file in files(shared):
        path = tmp_path / "tree" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(tmp_path / "image.jpg")
    section = trees.section(name, tmp_path / "tree", tmp_path / "p", image_size=(2, 2))
    dataset = data.load(section)
    assert tuple(map(len, (dataset.train, dataset.query, dataset.gallery))) == rows
