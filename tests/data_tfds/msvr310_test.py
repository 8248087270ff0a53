import pytest

from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


@pytest.fixture
def root(tmp_path):
    return trees.msvr310(tmp_path / "MSVR310")


def test_scene_view_and_query3(root, tmp_path):
    dataset = data.load(trees.section("msvr310", root, tmp_path / "prepared"))
    train = dataset.split("train")
    assert list(train.identity) == [1, 1, 4, 4]
    assert list(train.labels["scene"]) == [5, 6, 5, 6]
    assert list(train.labels["view"]) == list(train.labels["camera"]) == [2, 3, 2, 3]
    assert list(dataset.split("query").identity) == [
        3,
        3,
    ]
    assert list(dataset.split("gallery").identity) == [2, 2, 3, 3]
    assert (dataset.protocol.name, dataset.protocol.junk) == ("msvr310/scene", "scene")
