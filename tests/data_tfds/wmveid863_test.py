import pytest
import tensorflow_datasets as tfds

from data_tfds.errors import UserError
from data_tfds.listing import Parsed
from data_tfds.prepare import prepare
from data_tfds.rendered import tree as rendered_tree
from data_tfds.samples import MODALITIES
from data_tfds.sets.wmveid863 import NAMING
from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


@pytest.fixture
def root(tmp_path):
    return trees.wmveid863(tmp_path / "tree")


@pytest.fixture
def build(root, tmp_path):
    return lambda **options: (
        prepare("wmveid863", str(root), str(tmp_path / "prepared"), **options).builder
    )


VICTIM = "train/0002/ni/0002_v4_n0_s002_004.jpg"


def test_names():
    parse = NAMING.parse
    assert parse("0001_v3_n1_s012_003.jpg") == Parsed("0001", camera=3, scene=12, view=3, night=1)
    assert parse("0325_v0_n9_s999_120.JPG") == Parsed("0325", camera=0, view=0, night=9)
    for name in ("0001_v12_n1_s012_003.jpg", "0001_v1_s012_003.jpg", "v1_n1_s012.jpg", "a.png"):
        assert parse(name) is None


def test_stores_the_bytes_of_the_files(build, root):
    skip = {modality: tfds.decode.SkipDecoding() for modality in MODALITIES[:3]}
    source = build().as_data_source("train", decoders=skip)
    example = source[3]
    name = example["name"].decode()
    assert name == "0002_v4_n0_s002_004.jpg"
    for modality, folder in zip(MODALITIES[:3], trees.FOLDERS, strict=True):
        assert example[modality] == (root / "train" / "0002" / folder / name).read_bytes()
    assert example["identity_name"] == b"0002"
    labels = ("identity", "camera", "scene", "view", "night")
    assert [example[label] for label in labels] == [2, 4, 2, 4, 0]
    assert example["present"].all()


def test_is_an_ordinary_tfds_builder(root, tmp_path):
    builder = tfds.builder("wmveid863", config="official", data_dir=tmp_path / "tfds")
    config = tfds.download.DownloadConfig(manual_dir=root)
    builder.download_and_prepare(download_config=config, download_dir=tmp_path / "download")
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 8,
        "query": 2,
        "gallery": 4,
    }
    assert builder.as_data_source("query")[0]["visible"].shape == (12, 16, 3)
    assert str(builder.version) == "2.0.0"
    assert "Information Fusion" in builder.info.citation
    assert "186Ep0YgHY0a8BQ1Z59HP1D2-kZazbH02" in builder.MANUAL_DOWNLOAD_INSTRUCTIONS


@pytest.mark.parametrize("root", ["", "/nowhere/wmveid863"])
def test_a_missing_data_set_tells_where_to_get_it(root, tmp_path):
    with pytest.raises(UserError) as caught:
        prepare("wmveid863", root, str(tmp_path))
    assert caught.value.exit_code == 2
    for part in (
        "186Ep0YgHY0a8BQ1Z59HP1D2-kZazbH02",
        "1UpFTwqfWEPnSUC-cQEYSFA",
        "DIR/{train,test,query}/<identity>/{vis,ni,th}/*.jpg",
        "--config.data.root=DIR",
    ):
        assert part in str(caught.value)


def test_a_tree_one_folder_down_is_found(root, tmp_path):
    assert prepare("wmveid863", str(root.parent), str(tmp_path / "p")).builder.is_prepared()


def test_incomplete_samples_are_left_out_where_told_to(build, root, caplog):
    (root / VICTIM).unlink()
    with pytest.raises(UserError, match=r"--config\.data\.incomplete=skip"):
        build()
    builder = build(incomplete="skip")
    assert builder.info.splits["train"].num_examples == 7
    assert "1 incomplete samples are left out: train/0002_v4_n0_s002_004.jpg" in caplog.text


def test_images_are_paired_by_name_whatever_their_number(build, root):
    folder = root / "train" / "0002"
    (folder / "vis" / "0002_v1_n1_s002_001.jpg").unlink()
    (folder / "th" / "0002_v4_n0_s002_004.jpg").unlink()  # as many left of each modality
    with pytest.raises(UserError, match=r"and 1 more like it"):
        build()
    assert build(incomplete="skip").info.splits["train"].num_examples == 6


def test_stray_files_are_left_out_with_a_warning(build, root, caplog):
    (root / "train" / "list.txt").write_text("")
    (root / "train" / ".DS_Store").write_text("")
    assert build().info.splits["train"].num_examples == 8
    assert "1 files that belong to no sample are left out: train/list.txt" in caplog.text


def test_the_rendered_tree_is_read_in_the_same_way(tmp_path):
    root = tmp_path / "rendered"
    rendered_tree.write_tree(
        root, train_identities=2, test_identities=2, train_samples=4, test_samples=3, workers=1
    )
    dataset = data.load(trees.section("rendered", root, tmp_path / "p"))
    assert (dataset.protocol.name, dataset.protocol.junk) == ("rendered/camera", "camera")
    assert (len(dataset.split("train")), len(dataset.split("gallery"))) == (8, 6)
    assert set(dataset.split("query").name) <= set(dataset.split("gallery").name)
