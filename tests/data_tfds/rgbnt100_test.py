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


def test_the_tiles_of_a_strip_are_the_bands(dataset, root):
    assert list(dataset.train.identity) == [7, 7, 501, 501]
    assert list(dataset.train.camera) == [1, 8, 1, 8]
    assert list(dataset.query.identity) == [502, 502]
    assert list(dataset.gallery.identity) == [502, 502, 600, 600]
    strip = np.asarray(Image.open(root / "rgbir" / "bounding_box_train" / dataset.train.name[1]))
    for band in range(3):
        tile = strip[:, 256 * band : 256 * (band + 1)]
        np.testing.assert_array_equal(dataset.train.images[band, 1], tile)  # resizing is a no-op
    for band in range(2):
        tile = np.ascontiguousarray(strip[:, 256 * band : 256 * (band + 1)])
        ratio = np.float32(flare.histogram_ratio(tile))
        assert dataset.train.histogram_ratio[1, band] == ratio


def test_protocol(dataset):
    assert (dataset.protocol.name, dataset.protocol.junk) == ("rgbnt100/camera", "camera")
