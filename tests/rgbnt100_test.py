import numpy as np
import pytest
import trees
from PIL import Image

from data_tfds.prepare import prepare
from facenet_jax import data, flare
from facenet_jax.types import UserError


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


@pytest.mark.parametrize("size", [(128, 512), (128, 1024), (100, 768)])
def test_a_strip_of_another_size_is_refused(root, tmp_path, size):
    path = root / "rgbir" / "query" / "0502_c0008_000.jpg"
    trees.picture(0, size).save(path)
    with pytest.raises(UserError, match=f"measures {size[1]} x {size[0]} pixels") as caught:
        prepare("rgbnt100", str(root), str(tmp_path / "p"))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["-1_c0001_000.jpg", "0601_c0001_000.jpg", "0502_c0009_000.jpg"])
def test_identities_and_cameras_out_of_range_are_refused(root, tmp_path, name):
    trees.picture(0, (128, 768)).save(root / "rgbir" / "query" / name)
    with pytest.raises(UserError, match="does not follow the naming"):
        prepare("rgbnt100", str(root), str(tmp_path / "p"))
