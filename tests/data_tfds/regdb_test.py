"""RegDB: ten trials of lists, two directions of the score."""

import numpy as np
import pytest
from PIL import Image

from data_tfds import doctor
from data_tfds.errors import UserError
from facenet_jax.embed import side
from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


def load(root, tmp_path, name="regdb", **changes):
    return data.load(trees.section(name, root, tmp_path / "prepared", **changes))


def test_a_trial_has_the_images_of_its_lists(tmp_path):
    root = trees.regdb(tmp_path / "RegDB")
    dataset = load(root, tmp_path, image_size=(12, 16))
    train, test = dataset.split("train"), dataset.split("gallery")
    assert dataset.modalities == ("visible", "thermal")
    assert list(dataset.splits) == ["train", "gallery"]
    assert sorted(set(train.identity)) == [8, 117]
    assert sorted(set(test.identity)) == [3, 21]
    for split in (train, test):
        assert [len(images) for images in split.images.values()] == [4, 4]
        assert list(split.labels["camera"][split.rows[1] >= 0]) == [2] * 4
    thermal = np.asarray(Image.open(root / test.name[0]).convert("RGB"))
    assert test.name[0].startswith("Thermal/3/")
    np.testing.assert_array_equal(test.images["thermal"][0], thermal)
    second = load(root, tmp_path, "regdb/visible_to_thermal_2").split("train")
    assert sorted(set(second.identity)) == [3, 21]


def test_both_directions_score_the_same_files(tmp_path):
    root = trees.regdb(tmp_path / "RegDB")
    sides = []
    for name in ("regdb/visible_to_thermal_1", "regdb/thermal_to_visible_1"):
        dataset = load(root, tmp_path, name)
        assert dataset.protocol.name == name
        assert (dataset.protocol.ignore, dataset.protocol.collapse) == ((), False)
        found = [side(dataset, dataset.protocol.query), side(dataset, dataset.protocol.gallery)]
        sides.append([(split.modalities, len(split), dataset.folder) for split in found])
    assert sides[0] == sides[1][::-1]
    assert sides[0][0][:2] == (("visible",), 4)


def test_bad_lists_are_named(tmp_path):
    root = trees.regdb(tmp_path / "RegDB", trials=1)
    with pytest.raises(UserError, match=r"train_visible_7.txt is missing"):
        load(root, tmp_path, "regdb/visible_to_thermal_7")
    path = root / "idx" / "train_thermal_1.txt"
    lines = path.read_text()
    for line, message in (
        ("Thermal/8/gone.bmp 1", "gone.bmp, which .* line 5 names, is missing"),
        ("Visible/8/x.bmp 1", "must be Thermal/<person>/<file> <label>"),
        (lines.splitlines()[0], "again"),
        ("Thermal/3/male_front_t_00001_3.bmp 1", "gives the label 1 to person 3"),
    ):
        path.write_text(f"{lines}{line}\n")
        with pytest.raises(UserError, match=message):
            load(root, tmp_path)


def test_the_doctor_compares_published_numbers(tmp_path):
    report = doctor.examine("regdb", str(trees.regdb(tmp_path / "RegDB")))
    texts = [finding.what for finding in report.findings]
    assert "train has 8 samples of 2 identities, published 4120 of 206 identities" in texts
    assert "gallery has 8 samples of 2 identities, published 4120 of 206 identities" in texts
    assert not report.exit_code
