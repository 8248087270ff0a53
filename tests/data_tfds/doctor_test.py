import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from data_tfds.doctor import examine
from data_tfds.errors import UserError
from data_tfds.prepare import prepare
from tests.support import small_datasets as trees

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path):
    return trees.wmveid863(tmp_path / "tree")


def found(report, part):
    """The one finding whose text holds `part`."""
    findings = [finding for finding in report.findings if part in finding.what]
    assert len(findings) == 1, (part, [finding.what for finding in report.findings])
    return findings[0]


def image(root, split, name, folder):
    return root / split / name[:4] / folder / name


def test_a_sound_set_passes(root):
    report = examine("rendered", str(root))
    assert report.findings == []
    assert report.exit_code == 0
    train = report.splits["train"]
    assert (train["samples"], train["identities"]) == (8, 4)
    assert train["samples_per_identity"] == [2, 2, 2]
    assert train["samples_per_camera"] == {"1": 4, "4": 4}


def test_flare_shares_follow_the_modalities(root):
    for name in ("0001_v1_n1_s001_001.jpg", "0002_v1_n1_s002_001.jpg"):
        Image.new("RGB", (16, 12), "white").save(image(root, "train", name, "ni"))
    numbers = examine("rendered", str(root)).splits["train"]
    assert numbers["flare_luma"] == {"visible": 0.0, "near_infrared": 0.25}


def harm(root):
    """Every defect once, each in a file of its own."""
    image(root, "train", "0001_v1_n1_s001_001.jpg", "vis").write_bytes(b"no image")
    cut = image(root, "train", "0001_v4_n0_s001_004.jpg", "ni")
    cut.write_bytes(cut.read_bytes()[:-30])
    trees.picture(1).convert("L").save(image(root, "train", "0002_v1_n1_s002_001.jpg", "ni"))
    trees.picture(2).convert("CMYK").save(image(root, "train", "0002_v4_n0_s002_004.jpg", "ni"))
    exif = Image.Exif()
    exif[0x0112] = 6
    trees.picture(3).save(image(root, "train", "0007_v1_n1_s007_001.jpg", "th"), exif=exif)
    trees.picture(4, (20, 16)).save(image(root, "train", "0007_v4_n0_s007_004.jpg", "th"))
    image(root, "test", "0003_v4_n0_s003_004.jpg", "th").unlink()
    trees.write_sample(root, "train", "0005_v1_n1_s005_001.jpg", 51)  # as in test
    trees.write_sample(root, "train", "0009_v1_n1_s999_001.jpg", 90, folder="car")
    trees.write_sample(root, "train", "vehicle.jpg", 91, folder="0010")
    (root / "train" / "list.txt").write_text("")


def test_all_problems_are_found_in_one_pass(root):
    harm(root)
    report = examine("wmveid863", str(root))
    for part, severity, file in (
        ("1 files are no image", "error", "0001_v1_n1_s001_001.jpg"),
        ("1 images are truncated", "error", "0001_v4_n0_s001_004.jpg"),
        ("1 images are grey", "error", "0002_v1_n1_s002_001.jpg"),
        ("1 images have mode CMYK", "error", "0002_v4_n0_s002_004.jpg"),
        ("1 images carry an EXIF rotation", "warning", "0007_v1_n1_s007_001.jpg"),
        ("1 samples have images of different sizes", "warning", "0007_v4_n0_s007_004.jpg"),
        ("1 samples are incomplete", "error", "0003_v4_n0_s003_004.jpg"),
        ("1 identities are in train and in test", "warning", "0005"),
        ("1 samples of the same name", "warning", "0005_v1_n1_s005_001.jpg"),
        ("1 identities cannot be used", "error", "train/car"),
        ("1 names or rows do not say", "error", "vehicle.jpg"),
        ("1 files belong to no sample", "warning", "list.txt"),
        ("1 of 2 queries have no match under wmveid863/official", "warning", "0003_v1"),
        ("train has 9 samples of 5 identities, published 3482", "warning", ""),
    ):
        finding = found(report, part)
        assert finding.severity == severity
        assert file in " ".join(finding.files)
    assert len(found(report, "are in train and in test, byte for byte").files) == 3
    assert report.exit_code == 1


