import os
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from absl import logging
from PIL import Image

from data_tfds import flare
from data_tfds import prepare as preparing
from data_tfds.errors import UserError
from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path):
    return trees.wmveid863(tmp_path / "tree")


@pytest.fixture
def config(root, tmp_path):
    return trees.section("wmveid863", root, tmp_path / "prepared")


def stored(root, split, name, band) -> Image.Image:
    return Image.open(root / split / name[:4] / band / name)


@pytest.mark.parametrize("resize", ["bicubic", "bilinear"])
def test_rows_are_the_sorted_triplets_decoded_and_resized(config, root, resize):
    config.train_resize = resize
    train = data.load(config).train
    assert train.images.shape == (3, 8, 8, 6, 3)
    assert train.images.dtype == np.uint8
    assert list(train.identity) == [1, 1, 2, 2, 7, 7, 10, 10]
    assert list(train.camera) == [1, 4] * 4
    assert list(train.scene) == [1, 1, 2, 2, 7, 7, 10, 10]
    assert list(train.night) == [1, 0] * 4
    assert list(train.name) == sorted(train.name)
    for row, name in enumerate(train.name):
        for band, label in enumerate(trees.BANDS):
            image = stored(root, "train", name, label)
            np.testing.assert_array_equal(
                train.images[band, row], image.resize((6, 8), data.RESIZE[resize])
            )
        for band, label in enumerate(("vis", "ni")):
            image = np.asarray(stored(root, "train", name, label))
            assert train.flare_fraction[row, band] == np.float32(flare.luma_fraction(image))
            assert train.histogram_ratio[row, band] == np.float32(flare.histogram_ratio(image))


def test_splits_and_protocol(config):
    dataset = data.load(config)
    assert (dataset.protocol.name, dataset.protocol.junk) == ("wmveid863/official", "camera")
    assert list(dataset.query.identity) == [3, 5]
    assert list(dataset.gallery.identity) == [3, 3, 5, 5]
    assert dataset.validation is None
    assert "wmveid863/official" in data.describe(dataset)


def test_without_a_query_folder_the_whole_test_set_queries(tmp_path):
    root = trees.wmveid863(tmp_path / "tree", query=False)
    dataset = data.load(trees.section("wmveid863", root, tmp_path / "prepared"))
    assert dataset.query is dataset.gallery
    assert len(dataset.query) == 4


def test_validation_holds_the_last_identities_out_and_resizes_as_test(config, root):
    config.validation_identities = 2
    config.test_resize = "bilinear"
    dataset = data.load(config)
    assert list(dataset.train.identity) == [1, 1, 2, 2]
    assert list(dataset.validation.identity) == [7, 7, 10, 10]
    image = stored(root, "train", dataset.validation.name[0], "vis")
    expected = image.resize((6, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(dataset.validation.images[0, 0], expected)
    np.testing.assert_array_equal(
        dataset.train.images[0, 0],
        stored(root, "train", dataset.train.name[0], "vis").resize(
            (6, 8), Image.Resampling.BICUBIC
        ),
    )


def test_a_second_load_decodes_nothing(config, monkeypatch):
    first = data.load(config)
    monkeypatch.setattr(data, "_decode", None)
    monkeypatch.setattr(preparing, "_write", None)
    second = data.load(config)
    assert isinstance(second.train.images, np.memmap)
    np.testing.assert_array_equal(second.train.images, first.train.images)
    np.testing.assert_array_equal(second.train.name, first.train.name)


def folders(config) -> set[str]:
    return {path.name for path in pathlib.Path(config.prepared).iterdir() if path.is_dir()}


def test_a_changed_tree_is_prepared_anew(config, root):
    before = data.load(config)
    name = before.train.name[0]
    path = root / "train" / "0001" / "vis" / name
    trees.picture(99).save(path, quality=90)
    after = data.load(config)
    assert len(folders(config)) == 2
    assert not np.array_equal(after.train.images[0, 0], before.train.images[0, 0])
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    data.load(config)
    assert len(folders(config)) == 3


def test_another_place_or_config_never_shares_prepared_data(config, root, tmp_path):
    data.load(config)
    data.load(trees.section("rendered", root, config.prepared))
    moved = root.rename(tmp_path / "moved")
    data.load(trees.section("wmveid863", moved, config.prepared))
    assert len(folders(config)) == 3


def test_another_size_or_filter_is_decoded_anew(config):
    data.load(config)
    config.image_size = (6, 8)
    assert data.load(config).train.images.shape == (3, 8, 6, 8, 3)
    assert len(folders(config)) == 1


# A child that kills itself in the middle of one stage: `kill` replaces what the stage calls.
CHILD = """
import json, os, signal, sys
from ml_collections import ConfigDict
from data_tfds import builder
from facenet_jax.inputs import dataset as data
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{target} = kill
data.load(ConfigDict(json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("target", ["builder.TripletBuilder._example", "data._open"])
def test_a_killed_process_leaves_nothing_that_a_later_start_takes_for_whole(config, target):
    command = [sys.executable, "-c", CHILD.format(target=target), config.to_json()]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    assert list(pathlib.Path(config.prepared).rglob(f"{preparing.INCOMPLETE}*"))
    dataset = data.load(config)
    assert list(dataset.train.identity) == [1, 1, 2, 2, 7, 7, 10, 10]
    assert not list(pathlib.Path(config.prepared).rglob(f"{preparing.INCOMPLETE}*"))


def test_an_error_leaves_nothing_behind(config, root):
    (root / "test" / "0005" / "th" / "0005_v4_n0_s005_004.jpg").write_bytes(b"no image")
    with pytest.raises(UserError):
        data.load(config)
    assert folders(config) == set()


def test_tensorflow_is_never_imported_and_nothing_but_progress_is_said(config, capfd):
    logging.use_absl_handler()
    data.load(config)
    said = capfd.readouterr()
    assert said.out == ""
    assert "OpenCV" not in said.err
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "wmveid"}, 'data.name is "wmveid"'),
        ({"train_resize": "nearest"}, 'data.train_resize is "nearest"'),
        ({"image_size": (8,)}, "data.image_size"),
        ({"image_size": (8, 0)}, "data.image_size"),
        ({"validation_identities": 4}, "has only 4 identities"),
        ({"validation_identities": -1}, "data.validation_identities is -1"),
        ({"incomplete": "drop"}, 'data.incomplete is "drop"'),
    ],
)
def test_options_out_of_range_are_refused(config, changes, message):
    config.update(changes)
    with pytest.raises(UserError, match=message):
        data.load(config)


@pytest.fixture
def full_disk():
    """Files cannot grow beyond a few kB: what a write meets on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_while_preparing_is_told(config, full_disk):
    full_disk(4096)
    with pytest.raises(UserError, match=r"cannot be written .*--config\.data\.prepared=DIR"):
        data.load(config)
    assert folders(config) == set()


def test_a_full_disk_while_decoding_is_told(config, full_disk):
    data.load(config)
    config.image_size = (64, 64)
    full_disk(65536)
    with pytest.raises(UserError, match=r"cannot be written .*--config\.data\.prepared=DIR"):
        data.load(config)
    assert not list(pathlib.Path(config.prepared).rglob(f"{preparing.INCOMPLETE}*"))


def test_prepared_below_a_file_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("")
    config.prepared = str(tmp_path / "file" / "prepared")
    with pytest.raises(UserError, match=r"--config\.data\.prepared=DIR"):
        data.load(config)
