import os
import pathlib
import subprocess
import sys

import pytest

from data_tfds.errors import UserError
from data_tfds.sets import lookup, size
from tests.support import small_datasets as trees

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    def call(*options):
        command = [sys.executable, "scripts/prepare.py", "--prepared", tmp_path / "prepared"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # for a checkout not installed
        return subprocess.run(
            [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    return call


def test_prints_the_table(run, tmp_path):
    root = trees.wmveid863(tmp_path / "tree")
    result = run("--dataset", "rendered", "--root", root, "--image_size", "8,6")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "rendered, protocol rendered/camera"
    assert result.stdout.splitlines()[2].split()[:4] == ["train", "8", "4", "2"]
    assert list((tmp_path / "prepared").glob("*/decoded/train-thermal-8x6-bicubic.npy"))


def test_a_missing_set_ends_with_2_and_one_line(run, tmp_path):
    result = run("--dataset", "wmveid863", "--root", tmp_path / "nowhere")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "186Ep0YgHY0a8BQ1Z59HP1D2-kZazbH02" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "junk"),
    [
        ("wmveid863/official", "camera"),
        ("wmveid863/clean", "camera"),
        ("rgbnt100/camera", "camera"),
        ("msvr310/scene", "scene"),
        ("rgbnt201/camera", "camera"),
        ("rendered/camera", "camera"),
        ("folder/camera", "camera"),
        ("folder/scene", "scene"),
        ("folder/none", "none"),
    ],
)
def test_a_data_set_is_found_under_the_name_of_its_protocol(name, junk):
    builder, config = lookup(name)
    (protocol,) = (c.protocol for c in builder.BUILDER_CONFIGS if c.name == config)
    assert (protocol.name, protocol.junk) == (name, junk)


@pytest.mark.parametrize("name", ["wmveid863", "rendered", "rgbnt100", "msvr310", "rgbnt201"])
def test_a_name_alone_means_the_protocol_of_the_published_scores(name):
    of = {"wmveid863": "official", "msvr310": "scene"}.get(name, "camera")
    assert lookup(name) == lookup(f"{name}/{of}")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("rgbnt100/scene", "it has rgbnt100/camera."),
        ("msvr310/camera", "it has msvr310/scene."),
        ("wmveid863/scene", "it has wmveid863/official, wmveid863/clean."),
        ("folder/view", "it has folder/camera, folder/scene, folder/none."),
    ],
)
def test_a_protocol_that_does_not_belong_to_the_data_is_refused(name, own):
    with pytest.raises(UserError) as caught:
        lookup(name)
    assert str(caught.value).endswith(own)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wmveid863", (3482, 603, 1228, 1228, 272)),
        ("wmveid863/clean", (3441, 596, 1228, 1228, 272)),
        ("rgbnt100", (8675, 50, 1715, 8575, 50)),
        ("msvr310", (1032, 155, 591, 1055, 155)),
        ("rgbnt201", (3951, 171, 836, 836, 30)),
        ("rendered", (3520, 176, 300, 800, 50)),
    ],
)
def test_sizes_are_those_of_the_stored_files(name, expected):
    found = size(name)
    sizes = (found.train, found.identities, found.query, found.gallery, found.test_identities)
    assert sizes == expected


def test_no_size_is_guessed():
    with pytest.raises(UserError, match=r"folder/none.*not known.*one of llcm, .*wmveid863"):
        size("folder/none")
