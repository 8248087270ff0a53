import pytest
import trees

from data_tfds.prepare import prepare
from facenet_jax import data
from facenet_jax.types import UserError


@pytest.fixture
def root(tmp_path):
    return trees.msvr310(tmp_path / "MSVR310")


def test_scene_view_and_query3(root, tmp_path):
    dataset = data.load(trees.section("msvr310", root, tmp_path / "prepared"))
    assert list(dataset.train.identity) == [1, 1, 4, 4]
    assert list(dataset.train.scene) == [5, 6, 5, 6]
    assert list(dataset.train.camera) == [2, 3, 2, 3]
    assert list(dataset.query.identity) == [3, 3]  # query3; the folder query has identity 2 too
    assert list(dataset.gallery.identity) == [2, 2, 3, 3]
    assert (dataset.protocol.name, dataset.protocol.junk) == ("msvr310/scene", "scene")


def test_without_query3_the_folder_query_is_not_taken(root, tmp_path):
    (root / "query3").rename(root / "elsewhere")
    with pytest.raises(UserError, match="query3 holds no complete triplet"):
        prepare("msvr310", str(root), str(tmp_path / "p"))
