import json
import os
import subprocess
import sys

import pytest

from data_tfds.errors import UserError
from facenet_jax.runtime import workdir
from tests.support import tiny_run as tiny


def test_one_owner_at_a_time(tmp_path):
    folder = tmp_path / "new" / "run"
    message = f"in use by process {os.getpid()}; wait"
    with (
        workdir.locked(folder),
        pytest.raises(UserError, match=message),
        workdir.locked(folder),
    ):
        pass
    with workdir.locked(folder):  # free again
        pass


@pytest.mark.parametrize("name", [*workdir.FOLDERS, *workdir.FILES])
def test_a_file_where_a_folder_should_be_and_the_other_way_round(tmp_path, name):
    if name in workdir.FOLDERS:
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    with (
        pytest.raises(UserError, match=rf"{name} is a (file|folder) where a run has a"),
        workdir.locked(tmp_path),
    ):
        pass


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    code = (
        "import os, pathlib, sys; from facenet_jax.runtime import workdir\n"
        "with workdir.locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=tiny.ROOT)
    assert done.returncode == -9
    with workdir.locked(tmp_path):
        pass


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    message = f"{where} cannot be written .* choose another --workdir"
    with pytest.raises(UserError, match=message), workdir.locked(tmp_path / where):
        pass


@pytest.mark.parametrize("text", [None, "{", ""])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json cannot be read .* a workdir\?"):
        workdir.read_json(tmp_path / "config.json", tmp_path)


def test_each_mode_writes_an_environment_of_its_own(tmp_path):
    for mode in ("train", "evaluate", "embed"):
        workdir.write_environment(tmp_path, mode)
    names = {"environment.json", "environment-evaluate.json", "environment-embed.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    environment = json.loads((tmp_path / "environment-embed.json").read_text())
    assert {"packages", "devices", "command", "python"} <= environment.keys()


def test_a_config_is_flat_as_json_has_it():
    nested = {"a": {"b": (1, (2, 3)), "c": {"d": None}}, "e": "f"}
    assert workdir.flat(nested) == {"a.b": [1, [2, 3]], "a.c.d": None, "e": "f"}
