import os
import pathlib
import subprocess
import sys

import pytest
import trees

ROOT = pathlib.Path(__file__).resolve().parent.parent


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
    assert list((tmp_path / "prepared").glob("*/decoded/train-8x6-bicubic.npy"))


def test_a_missing_set_ends_with_2_and_one_line(run, tmp_path):
    result = run("--dataset", "wmveid863", "--root", tmp_path / "nowhere")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "186Ep0YgHY0a8BQ1Z59HP1D2-kZazbH02" in result.stderr
    assert len(result.stderr.splitlines()) == 1
