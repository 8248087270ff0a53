import csv

import numpy as np
import pytest
from PIL import Image

from data_tfds import doctor
from data_tfds.errors import UserError
from data_tfds.sets.folder import COLUMNS, NAMING
from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


@pytest.fixture
def root(tmp_path):
    return trees.folder(tmp_path / "mine")


def load(name, root, tmp_path, **changes):
    section = trees.section(name, root, tmp_path / "prepared", image_size=(12, 16), **changes)
    return data.load(section)


@pytest.mark.parametrize(
    ("name", "camera", "scene", "view"),
    [
        ("a_c3_s012.png", 3, 12, -1),
        ("v1_s2.jpg", 1, 2, 1),
        ("c3_v1.jpg", 3, -1, 1),
        ("0001_00_scene.png", -1, -1, -1),
        ("C4.JPG", 4, -1, -1),
    ],
)
def test_names_say_camera_scene_and_view_where_they_can(name, camera, scene, view):
    parsed = NAMING.parse(name)
    assert (parsed.identity, parsed.camera, parsed.scene) == ("", camera, scene)
    assert parsed.view == view


@pytest.mark.parametrize("junk", ["camera", "scene", "none"])
def test_a_tree_of_grey_images(root, tmp_path, junk):
    dataset = load(f"folder/{junk}", root, tmp_path)
    assert (dataset.protocol.name, dataset.protocol.junk) == (f"folder/{junk}", junk)
    gallery = dataset.split("gallery")
    assert list(gallery.identity) == [30, 30, 40, 40]
    assert list(gallery.labels["camera"]) == [1, 2, 1, 2]
    assert list(gallery.labels["scene"]) == [7, 8, 7, 8]
    grey = np.asarray(Image.open(root / "gallery" / "40" / "th" / "shot_c2_s8.png"))
    np.testing.assert_array_equal(gallery.images["thermal"][3], np.dstack([grey] * 3))


def test_without_cameras_there_is_the_protocol_scene(root, tmp_path):
    for path in root.rglob("*.png"):
        path.rename(path.with_name(path.name.replace("_c", "_")))
    gallery = load("folder/scene", root, tmp_path).split("gallery")
    assert list(gallery.labels["camera"]) == [-1] * 4


def test_without_query_the_gallery_queries(root, tmp_path):
    (root / "query").rename(tmp_path / "elsewhere")
    dataset = load("folder/camera", root, tmp_path)
    assert dataset.split("query") is dataset.split("gallery")


def rows(root):
    for path in sorted(root.glob("*/*/vis/*.png")):
        split, identity, _, name = path.relative_to(root).parts
        files = [f"{split}/{identity}/{folder}/{name}" for folder in trees.FOLDERS]
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
        ours, theirs = dataset.split(split), tree.split(split)
        for modality in tree.modalities:
            np.testing.assert_array_equal(ours.images[modality], theirs.images[modality])
        np.testing.assert_array_equal(ours.identity, theirs.identity)
        np.testing.assert_array_equal(ours.labels["camera"], theirs.labels["camera"])
        assert set(ours.labels["scene"]) == {-1}
    assert dataset.split("gallery").name[0] == "gallery/30/vis/shot_c1_s7.png"


# Sets that are not three aligned modalities.


