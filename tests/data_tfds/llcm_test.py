"""LLCM: lists of training images, cameras' folders of test images, two directions of the score."""

import random

import numpy as np
import pytest

from data_tfds import doctor
from data_tfds.errors import UserError
from facenet_jax.embed import side
from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


def load(root, tmp_path, name="llcm", **changes):
    return data.load(trees.section(name, root, tmp_path / "prepared", **changes))


def test_samples_and_labels(tmp_path):
    dataset = load(trees.llcm(tmp_path / "LLCM"), tmp_path, image_size=(12, 16))
    assert dataset.modalities == ("visible", "near_infrared")
    train, test = dataset.split("train"), dataset.split("gallery")
    assert [len(images) for images in train.images.values()] == [4, 4]
    assert sorted(set(train.identity_name)) == ["0001", "0012"]
    assert sorted(set(train.labels["camera"])) == [1, 2]
    assert [len(images) for images in test.images.values()] == [6, 5]
    assert set(test.identity_name) == {"0005", "0006"}  # not 0099
    assert set(test.labels["camera"]) == {1, 2, 3, 4}


def test_a_trial_draws_one_image_of_each_camera_and_identity(tmp_path):
    dataset = load(trees.llcm(tmp_path / "LLCM"), tmp_path)
    protocol = dataset.protocol
    assert (protocol.name, protocol.junk) == ("llcm/near_infrared_to_visible", "camera")
    assert protocol.collapse
    gallery = side(dataset, protocol.gallery)
    assert (gallery.modalities, len(gallery)) == (("visible",), 6)
    assert len(side(dataset, protocol.query)) == 5
    labels = {**gallery.labels, "identity": gallery.identity, "name": gallery.name}
    trials = protocol.trials(labels)
    for trial, rows in enumerate(trials):
        draw, expected = random.Random(trial), []
        for camera, identity in ((1, 5), (3, 5), (2, 6)):
            folder = f"test_vis/cam{camera}/{identity:04d}/"
            expected.append(draw.choice(sorted(n for n in gallery.name if n.startswith(folder))))
        assert list(gallery.name[rows]) == expected
    assert len({tuple(rows) for rows in trials}) > 1


def test_both_directions_score_the_same_files(tmp_path):
    root = trees.llcm(tmp_path / "LLCM")
    first, other = load(root, tmp_path), load(root, tmp_path, "llcm/visible_to_near_infrared")
    assert first.folder == other.folder
    assert len(side(other, other.protocol.query)) == 6
    (rows, *_) = other.protocol.trials(
        {
            **(gallery := side(other, other.protocol.gallery)).labels,
            "identity": gallery.identity,
            "name": gallery.name,
        }
    )
    assert np.shape(rows) == (3,)  # cameras 1 of 0005, 2 and 4 of 0006


def test_what_is_wrong_is_named(tmp_path):
    root = trees.llcm(tmp_path / "LLCM")
    (root / "test_vis" / "cam1" / "note.txt").write_text("x")
    path = root / "idx" / "train_nir.txt"
    lines = path.read_text()
    for line, message in (
        ("nir/0001/0001_c01_gone.jpg 0", "gone.jpg, which .* line 5 names, is missing"),
        ("vis/0001/0001_c01_s100_f1_vis.jpg 0", "must be nir/<identity>/"),
        (lines.splitlines()[0], "again"),
    ):
        path.write_text(lines + line + "\n")
        with pytest.raises(UserError, match=message):
            load(root, tmp_path)
    path.write_text(lines)
    (root / "idx" / "test_id.txt").write_text("five\n")
    with pytest.raises(UserError, match=r"test_id\.txt must be whole numbers"):
        load(root, tmp_path)
    (root / "idx" / "test_id.txt").unlink()
    with pytest.raises(UserError, match=r"test_id\.txt is missing"):
        load(root, tmp_path)


def test_the_doctor_compares_the_published_numbers(tmp_path):
    report = doctor.examine("llcm", str(trees.llcm(tmp_path / "LLCM")))
    said = " ".join(finding.what for finding in report.findings)
    assert "train has 4 visible images, published 16946" in said
    assert "gallery has 5 near_infrared images, published 7166" in said
