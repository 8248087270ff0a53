import shutil

import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.prepare import prepare
from data_tfds.source import fingerprint, open_source
from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


@pytest.fixture
def root(tmp_path):
    return trees.wmveid863(tmp_path / "tree" / "WMVeID863")


@pytest.fixture(params=["at the top", "one folder down"])
def archive(root, tmp_path, request):
    below = root if request.param == "at the top" else root.parent
    return shutil.make_archive(str(tmp_path / "WMVeID863"), "zip", below)


def test_an_archive_gives_what_its_tree_gives(root, archive, tmp_path):
    extracted, zipped = (
        data.load(trees.section("wmveid863", at, tmp_path / "prepared")) for at in (root, archive)
    )
    for split in ("train", "query", "gallery"):
        ours, theirs = zipped.split(split), extracted.split(split)
        for modality in zipped.modalities:
            np.testing.assert_array_equal(ours.images[modality], theirs.images[modality])
        np.testing.assert_array_equal(ours.name, theirs.name)


def test_a_missing_file_in_an_archive_is_named(root, tmp_path):
    (root / "train" / "0002" / "ni" / "0002_v4_n0_s002_004.jpg").unlink()
    path = shutil.make_archive(str(tmp_path / "set"), "zip", root)
    with pytest.raises(UserError, match=r"set\.zip: train/0002/ni/0002_v4_n0_s002_004\.jpg is mis"):
        prepare("wmveid863", path, str(tmp_path / "p"))


def test_an_archive_of_something_else_is_a_missing_data_set(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("")
    path = shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path / "other")
    with pytest.raises(UserError, match="The data set wmveid863 is not at") as caught:
        prepare("wmveid863", path, str(tmp_path / "p"))
    assert caught.value.exit_code == 2


def test_the_fingerprint_sees_every_file_and_every_fact(root):
    def now(*facts):
        return fingerprint(open_source(str(root), ("train", "test")), *facts)

    seen = {now("a", "b"), now("a", "c"), now("ab")}
    path = root / "train" / "0001" / "vis" / "0001_v1_n1_s001_001.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    seen.add(now("a", "b"))
    path.rename(path.with_name("0001_v1_n1_s001_002.jpg"))
    seen.add(now("a", "b"))
    assert len(seen) == 5
    assert now("a", "b") == now("a", "b")