def test_what_the_builder_is_said_to_refuse_it_refuses(root, tmp_path):
    """Mending or removing the errors one by one ends in a set that prepares."""
    harm(root)
    for folder in ("0001", "0002", "car"):
        shutil.rmtree(root / "train" / folder)
    for folder in trees.FOLDERS:
        (root / "train" / "0010" / folder / "vehicle.jpg").unlink()
    report = examine("wmveid863", str(root))
    assert [f.what for f in report.findings if f.severity == "error"] == [
        "1 samples are incomplete"
    ]
    with pytest.raises(UserError, match="is missing"):
        prepare("wmveid863", str(root), str(tmp_path / "p"))
    assert examine("wmveid863", str(root), incomplete="skip").exit_code == 0
    prepare("wmveid863", str(root), str(tmp_path / "p"), incomplete="skip")


def test_the_clean_protocol_drops_leaked_identities(root, tmp_path, caplog):
    trees.write_sample(root, "train", "0005_v1_n1_s005_001.jpg", 51)
    image(root, "test", "0003_v4_n0_s003_004.jpg", "th").unlink()
    report = examine("wmveid863/clean", str(root))
    assert report.exit_code == 0
    assert report.splits["train"]["samples"] == 8
    assert "leaves the training samples" in found(report, "identities are in train").builder
    builder = prepare("wmveid863/clean", str(root), str(tmp_path / "p")).builder
    assert builder.info.splits["train"].num_examples == 8
    assert builder.info.splits["gallery"].num_examples == 3
    assert "1 training samples of test identities are left out: 0005" in caplog.text


def test_wmveid863_is_told_apart_from_msvr310(root, tmp_path):
    trees.write_sample(root, "train", "0021_v1_n9_s030_001.jpg", 5)
    trees.write_sample(root, "train", "0021_v1_n9_s031_001.jpg", 6)
    report = examine("wmveid863", str(root))
    assert found(report, "MSVR310").what.startswith("1 of train, 0 of query, 0 of gallery are")
    other = examine("msvr310", str(trees.msvr310(tmp_path / "MSVR310")))
    assert "WMVeID863 contains MSVR310" in found(other, "MSVR310").what


def test_duplicates_within_a_split(root):
    source = image(root, "train", "0001_v1_n1_s001_001.jpg", "vis")
    shutil.copy(source, image(root, "train", "0007_v1_n1_s007_001.jpg", "vis"))
    assert "0001_v1" in found(examine("rendered", str(root)), "more than once").files[0]


def test_strips_and_grey_folders(tmp_path):
    root = trees.rgbnt100(tmp_path / "RGBNT100")
    trees.picture(0, (128, 512)).save(root / "rgbir" / "query" / "0502_c0008_000.jpg")
    assert "512 x 128" in found(examine("rgbnt100", str(root)), "cannot be used").files[0]
    report = examine("folder/camera", str(trees.folder(tmp_path / "mine")))
    assert len(found(report, "visible images are grey").files) == 10
    assert report.exit_code == 0


def doctor(*options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # for a checkout not installed
    command = [sys.executable, "scripts/doctor.py", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_script_text_json_and_exit_codes(root, tmp_path):
    harm(root)
    report = tmp_path / "report.json"
    result = doctor("--dataset", "wmveid863", "--root", root, "--json", report)
    assert result.returncode == 1, result.stderr
    assert "ERROR: 1 images have mode CMYK. Preparing refuses the data set." in result.stdout
    kinds = {finding["severity"] for finding in json.loads(report.read_text())["findings"]}
    assert kinds == {"error", "warning"}
    result = doctor("--dataset", "wmveid863", "--root", tmp_path / "nowhere")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
