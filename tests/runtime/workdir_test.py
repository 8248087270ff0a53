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


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    code = (
        "import os, pathlib, sys; from facenet_jax import workdir\n"
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


def test_claim_writes_what_read_config_reads(tmp_path):
    config = tiny.config(losses__triplet=((0.0, 0.0), (1.0, 2.0)))
    workdir.claim(tmp_path, config, trained=False)
    read = workdir.read_config(tmp_path)
    assert workdir.flat(read.to_dict()) == workdir.flat(config.to_dict())
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert {"packages", "devices", "command", "python"} <= environment.keys()
    workdir.claim(tmp_path, read, trained=True)  # tuples that came back as lists are the same
    assert not list(tmp_path.glob("*.part"))


def test_a_trained_folder_takes_no_other_config(tmp_path):
    workdir.claim(tmp_path, tiny.config(), trained=False)
    other = tiny.config(model__width=32, optim__learning_rate=0.5)
    with pytest.raises(UserError) as raised:
        workdir.claim(tmp_path, other, trained=True)
    text = str(raised.value)
    assert f"The workdir {tmp_path} belongs to a run with another config" in text
    assert "config.model.width was 16 and is 32" in text
    assert "config.optim.learning_rate was 0.02 and is 0.5" in text
    assert workdir.read_config(tmp_path).model.width == 16
    other.unlock()
    other.model.width, other.optim.learning_rate = 16, 0.02
    other.model.new = 1
    with pytest.raises(UserError, match=r"config.model.new was 'absent' and is 1"):
        workdir.claim(tmp_path, other, trained=True)


def test_what_changes_no_parameter_may_change(tmp_path):
    workdir.claim(tmp_path, tiny.config(), trained=False)
    changes = {
        "evaluate__batch": 16,
        "evaluate__breakdown": True,
        "train__evaluate_every": 3,
        "train__save_every_steps": 7,
        "data__root": "/elsewhere",
    }
    workdir.claim(tmp_path, tiny.config(**changes), trained=True)
    assert workdir.read_config(tmp_path).evaluate.batch == 16


def test_a_failed_first_attempt_may_be_mended(tmp_path):
    """Nothing was trained yet: a batch too large or a wrong file must not lock the folder."""
    workdir.claim(tmp_path, tiny.config(), trained=False)
    workdir.claim(tmp_path, tiny.config(model__width=32), trained=False)
    assert workdir.read_config(tmp_path).model.width == 32


@pytest.mark.parametrize("text", [None, "{", ""])
def test_a_config_that_cannot_be_read_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json cannot be read .* a workdir\?"):
        workdir.read_config(tmp_path)
