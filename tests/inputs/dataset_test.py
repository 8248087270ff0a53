import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import PIL
import pytest
from absl import logging
from PIL import Image

from data_tfds import decoded, flare
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


def stored(root, split, name, folder) -> Image.Image:
    return Image.open(root / split / name[:4] / folder / name)


@pytest.mark.parametrize("resize", ["bicubic", "bilinear"])
def test_rows_are_the_sorted_samples_decoded_and_resized(config, root, resize):
    config.train_resize = resize
    train = data.load(config).split("train")
    assert train.modalities == ("visible", "near_infrared", "thermal")
    assert {images.shape for images in train.images.values()} == {(8, 8, 6, 3)}
    assert {images.dtype for images in train.images.values()} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(train.rows, [range(8)] * 3)
    assert list(train.identity) == [1, 1, 2, 2, 7, 7, 10, 10]
    assert list(train.labels["camera"]) == [1, 4] * 4
    assert list(train.labels["scene"]) == [1, 1, 2, 2, 7, 7, 10, 10]
    assert list(train.labels["night"]) == [1, 0] * 4
    assert list(train.name) == sorted(train.name)
    for row, name in enumerate(train.name):
        for modality, folder in zip(train.modalities, trees.FOLDERS, strict=True):
            image = stored(root, "train", name, folder)
            np.testing.assert_array_equal(
                train.images[modality][row], image.resize((6, 8), decoded.RESIZE[resize])
            )
        for column, folder in enumerate(("vis", "ni")):
            image = np.asarray(stored(root, "train", name, folder))
            fraction, ratio = (
                train.labels[label][row, column] for label in ("flare_fraction", "histogram_ratio")
            )
            assert fraction == np.float32(flare.luma_fraction(image))
            assert ratio == np.float32(flare.histogram_ratio(image))
    assert not train.labels["flare_fraction"][:, 2].any()


def test_flare_removal_changes_visible_and_near_infrared_images_before_the_resize(config, root):
    plain = data.load(config).split("train")
    config.flare_removal = "any"
    train = data.load(config).split("train")
    image = stored(root, "train", train.name[0], "vis")
    expected = flare.removed(image, "any").resize((6, 8), decoded.RESIZE["bicubic"])
    np.testing.assert_array_equal(train.images["visible"][0], expected)
    assert (train.images["visible"] != plain.images["visible"]).any()
    np.testing.assert_array_equal(train.images["thermal"], plain.images["thermal"])
    np.testing.assert_array_equal(train.labels["flare"], plain.labels["flare"])
    config.flare_removal = "none"
    again = data.load(config).split("train").images["visible"]
    np.testing.assert_array_equal(again, plain.images["visible"])


def test_splits_and_protocol(config):
    dataset = data.load(config)
    assert (dataset.protocol.name, dataset.protocol.junk) == ("wmveid863/official", "camera")
    assert list(dataset.splits) == ["train", "query", "gallery"]
    assert list(dataset.split("query").identity) == [3, 5]
    assert list(dataset.split("gallery").identity) == [3, 3, 5, 5]
    assert list(dataset.split("gallery").identity_name) == ["0003", "0003", "0005", "0005"]
    assert "wmveid863/official" in data.describe(dataset)


def test_without_a_query_folder_the_whole_test_set_queries(tmp_path):
    root = trees.wmveid863(tmp_path / "tree", query=False)
    dataset = data.load(trees.section("wmveid863", root, tmp_path / "prepared"))
    assert dataset.split("query") is dataset.split("gallery")
    assert len(dataset.split("query")) == 4


def test_to_evaluate_the_training_split_is_not_decoded(config, monkeypatch):
    done = []
    decode = decoded._decode
    monkeypatch.setattr(decoded, "_decode", lambda *a: (done.append(a[1]), decode(*a)))
    assert list(data.load(config, training=False).splits) == ["query", "gallery"]
    assert set(done) == {"query", "gallery"}


def test_validation_holds_the_last_identities_out_and_resizes_as_test(config, root):
    config.validation_identities = 2
    config.test_resize = "bilinear"
    dataset = data.load(config)
    train, validation = dataset.split("train"), dataset.split("validation")
    assert list(dataset.splits) == ["train", "validation", "query", "gallery"]
    assert list(train.identity) == [1, 1, 2, 2]
    assert list(validation.identity) == [7, 7, 10, 10]
    assert [len(images) for images in validation.images.values()] == [4] * 3
    np.testing.assert_array_equal(validation.rows, [range(4)] * 3)
    for split, resize in (
        (train, Image.Resampling.BICUBIC),
        (validation, Image.Resampling.BILINEAR),
    ):
        image = stored(root, "train", split.name[0], "vis").resize((6, 8), resize)
        np.testing.assert_array_equal(split.images["visible"][0], image)


