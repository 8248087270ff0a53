import numpy as np
from PIL import Image

from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


def test_modalities_lie_in_folders_and_the_whole_test_set_queries(tmp_path):
    root = trees.rgbnt201(tmp_path / "RGBNT201")
    (root / "test" / ".DS_Store").write_text("")
    dataset = data.load(trees.section("rgbnt201", root, tmp_path / "prepared", image_size=(12, 16)))
    assert list(dataset.split("train").identity) == [9, 9, 11, 11]
    gallery = dataset.split("gallery")
    assert list(gallery.identity) == [40, 40, 258, 258]
    assert list(gallery.labels["camera"]) == [1, 4, 1, 4]
    assert dataset.split("query") is gallery
    assert (dataset.protocol.name, dataset.protocol.junk) == ("rgbnt201/camera", "camera")
    for modality, label in zip(dataset.modalities, ("RGB", "NI", "TI"), strict=True):
        image = Image.open(root / "test" / label / gallery.name[2])
        np.testing.assert_array_equal(gallery.images[modality][2], image)