def picture(path, seed, size=(12, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    trees.picture(seed, size).convert(mode).save(path)


def write_set(root, folders, splits=("train", "gallery"), identities=("1", "2")):
    """Two samples of each identity in these folders, each image in colours of its own."""
    for split in splits:
        for number, identity in enumerate(identities):
            for camera in (1, 2):
                for place, folder in enumerate(folders):
                    path = root / split / identity / folder / f"a_c{camera}.png"
                    picture(path, 10 * number + 3 * camera + place)
    return root


@pytest.mark.parametrize(
    ("folders", "modalities"),
    [
        (("Visible", "TIR"), ("visible", "thermal")),
        (("rgb", "near_infrared"), ("visible", "near_infrared")),
        (("IR", "vis"), ("visible", "infrared")),
        (("th", "nir", "RGB"), ("visible", "near_infrared", "thermal")),
        (("thermal",), ("thermal",)),
    ],
)
def test_the_modalities_are_those_whose_folders_are_there(tmp_path, folders, modalities):
    root = write_set(tmp_path / "mine", folders)
    dataset = load("folder/camera", root, tmp_path)
    assert dataset.modalities == modalities
    train = dataset.split("train")
    assert train.modalities == modalities
    assert train.complete
    assert train.rows.shape == (len(modalities), 4)
    folder = {f.lower()[0]: f for f in folders}
    for modality in modalities:
        own = folder[modality[0]] if modality[0] in folder else folder["r"]
        image = np.asarray(Image.open(root / "train" / "2" / own / "a_c1.png"))
        np.testing.assert_array_equal(train.images[modality][2], image)
    assert train.labels["flare"].shape == (4, len(modalities))


def test_a_table_has_the_modalities_of_its_header(root, tmp_path, write):
    columns = ("split", "identity", "view", "vis", "TIR")
    table = write(([*row[:2], row[2], row[4], row[6]] for row in rows(root)), columns)
    dataset = load("folder/none", table, tmp_path)
    assert dataset.modalities == ("visible", "thermal")
    gallery = dataset.split("gallery")
    assert list(gallery.labels["view"]) == [1, 2, 1, 2]
    assert list(gallery.labels["camera"]) == [-1] * 4


def test_an_absent_modality_is_marked_where_it_is_kept(root, tmp_path):
    gone = root / "gallery" / "30" / "ni" / "shot_c2_s8.png"
    gone.unlink()
    with pytest.raises(UserError, match=r"ni/shot_c2_s8.png is missing.*incomplete=keep"):
        load("folder/camera", root, tmp_path)
    dataset = load("folder/camera", root, tmp_path, incomplete="keep")
    gallery = dataset.split("gallery")
    np.testing.assert_array_equal(gallery.rows, [[0, 1, 2, 3], [0, -1, 1, 2], [0, 1, 2, 3]])
    assert not gallery.complete
    assert {m: len(images) for m, images in gallery.images.items()} == {
        "visible": 4,
        "near_infrared": 3,
        "thermal": 4,
    }
    image = np.asarray(Image.open(root / "gallery" / "40" / "ni" / "shot_c1_s7.png"))
    np.testing.assert_array_equal(gallery.images["near_infrared"][1], np.dstack([image] * 3))
    assert not gallery.labels["flare_fraction"][1, 1]
    assert gallery.labels["histogram_ratio"][0, 1]
    assert dataset.split("train").complete
    again = load("folder/camera", root, tmp_path, incomplete="keep")
    np.testing.assert_array_equal(again.split("gallery").rows, gallery.rows)
    skipped = load("folder/camera", root, tmp_path, incomplete="skip").split("gallery")
    assert list(skipped.name) == [gallery.name[n] for n in (0, 2, 3)]


def test_an_empty_cell_is_an_absent_modality(root, tmp_path, write):
    changed = list(rows(root))
    changed[0][4] = ""  # gallery, 30, the visible image
    table = write(changed)
    with pytest.raises(UserError, match=r"an empty path of .*mine.csv line 2 is missing"):
        load("folder/camera", table, tmp_path)
    gallery = load("folder/camera", table, tmp_path, incomplete="keep").split("gallery")
    assert sorted(gallery.rows[0]) == [-1, 0, 1, 2]
    (lacking,) = np.flatnonzero(gallery.rows[0] < 0)
    assert gallery.name[lacking] == changed[0][5]


def test_identities_are_names_where_they_are_no_numbers(tmp_path):
    root = tmp_path / "mine"
    write_set(root, ("vis", "th"), ("train",), ("京A 12345", "B-7"))
    write_set(root, ("vis", "th"), ("gallery",), ("0042", "B-7"))
    dataset = load("folder/camera", root, tmp_path)
    train, gallery = dataset.split("train"), dataset.split("gallery")
    assert list(train.identity) == [1, 1, 2, 2]  # of 0042, B-7, 京A 12345
    assert list(train.identity_name) == ["B-7", "B-7", "京A 12345", "京A 12345"]
    assert list(gallery.identity) == [0, 0, 1, 1]
    assert list(gallery.identity_name) == ["0042", "0042", "B-7", "B-7"]


def test_a_table_may_name_number_plates(root, tmp_path, write):
    changed = [[row[0], f"X-{row[1]}", *row[2:]] for row in rows(root)]
    gallery = load("folder/camera", write(changed), tmp_path).split("gallery")
    assert list(gallery.identity) == [2, 2, 3, 3]  # of
    assert list(gallery.identity_name) == ["X-30", "X-30", "X-40", "X-40"]


def test_train_may_be_missing(tmp_path):
    root = write_set(tmp_path / "mine", ("vis", "th"), ("query", "gallery"))
    dataset = load("folder/none", root, tmp_path, validation_identities=5)
    assert list(dataset.splits) == ["query", "gallery"]
    with pytest.raises(
        UserError, match=r'folder/none has no split "train" \(it has: query, gallery\)'
    ):
        dataset.split("train")


def test_only_a_gallery_queries_itself(tmp_path):
    root = write_set(tmp_path / "mine", ("vis", "th"), ("gallery",))
    dataset = load("folder/camera", root, tmp_path)
    assert dataset.split("query") is dataset.split("gallery")


def test_images_of_any_size_are_resized_to_one(tmp_path):
    root = write_set(tmp_path / "mine", ("vis", "th"))
    odd = root / "train" / "1" / "th" / "a_c2.png"
    picture(odd, 5, (30, 9))
    train = load("folder/camera", root, tmp_path).split("train")
    assert train.images["thermal"].shape == (4, 12, 16, 3)
    expected = Image.open(odd).resize((16, 12), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(train.images["thermal"][1], np.asarray(expected))


def unaligned(root):
    """Two identities with visible and infrared images of different names and numbers."""
    for split in ("train", "query", "gallery"):
        for identity in (3, 8):
            if split != "query":
                for number in (1, 2, 3):
                    picture(root / split / str(identity) / "vis" / f"v{number}_c1.png", number)
            if split != "gallery":
                for number in (1, 2):
                    picture(root / split / str(identity) / "ir" / f"i{number}_c3.png", number)
    return root


def test_images_without_a_partner_are_samples_of_one_modality(tmp_path):
    root = unaligned(tmp_path / "mine")
    dataset = load("folder/none", root, tmp_path)  # no option: nothing pairs, so nothing lacks
    assert dataset.modalities == ("visible", "infrared")
    train = dataset.split("train")
    assert len(train) == 10
    assert list(train.present.sum(axis=0)) == [1] * 10
    assert [len(images) for images in train.images.values()] == [6, 4]
    query, gallery = dataset.split("query"), dataset.split("gallery")
    assert [len(images) for images in query.images.values()] == [0, 4]
    assert [len(images) for images in gallery.images.values()] == [6, 0]
    assert query.modalities == gallery.modalities == dataset.modalities
    skipping = load("folder/none", root, tmp_path, incomplete="skip")
    assert len(skipping.split("train")) == 10
    report = doctor.examine("folder/none", str(root))
    assert any("each is a sample of its own" in finding.what for finding in report.findings)


def test_images_of_which_some_pair_lack_the_others(tmp_path):
    root = unaligned(tmp_path / "mine")
    picture(root / "train" / "3" / "ir" / "v1_c1.png", 1)
    with pytest.raises(UserError, match="incomplete=keep"):
        load("folder/none", root, tmp_path)
    assert len(load("folder/none", root, tmp_path, incomplete="keep").split("train")) == 10


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: write_set(root, ("rgb", "vis")), "are the same image of a sample"),
        (lambda root: write_set(root, ("colour",)), "has no image at {train,query,gallery}"),
        (lambda root: write_set(root, ("vis",), identities=("-3", "4")), "from 0 to 2147483647"),
    ],
)
def test_a_tree_that_cannot_be_understood_is_one_sentence(tmp_path, harm, words):
    with pytest.raises(UserError, match=words):
        load("folder/camera", harm(tmp_path / "mine"), tmp_path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (("split", "identity", "vis", "visible"), "has the columns split,identity,vis,visible"),
        (("split", "identity", "camera"), "one or more of visible,near_infrared"),
        (("split", "identity", "visible", "colour"), "has the columns .*colour and must have"),
    ],
)
def test_a_table_of_other_columns_is_one_sentence(tmp_path, write, columns, words):
    with pytest.raises(UserError, match=words):
        load("folder/camera", write([], columns), tmp_path)
