"""The command `facenet`: its table, its help and what it says to a wrong line."""

import importlib
import subprocess
import sys
import tomllib

import pytest

from facenet_jax import commands
from facenet_jax.commands import run
from facenet_jax.runtime import arguments, script
from tests.support import tiny_run as tiny

PROJECT = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
OF_RUN = ("train", "evaluate", "embed")


def test_the_installed_command_is_this_one():
    module, _, function = PROJECT["scripts"]["facenet"].partition(":")
    assert getattr(importlib.import_module(module), function) is commands.main


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_help(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["facenet"])
    try:
        code = commands.main([name, "--help"])
    except SystemExit as end:  # how argparse ends
        code = end.code
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert said.out.startswith(f"usage: facenet {name}")
    if name not in ("score",):
        assert "(default: " in said.out


@pytest.mark.parametrize("line", [["--help"], ["-h"], ["help"]])
def test_all_commands_are_listed_without_jax(line):
    code = (
        f"import sys; from facenet_jax import commands; commands.main({line!r})\n"
        "sys.exit(bool({'jax', 'absl', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True)
    assert done.returncode == 0
    assert all(f"\n  {name} ".encode() in done.stdout for name in commands.COMMANDS)


def test_help_of_training_has_every_option_with_its_default(capsys):
    commands.main(["train", "--help", "--config=configs/msvr310.py"])
    said = capsys.readouterr().out
    assert "--config.data.image_size  height, width in pixels" in said
    assert "(default: 128,256)" in said
    assert "\n--config.losses.mc:\n" in said
    assert "\nseveral hosts:\n" in said
    assert max(map(len, said.splitlines())) <= 100


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["--config", "configs/demo.py", "--workdir=a"]
    file = str(script.ROOT / "configs" / "demo.py")
    assert script.with_recipe(line) == ["--config", file, "--workdir=a"]
    assert script.with_recipe(["--config=configs/demo.py"]) == [f"--config={file}"]
    assert script.with_recipe(["--config=configs/demo.py:x"]) == [f"--config={file}:x"]
    assert script.load_config("configs/demo.py:three_stream").model.name == "three_stream"
    assert script.with_recipe(["--config=no.py"]) == ["--config=no.py"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.py").write_text("")
    assert script.with_recipe(line) == line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["trian"], "'trian' is no command. Did you mean train? facenet --help lists them."),
        (["qqqq"], "'qqqq' is no command. facenet --help lists them."),
        (["convert", "no.pth", "out"], "no.pth does not exist; name a .pth file or a workdir."),
    ],
)
def test_a_wrong_command_is_one_sentence(line, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/facenet"])
    assert commands.main(line) == 2
    assert capsys.readouterr().err.splitlines() == [f"facenet: {said}"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["prepare", "--dataset=x", "--root=y", "--image_size=12"], "12 must be H,W in pixels"),
        (["doctor", "--datset=x"], "the following arguments are required: --dataset, --root"),
        (["render", "x", "--workers=many"], "invalid int value: 'many'"),
    ],
)
def test_a_wrong_option_is_one_sentence(line, said, capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(line)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert (end.value.code, said in sentence) == (2, True)


@pytest.mark.parametrize(
    ("text", "size"),
    [("256,128", (256, 128)), ("(8,6)", (8, 6)), ("8", None), ("0,3", None), ("8x6", None)],
)
def test_a_size_has_one_spelling(text, size):
    if size is None:
        with pytest.raises(arguments.argparse.ArgumentTypeError):
            arguments.image_size(text)
    else:
        assert arguments.image_size(text) == size


@pytest.mark.parametrize("mode", OF_RUN)
def test_train_evaluate_and_embed_are_the_modes_of_main(mode, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "main", seen.append)
    commands.main([mode, "--workdir=W"])
    assert seen == [["--workdir=W", f"--mode={mode}"]]


def test_a_mistyped_workdir_is_not_made(tmp_path):
    folder = tmp_path / "typo"
    options = (f"--config={tiny.__file__}", f"--workdir={folder}")
    command = [sys.executable, tiny.ROOT / "main.py", "evaluate", *options]
    done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"main.py: There is no folder {folder}, so it holds no checkpoi")
    assert not folder.exists()
