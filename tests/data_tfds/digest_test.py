"""The digest of a split: of its content, not of its place."""

import shutil

import numpy as np
from PIL import Image

from data_tfds import digest
from data_tfds.prepare import prepare
from facenet_jax.inputs import dataset as datasets
from tests.support import small_datasets as trees
from tests.support import tiny_run as tiny


def digests(root, prepared):
    return datasets.load(trees.section("wmveid863", root, prepared)).digests


def test_it_is_that_of_the_files_wherever_they_lie(tmp_path):
    root = trees.wmveid863(tmp_path / "set")
    first = digests(root, tmp_path / "prepared")
    assert first.keys() == {"train", "query", "gallery"}
    assert len({*first.values()}) == 3
    assert all(len(each) == digest.DIGITS for each in first.values())
    moved = shutil.move(root, tmp_path / "moved")
    assert digests(moved, tmp_path / "prepared") == first


def test_one_other_image_or_name_is_another_digest(tmp_path):
    root = trees.wmveid863(tmp_path / "set")
    first = digests(root, tmp_path / "prepared")
    image = next(iter((root / "train" / "0001" / "th").iterdir()))
    Image.new("RGB", (12, 16), (1, 2, 3)).save(image)
    second = digests(root, tmp_path / "prepared")
    assert second["train"] != first["train"]
    assert (second["query"], second["gallery"]) == (first["query"], first["gallery"])
    for path in (root / "test" / "0003").rglob("0003_v1*"):
        path.rename(path.with_name(path.name.replace("_s003", "_s004")))
    assert digests(root, tmp_path / "prepared")["gallery"] != first["gallery"]


def test_it_is_computed_once(tmp_path, monkeypatch):
    root = trees.wmveid863(tmp_path / "set")
    first = digests(root, tmp_path / "prepared")
    monkeypatch.setattr(digest, "_records", None)
    assert digests(root, tmp_path / "prepared") == first
    prepared = prepare("wmveid863", str(root), str(tmp_path / "prepared"))
    (file,) = prepared.folder.glob("decoded/train.sha256")
    assert file.read_text() == first["train"]


def test_every_pixel_and_label_of_arrays_counts():
    split = tiny.training_split()
    first = digest.of_arrays(split)
    assert digest.of_arrays(tiny.training_split()) == first
    assert digest.of_arrays(split[1:]) != first
    for name in ("identity", "rows"):
        array = getattr(split, name).copy()
        array.flat[-1] += 1
        changed = tiny.split(**{**vars_of(split), name: array})
        assert digest.of_arrays(changed) != first
    images = {name: np.array(x) for name, x in split.images.items()}
    images["thermal"][-1, -1, -1, -1] ^= 1
    changed = tiny.split(**{**vars_of(split), "images": images})
    assert digest.of_arrays(changed) != first


def vars_of(split):
    return {"images": split.images, "identity": split.identity, "rows": split.rows, **split.labels}