def test_a_second_load_decodes_nothing(config, monkeypatch):
    first = data.load(config)
    monkeypatch.setattr(decoded, "_decode", None)
    monkeypatch.setattr(preparing, "_write", None)
    first, second = first.split("train"), data.load(config).split("train")
    for modality, images in second.images.items():
        assert isinstance(images, np.memmap)
        np.testing.assert_array_equal(images, first.images[modality])
    np.testing.assert_array_equal(second.name, first.name)
    for label, values in first.labels.items():
        np.testing.assert_array_equal(second.labels[label], values)


def folders(config) -> set[str]:
    return {path.name for path in pathlib.Path(config.prepared).iterdir() if path.is_dir()}


def test_a_changed_tree_is_prepared_anew(config, root):
    before = data.load(config).split("train")
    name = before.name[0]
    path = root / "train" / "0001" / "vis" / name
    trees.picture(99).save(path, quality=90)
    after = data.load(config).split("train")
    assert len(folders(config)) == 2
    assert not np.array_equal(after.images["visible"][0], before.images["visible"][0])
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
    assert data.load(config).split("train").images["thermal"].shape == (8, 6, 8, 3)
    assert len(folders(config)) == 1


# A child that kills itself in the middle of one stage: `kill` replaces what the stage calls.
CHILD = """
import json, os, signal, sys
from ml_collections import ConfigDict
from data_tfds import builder, decoded
from facenet_jax.inputs import dataset as data
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{target} = kill
data.load(ConfigDict(json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("target", ["builder.SampleBuilder._example", "decoded._open"])
def test_a_killed_process_leaves_nothing_that_a_later_start_takes_for_whole(config, target):
    command = [sys.executable, "-c", CHILD.format(target=target), config.to_json()]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    assert list(pathlib.Path(config.prepared).rglob(f"{preparing.INCOMPLETE}*"))
    dataset = data.load(config)
    assert list(dataset.split("train").identity) == [1, 1, 2, 2, 7, 7, 10, 10]
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
        ({"name": "wmveid"}, '"wmveid" and must be one of folder, llcm, '),
        ({"validation_identities": 4}, "has only 4 identities"),
        ({"incomplete": "drop"}, 'data.incomplete is "drop"'),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(config, changes, message):
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


GOLDEN = json.loads((ROOT / "tests" / "golden" / "loaded_sets.json").read_text())
"""What the small data sets gave before samples had modalities of their own (commit 08e5982)."""


@pytest.mark.parametrize(
    ("name", "tree", "size"),
    [
        ("wmveid863", "wmveid863", (8, 6)),
        ("rendered", "wmveid863", (8, 6)),
        ("msvr310", "msvr310", (8, 6)),
        ("rgbnt100", "rgbnt100", (16, 32)),
        ("rgbnt201", "rgbnt201", (8, 6)),
        ("folder/camera", "folder", (8, 6)),
        ("folder/scene", "folder", (8, 6)),
    ],
)
def test_complete_sets_give_what_they_always_gave(name, tree, size, tmp_path):
    root = getattr(trees, tree)(tmp_path / "tree")
    dataset = data.load(trees.section(name, root, tmp_path / "p", image_size=size))
    for part in ("train", "query", "gallery"):
        split, golden = dataset.split(part), GOLDEN[f"{name} {part}"]
        columns = {"identity": split.identity, "name": split.name, **split.labels}
        for column in ("identity", "camera", "scene", "night", "name"):
            assert columns[column].tolist() == golden[column]
        if PIL.__version__ == GOLDEN["pillow"]:  # whose resampling and JPEG the pixels come from
            assert digest(*split.images.values()) == golden["pixels"]
            statistics = [split.labels[each] for each in ("flare_fraction", "histogram_ratio")]
            assert digest(*(each[:, :2] for each in statistics)) == golden["flare"]


def digest(*arrays):
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


def test_flare_labels_follow_the_options(config, root):
    for name in ("0001_v1_n1_s001_001.jpg", "0002_v1_n1_s002_001.jpg"):
        Image.new("RGB", (16, 12), "white").save(root / "train" / name[:4] / "ni" / name)
    flared = data.load(config).split("train").labels["flare"]
    assert flared.dtype == bool
    assert flared.shape == (8, 3)
    np.testing.assert_array_equal(np.argwhere(flared), [[0, 1], [2, 1]])
    config.flare_rule = "either"
    flared = data.load(config).split("train").labels["flare"]
    np.testing.assert_array_equal(np.argwhere(flared), [[0, 0], [0, 1], [2, 0], [2, 1]])


OWN = """
import numpy as np

from data_tfds.arrays import split_of
from data_tfds.builder import Config
from data_tfds.samples import Protocol, Side
from data_tfds.sets.folder import Folder
from facenet_jax.inputs.dataset import Dataset


class {name}(Folder):
    BUILDER_CONFIGS = [
        Config(
            name="cross",
            protocol=Protocol(
                "mine/cross",
                query=Side("query", ("infrared",)),
                gallery=Side("gallery", ("visible",)),
                ignore=(("camera", 3, 2),),
                collapse=True,
            ),
            instructions="It lies on my desk.",
        )
    ]
    NEEDS_PROTOCOL = False


