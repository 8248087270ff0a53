import subprocess
import sys

import pytest

from data_tfds.errors import UserError
from facenet_jax.runtime import script


def test_a_config_is_found_from_here_and_from_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def get_config():\n    return {'mine': True}\n")
    monkeypatch.chdir(tmp_path)
    assert script.load_config("mine.py") == {"mine": True}
    assert script.load_config("configs/demo.py").data.name == "rendered"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.py", None, r"none\.py does not exist"),
        ("empty.py", "c = 1\n", r"empty\.py has no function get_config"),
        ("text.txt", "hello", "is not a Python file"),
    ],
)
def test_a_file_that_is_no_config_is_said(name, text, said, tmp_path):
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        script.load_config(tmp_path / name)
    assert error.value.exit_code == 2


def test_the_exit_code_of_a_script(capsys):
    def refuse():
        raise UserError("It cannot be.", 2)

    assert script.run(lambda: None) == 0
    assert script.run(lambda: 3) == 3
    assert script.run(refuse) == 2
    assert "It cannot be." in capsys.readouterr().err


def test_a_script_takes_its_own_checkout_from_any_folder(tmp_path):
    where = "import _checkout, configs.common, facenet_jax; print(facenet_jax.__file__)"
    code = f"import sys; sys.path.insert(0, {str(script.ROOT / 'scripts')!r}); {where}"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(script.ROOT / "facenet_jax" / "__init__.py")
