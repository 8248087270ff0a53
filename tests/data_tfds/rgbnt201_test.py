import numpy as np
from PIL import Image

from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


def test_bands_lie_in_folders_and_the_whole_test_set_queries(tmp_path):
    root = trees.rgbnt201(tmp_path / "RGBNT201")
    (root / "test" / ".DS_Store").write_text("")
    dataset = data.load(trees.section("rgbnt201", root, tmp_path / "prepared", image_size=(12, 16)))
    assert list(dataset.train.identity) == [9, 9, 11, 11]
    assert list(dataset.gallery.identity) == [40, 40, 258, 258]
    assert list(dataset.gallery.camera) == [1, 4, 1, 4]
    assert dataset.query is dataset.gallery
    assert (dataset.protocol.name, dataset.protocol.junk) == ("rgbnt201/camera", "camera")
    for band, label in enumerate(("RGB", "NI", "TI")):
        image = Image.open(root / "test" / label / dataset.gallery.name[2])
        np.testing.assert_array_equal(dataset.gallery.images[band, 2], image)