BUILDER = {name}


def load(data):
    rng = np.random.default_rng(0)

    def split(*identities):
        shape = (len(identities), *data.image_size, 3)
        images = {{m: rng.integers(0, 256, shape, np.uint8) for m in ("visible", "thermal")}}
        return split_of(images, identities, camera=range(len(identities)))

    splits = {{"train": split(5, 2, 2, 5, 9), "gallery": split(1, 1, 3)}}
    return Dataset(data.name, ("visible", "thermal"), splits, Protocol("own/camera", "camera"))


def bad(data):
    made = load(data)
    return Dataset(data.name, ("visible", "infrared"), made.splits, made.protocol)


def nothing(data):
    return None
"""


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """The name of a module of the user's, which no other test has imported."""
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(OWN.format(name=name.title().replace("_", "")))
    (tmp_path / f"{name}_broken.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize("ending", ["/cross", "", ".BUILDER"])
def test_a_builder_of_the_users_own_is_found_by_its_import_path(own, ending, tmp_path):
    root = trees.folder(tmp_path / "mine")
    for path in root.rglob("th"):
        path.rename(path.with_name("ir"))
    shutil.move(root / "query" / "30" / "vis", tmp_path / "gone")
    section = trees.section(f"pkg.{own}{ending}", root, tmp_path / "p", incomplete="keep")
    package(tmp_path, own)
    dataset = data.load(section)
    assert dataset.protocol.query.modalities == ("infrared",)
    assert dataset.protocol.collapse
    assert dataset.modalities == ("visible", "near_infrared", "infrared")
    assert len(dataset.split("query").images["visible"]) == 0


def package(tmp_path, own):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    for path in tmp_path.glob(f"{own}*.py"):
        path.rename(tmp_path / "pkg" / path.name)
    for name in [name for name in sys.modules if name.split(".")[0] == "pkg"]:
        del sys.modules[name]


def test_a_function_of_the_users_own_gives_arrays(own, tmp_path):
    section = trees.section(f"{own}.load", "", tmp_path / "p", validation_identities=1)
    dataset = data.load(section)
    assert dataset.name == f"{own}.load"
    train, validation = dataset.split("train"), dataset.split("validation")
    assert list(train.identity) == [2, 2, 5, 5]
    assert list(validation.identity) == [9]
    assert list(train.labels["camera"]) == [1, 2, 0, 3]
    np.testing.assert_array_equal(train.rows[0], [1, 2, 0, 3])
    assert train.labels["flare"].shape == (4, 2)
    pixels = train.images["visible"][train.rows[0, 2]]
    assert train.labels["flare_fraction"][2, 0] == np.float32(flare.luma_fraction(pixels))
    assert dataset.split("query") is dataset.split("gallery")
    assert "own/camera" in data.describe(dataset)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{}.bad", "has the modalities .'visible', 'thermal'., the data set .'visible', 'infra"),
        ("{}.nothing", 'returned NoneType without "modalities"'),
        ("{}.missing", 'has no attribute "missing"'),
        ("{}.OWN", "has no attribute"),
        ("no_such_package_here.load", 'no module "no_such_package_here"'),
        ("numpy.pi", "neither a module with BUILDER"),
        ("{}.load/scene/x y", None),
        ("a b.c", "is no import path"),
    ],
)
def test_what_is_behind_no_door_is_one_sentence(own, name, words, tmp_path):
    section = trees.section(name.format(own), "", tmp_path / "p")
    if words is None:  # what follows the slash is the function's own affair
        data.load(section)
        return
    with pytest.raises(UserError, match=words):
        data.load(section)


def test_what_the_users_module_raises_is_shown_whole(own, tmp_path):
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        data.load(trees.section(f"{own}_broken.load", "", tmp_path / "p"))


def test_a_slice_of_a_split_has_only_its_own_images(config, root):
    (root / "train" / "0002" / "ni" / "0002_v1_n1_s002_001.jpg").unlink()
    config.incomplete = "keep"
    train = data.load(config).split("train")
    part = train[2:5]
    np.testing.assert_array_equal(part.rows, [[0, 1, 2], [-1, 0, 1], [0, 1, 2]])
    assert [len(images) for images in part.images.values()] == [3, 2, 3]
    assert all(np.shares_memory(part.images[m], train.images[m]) for m in part.modalities)
    picked = train.take(np.array([6, 0]))
    np.testing.assert_array_equal(picked.rows[0], [6, 0])
    assert picked.images["visible"] is train.images["visible"]
    two = part.subset(("thermal", "near_infrared"))
    assert two.modalities == ("thermal", "near_infrared")
    np.testing.assert_array_equal(two.present, [[True] * 3, [False, True, True]])
    np.testing.assert_array_equal(
        two.labels["flare_fraction"], part.labels["flare_fraction"][:, [2, 1]]
    )
