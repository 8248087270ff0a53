"""SYSU-MM01: the raw folders, the arrays of AGW, and the galleries of the ten trials."""

import json
import random

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_tfds import doctor
from data_tfds.errors import UserError
from data_tfds.sets import lookup, sysu_trials
from facenet_jax.inputs import dataset as data
from facenet_jax.retrieval.protocols import by_name
from tests.support import small_datasets as trees


def load(root, tmp_path, name="sysu_mm01", **changes):
    return data.load(trees.section(name, root, tmp_path / "prepared", **changes))


def test_every_image_is_a_sample_of_its_own(tmp_path):
    root = trees.sysu_mm01(tmp_path / "SYSU")
    dataset = load(root, tmp_path, image_size=(12, 16))
    assert dataset.modalities == ("visible", "infrared")
    train, query, gallery = (dataset.splits[name] for name in ("train", "query", "gallery"))
    assert [len(images) for images in train.images.values()] == [3, 4]
    assert [len(images) for images in query.images.values()] == [0, 5]
    assert [len(images) for images in gallery.images.values()] == [9, 0]
    assert list(train.identity) == [7] * 3 + [333] * 4
    assert list(train.labels["camera"]) == [1, 1, 3, 2, 6, 6, 6]
    assert list(train.rows[0]) == [0, 1, -1, 2, -1, -1, -1]
    assert list(train.rows[1]) == [-1, -1, 0, -1, 1, 2, 3]
    assert list(query.labels["camera"]) == [3, 3, 6, 6, 6]
    assert gallery.name[3] == "cam2/0026/0001.jpg"
    assert gallery.identity_name[3] == "0026"
    np.testing.assert_array_equal(gallery.images["visible"][3], Image.open(root / gallery.name[3]))
    protocol = dataset.protocol
    assert (protocol.query.modalities, protocol.gallery.modalities) == (("infrared",), ("visible",))
    assert (protocol.ignore, protocol.collapse) == ((("camera", 3, 2),), True)


def test_protocols_share_the_prepared_files(tmp_path):
    root = trees.sysu_mm01(tmp_path / "SYSU")
    first = load(root, tmp_path)
    other = load(root, tmp_path, "sysu_mm01/indoor_multi")
    assert first.folder == other.folder
    assert (first.protocol.name, other.protocol.name) == (
        "sysu_mm01/all_single",
        "sysu_mm01/indoor_multi",
    )
    labels = {**first.split("gallery").labels, "identity": first.split("gallery").identity}
    labels["name"] = first.split("gallery").name
    sizes = [[len(trial) for trial in each.protocol.trials(labels)] for each in (first, other)]
    assert sizes == [[5] * 10, [4] * 10]  # one of each folder; all of cam1 and cam2


def write_arrays(root, size=(8, 6)):
    """What AGW's preprocessing makes of the tree: Lanczos, labels 0, 1 by sorted identity."""
    for modality, cameras in (("rgb", (1, 2, 4, 5)), ("ir", (3, 6))):
        images, labels = [], []
        for label, identity in enumerate(("0007", "0333")):
            for camera in cameras:
                for path in sorted((root / f"cam{camera}" / identity).glob("*.jpg")):
                    image = Image.open(path).resize(size[::-1], Image.Resampling.LANCZOS)
                    images.append(np.asarray(image))
                    labels.append(label)
        np.save(root / f"train_{modality}_resized_img.npy", np.stack(images))
        np.save(root / f"train_{modality}_resized_label.npy", np.array(labels))


def test_the_four_arrays_stand_for_missing_training_folders(tmp_path):
    root = trees.sysu_mm01(tmp_path / "SYSU")
    raw = load(root, tmp_path, train_resize="lanczos").split("train")
    write_arrays(root)
    both = load(root, tmp_path, train_resize="lanczos").split("train")
    assert list(both.labels["camera"]) == list(raw.labels["camera"])  # the folders come first
    for identity in ("0007", "0333"):
        for camera in range(1, 7):
            for path in (root / f"cam{camera}" / identity).glob("*.jpg"):
                path.unlink()
    dataset = load(root, tmp_path)
    train = dataset.split("train")
    assert list(train.identity) == [7] * 3 + [333] * 4
    assert list(train.labels["camera"]) == [-1] * 7
    for modality in dataset.modalities:
        np.testing.assert_array_equal(train.images[modality], raw.images[modality])
    assert len(dataset.split("query")) == 5


def test_the_arrays_alone_can_be_trained_on(tmp_path):
    root = trees.sysu_mm01(tmp_path / "SYSU")
    write_arrays(root)
    alone = tmp_path / "arrays"
    alone.mkdir()
    for path in root.glob("*.npy"):
        path.rename(alone / path.name)
    dataset = load(alone, tmp_path)
    assert list(dataset.splits) == ["train"]
    assert list(dataset.split("train").identity) == [0] * 3 + [1] * 4
    (alone / "train_ir_resized_label.npy").unlink()
    with pytest.raises(UserError, match=r"without train_ir_resized_label.npy"):
        load(alone, tmp_path)


