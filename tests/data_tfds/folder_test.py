import csv

import numpy as np
import pytest
from PIL import Image

from data_tfds.names import FOLDER
from data_tfds.sets.folder import COLUMNS
from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


@pytest.fixture
def root(tmp_path):
    return trees.folder(tmp_path / "mine")


def load(name, root, tmp_path):
    return data.load(trees.section(name, root, tmp_path / "prepared", image_size=(12, 16)))


@pytest.mark.parametrize(
    ("name", "camera", "scene"),
    [
        ("a_c3_s012.png", 3, 12),
        ("v1_s2.jpg", 1, 2),
        ("0001_00_scene.png", -1, -1),
        ("C4.JPG", 4, -1),
    ],
)
def test_names_say_camera_and_scene_where_they_can(name, camera, scene):
    parsed = FOLDER.parse(name)
    assert (parsed.identity, parsed.camera, parsed.scene) == (-1, camera, scene)


@pytest.mark.parametrize("junk", ["camera", "scene", "none"])
def test_a_tree_of_grey_images(root, tmp_path, junk):
    dataset = load(f"folder/{junk}", root, tmp_path)
    assert (dataset.protocol.name, dataset.protocol.junk) == (f"folder/{junk}", junk)
    assert list(dataset.gallery.identity) == [30, 30, 40, 40]
    assert list(dataset.gallery.camera) == [1, 2, 1, 2]
    assert list(dataset.gallery.scene) == [7, 8, 7, 8]
    grey = np.asarray(Image.open(root / "gallery" / "40" / "th" / "shot_c2_s8.png"))
    np.testing.assert_array_equal(dataset.gallery.images[2, 3], np.dstack([grey] * 3))


def test_without_cameras_there_is_the_protocol_scene(root, tmp_path):
    for path in root.rglob("*.png"):
        path.rename(path.with_name(path.name.replace("_c", "_")))
    assert list(load("folder/scene", root, tmp_path).gallery.camera) == [-1] * 4


def test_without_query_the_gallery_queries(root, tmp_path):
    (root / "query").rename(tmp_path / "elsewhere")
    dataset = load("folder/camera", root, tmp_path)
    assert dataset.query is dataset.gallery


def rows(root):
    for path in sorted(root.glob("*/*/vis/*.png")):
        split, identity, _, name = path.relative_to(root).parts
        files = [f"{split}/{identity}/{band}/{name}" for band in trees.BANDS]
        yield [split, identity, name[6], "", *files]


@pytest.fixture
def write(root):
    def table(changed, columns=COLUMNS):
        path = root / "mine.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *changed])
        return path

    return table


def test_a_table(root, tmp_path, write):
    dataset = load("folder/camera", write(rows(root)), tmp_path)
    tree = load("folder/camera", root, tmp_path)
    for split in ("train", "query", "gallery"):
        ours, theirs = getattr(dataset, split), getattr(tree, split)
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.identity, theirs.identity)
        np.testing.assert_array_equal(ours.camera, theirs.camera)
        assert set(ours.scene) == {-1}
    assert dataset.gallery.name[0] == "gallery/30/vis/shot_c1_s7.png"
