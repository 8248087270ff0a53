import numpy as np
import pytest
from PIL import Image

from data_tfds import flare
from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


@pytest.fixture
def root(tmp_path):
    return trees.rgbnt100(tmp_path / "RGBNT100")


@pytest.fixture
def dataset(root, tmp_path):
    return data.load(trees.section("rgbnt100", root, tmp_path / "prepared", image_size=(128, 256)))


def test_the_tiles_of_a_strip_are_the_modalities(dataset, root):
    train = dataset.split("train")
    assert list(train.identity) == [7, 7, 501, 501]
    assert list(train.labels["camera"]) == [1, 8, 1, 8]
    assert list(dataset.split("query").identity) == [502, 502]
    assert list(dataset.split("gallery").identity) == [502, 502, 600, 600]
    strip = np.asarray(Image.open(root / "rgbir" / "bounding_box_train" / train.name[1]))
    for number, modality in enumerate(dataset.modalities):
        tile = strip[:, 256 * number : 256 * (number + 1)]
        np.testing.assert_array_equal(train.images[modality][1], tile)  # resizing is a no-op
    for number in range(2):
        tile = np.ascontiguousarray(strip[:, 256 * number : 256 * (number + 1)])
        ratio = np.float32(flare.histogram_ratio(tile))
        assert train.labels["histogram_ratio"][1, number] == ratio


def test_protocol(dataset):
    assert (dataset.protocol.name, dataset.protocol.junk) == ("rgbnt100/camera", "camera")