def test_missing_lists_and_stray_files_are_named(tmp_path):
    root = trees.sysu_mm01(tmp_path / "SYSU")
    (root / "cam1" / "0026" / "one.png").write_bytes(b"")
    report = doctor.examine("sysu_mm01", str(root))
    texts = [finding.what for finding in report.findings]
    assert "1 files belong to no sample" in texts
    assert "train has 3 visible images, published 22258" in texts
    assert "a trial of all search draws 5 images, published 301" in texts
    assert "query has 5 samples of 2 identities, published 3803 of 96 identities" in texts
    assert not any("incomplete" in text for text in texts)
    assert report.splits["train"]["images"] == {"visible": 3, "infrared": 4}
    (root / "exp" / "val_id.txt").unlink()
    with pytest.raises(UserError, match=r"val_id.txt is missing.*identities of val"):
        load(root, tmp_path)


def labels_of(listing, cameras=(1, 2, 4, 5)):
    """The labels of a gallery, in an order of its own, and its paths."""
    paths = [f"{folder}/{name}" for folder, names in listing.items() for name in names]
    paths = [path for path in paths if int(path[3]) in cameras]
    random.Random(5).shuffle(paths)
    return {
        "identity": np.array([int(path.split("/")[1]) for path in paths]),
        "camera": np.array([int(path[3]) for path in paths]),
        "name": np.array(paths),
    }


@pytest.mark.parametrize("mode", ["all", "indoor"])
def test_agw_draws_what_its_release_draws(shared, mode):
    golden = json.loads((shared / "golden/siblings/agw/sysu_gallery.json").read_text())
    gallery = labels_of(golden["listing"])
    trials = by_name(f"sysu_mm01/{mode}_single").trials(gallery)
    assert [gallery["name"][rows].tolist() for rows in trials] == golden["gallery"][mode]


def test_agw_draws_ten_of_each_folder_for_several_shots():
    listing = {"cam1/0003": [f"{n:04d}.jpg" for n in range(1, 25)], "cam4/0003": ["0001.jpg"]}
    gallery = labels_of(listing)
    trials = by_name("sysu_mm01/all_multi").trials(gallery)
    assert [len(set(rows)) for rows in trials] == [11] * 10
    assert len({tuple(rows) for rows in trials}) == 10
    again = by_name("sysu_mm01/all_multi").trials(gallery)
    np.testing.assert_array_equal(trials, again)


def write_permutations(path, folders, trials=10):
    """Cells of cameras, each of identities, each [trials, images], as MATLAB stores them."""
    drawn, cameras = {}, np.empty((6, 1), object)
    for camera in range(1, 7):
        cells = np.empty((533, 1), object)
        for identity in range(1, 534):
            count = folders.get((camera, identity), 0)
            generator = np.random.default_rng(1000 * camera + identity)
            cells[identity - 1, 0] = np.zeros((0, 0))
            if count:
                order = np.array([generator.permutation(count) + 1 for _ in range(trials)])
                drawn[camera, identity] = cells[identity - 1, 0] = order.astype(np.uint16)
        cameras[camera - 1, 0] = cells
    savemat(path, {"rand_perm_cam": cameras})
    return drawn


def test_the_official_rule_takes_the_first_of_the_permutations(tmp_path):
    root = trees.sysu_mm01(tmp_path / "SYSU")
    drawn = write_permutations(root / "exp" / "rand_perm_cam.mat", trees.SYSU_FOLDERS)
    dataset = load(root, tmp_path, "sysu_mm01/indoor_single_official")
    gallery = dataset.split("gallery")
    labels = {**gallery.labels, "identity": gallery.identity, "name": gallery.name}
    for trial, rows in enumerate(dataset.protocol.trials(labels)):
        expected = [f"cam{c}/0026/{drawn[c, 26][trial, 0]:04d}.jpg" for c in (1, 2)]
        assert gallery.name[rows].tolist() == expected
    several = load(root, tmp_path, "sysu_mm01/all_multi_official").protocol.trials(labels)
    assert [len(rows) for rows in several] == [9] * 10


def test_the_official_rule_says_what_it_lacks(tmp_path):
    root = trees.sysu_mm01(tmp_path / "SYSU")
    with pytest.raises(UserError, match=r"rand_perm_cam.mat is missing.*wuancong/SYSU-MM01"):
        load(root, tmp_path, "sysu_mm01/all_single_official")
    path = root / "exp" / "rand_perm_cam.mat"
    path.write_bytes(b"no MATLAB file")
    with pytest.raises(UserError, match=r"is not SYSU-MM01's rand_perm_cam.mat"):
        load(root, tmp_path, "sysu_mm01/all_single_official")
    folders = {**trees.SYSU_FOLDERS, (4, 26): 3}
    write_permutations(path, folders)
    gallery = load(root, tmp_path).split("gallery")
    labels = {**gallery.labels, "identity": gallery.identity, "name": gallery.name}
    official = load(root, tmp_path, "sysu_mm01/all_multi_official").protocol
    with pytest.raises(UserError, match="draws image 3 of camera 4, identity 26"):
        official.trials(labels)
    with pytest.raises(UserError, match="lies with the data set"):
        by_name("sysu_mm01/all_single_official").trials(labels)


def test_published_numbers():
    builder, first = lookup("sysu_mm01")
    assert first == "all_single"
    assert len(builder.BUILDER_CONFIGS) == 8
    size = builder.BUILDER_CONFIGS[0].published
    assert (size.train, size.identities, size.query, size.test_identities) == (34167, 395, 3803, 96)
    assert set(sysu_trials.CAMERAS) == {"all", "indoor"}
