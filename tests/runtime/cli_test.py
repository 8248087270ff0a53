import errno
import json
import logging
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import stored
from facenet_jax.runtime import cli
from tests.support import tiny_run as tiny

CONFIGS = tiny.ROOT / "configs"
OLD = tiny.ROOT / "tests" / "golden" / "workdir_0_1_0" / "config.json"


@pytest.fixture
def parse(monkeypatch):
    """The values of flags as main.py has them, from the options of a command line."""

    def parsed(*options):
        arguments = ["main.py", f"--config={tiny.__file__}", *options]
        monkeypatch.setattr(sys, "argv", arguments)  # config_flags looks there for overrides
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "the experiment", flag_values=values)
        flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "what to do", flag_values=values)
        cli.parse(values, arguments)
        return values

    return parsed


def test_options_change_the_config(parse):
    config = parse(
        "--config.model.width=24",
        "--config.data.image_size=(16,8)",
        "--config.losses.mc.weight=2",
        "--config.losses.triplet.weight=((0,0),(0.5,1.5))",
        "--config.losses.id.label_smoothing=0.1",
    ).config
    assert config.model.width == 24
    assert tuple(config.data.image_size) == (16, 8)
    assert config.losses.mc.weight == 2
    assert config.losses.id.label_smoothing == 0.1
    assert config.losses.triplet.weight == ((0, 0), (0.5, 1.5))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--config.modl.width=3", "The config has no option 'modl'. Did you mean model? facenet"),
        ("--config.model.widht=3", "The config has no option 'widht'. Did you mean width? face"),
        (
            "--config.model.fce.maks=soft",
            "no option 'maks'. Did you mean mask? facenet train",
        ),
        (
            "--config.model.qqqq=3",
            "The config has no option 'qqqq'. facenet train --help lists",
        ),
        ("--moed=train", "Unknown command line flag 'moed'. Did you mean: mode?"),
        ("--mode=tarin", "--mode=tarin: value should be one of <train|evaluate>."),
        ("--config.train.steps=1.5", "--config.train.steps=1.5: invalid literal for int()"),
        ("--config.optim.warmup=long", "--config.optim.warmup=long: could not convert string to"),
        ("--config.model.shared_trunk=2", "--config.model.shared_trunk=2: "),
        ("train", "'train' is no option; options are written --name=value"),
    ],
)
def test_what_no_option_can_be_is_one_sentence(parse, option, sentence):
    with pytest.raises(UserError) as raised:
        parse(option)
    assert raised.value.exit_code == 2
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "\\" not in str(raised.value)


def test_config_and_workdir_each_do_without_the_other(tmp_path):
    with pytest.raises(UserError, match="Give an experiment") as raised:
        cli.config_and_workdir(dict, None, None)
    assert raised.value.exit_code == 2
    with pytest.raises(UserError, match=r"configs/nothing.py does not exist"):
        cli.config_and_workdir(dict, "configs/nothing.py", None)
    config, folder = cli.config_and_workdir(tiny.get_config, tiny.__file__, None)
    assert (config, folder) == (tiny.get_config(), pathlib.Path("runs/tiny_run"))
    _, folder = cli.config_and_workdir(tiny.get_config, tiny.__file__, str(tmp_path))
    assert folder == tmp_path
    stored = tiny.get_config()
    assert cli.config_and_workdir(lambda: stored, None, str(tmp_path)) == (stored, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None),
        (["--workdir=a"], "a"),
        (["--workdir", "a"], "a"),
        (["-workdir=a=b"], "a=b"),
        (["--workdir=a", "--mode=embed", "--workdir=b"], "b"),
        (["--workdir"], None),
        (["--workdirs=a", "workdir=a"], None),
    ],
)
def test_an_option_is_found_before_the_others_are_defined(arguments, value):
    assert cli.given(["main.py", *arguments], "workdir") == value


def overridden(monkeypatch, folder, *options):
    """The config that main.py sees with --workdir alone and these options."""
    arguments = ["main.py", f"--workdir={folder}", *options]
    monkeypatch.setattr(sys, "argv", arguments)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder", flag_values=values)
    config = stored.read_config(folder)
    cli.define_stored(config, values)
    cli.parse(values, arguments)
    return values.config


def test_single_options_change_the_config_of_a_workdir(monkeypatch, tmp_path):
    """Numbers, tables where numbers were, and tables as JSON stores them."""
    c = tiny.config(losses__triplet__weight=((0.0, 0.0), (1.0, 2.0)))
    stored.claim(tmp_path, c, tiny.SPEC)
    config = overridden(
        monkeypatch,
        tmp_path,
        "--config.data.name=folder/camera",
        "--config.data.image_size=(16,8)",
        "--config.losses.triplet.weight=0.5",
        "--config.losses.id.weight=((0,1),(1,0))",
    )
    configs.check(config)
    assert config.data.name == "folder/camera"
    assert tuple(config.data.image_size) == (16, 8)
    assert config.losses.triplet.weight == 0.5
    assert config.losses.id.weight == ((0, 1), (1, 0))
    with pytest.raises(UserError, match=r"no option 'widht'. Did you mean width"):
        overridden(monkeypatch, tmp_path, "--config.model.widht=3")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (None, 0, ""),
        (UserError("The cat ate it."), 1, "main.py: The cat ate it.\n"),
        (UserError("No data.", exit_code=2), 2, "main.py: No data.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.npz"), 1, "main.py: The disk is full"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_errors_of_the_user_become_exit_codes(monkeypatch, capsys, error, code, sentence):
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py"])

    def main():
        if error:
            raise error

    assert cli.guarded(main) == code
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize("error", [ValueError("a bug"), PermissionError(errno.EACCES, "no")])
def test_errors_of_ours_are_one_sentence_that_names_the_file_of_the_traceback(
    error, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(cli.DETAILS, "folder", tmp_path)

    def main():
        raise error

    assert cli.guarded(main) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert type(error).__name__ in line
    assert f"in {__file__}, line " in line
    assert line.endswith(f"the traceback is in {tmp_path / 'details.log'}.")
    text = (tmp_path / "details.log").read_text()
    assert "Traceback (most recent call last)" in text
    assert "raise error" in text


@pytest.mark.parametrize(
    ("path", "level", "text", "shown"),
    [
        ("/x/facenet_jax/train.py", logging.INFO, "step 3", True),
        ("/x/orbax/save.py", logging.INFO, "saving", False),
        ("/x/orbax/save.py", logging.WARNING, "careful", False),
        ("/x/jax/bridge.py", logging.WARNING, "no GPU", True),
        ("<string>", logging.WARNING, "careful", True),
    ],
)
def test_the_log_is_about_this_project(path, level, text, shown):
    record = logging.LogRecord("absl", level, path, 1, text, None, None)
    assert cli.OwnLines().filter(record) == shown


SENTENCES = (
    (2, "Give an experiment: python main.py --config configs/demo.py", []),
    (2, "no.py does not exist", ["--config=configs/no.py", "--workdir=RUN"]),
    (2, "model.pretrained is not set", [f"--config={CONFIGS / 'wmveid863.py'}", "--workdir=RUN"]),
    (
        2,
        "--config.data.root",
        [f"--config={CONFIGS / 'wmveid863.py'}", "--config.model.pretrained=none", "--workdir=RUN"],
    ),
    (
        1,
        "cannot be written (Not a directory)",
        [f"--config={tiny.__file__}", "--workdir=FILE/x"],
    ),
    (
        1,
        "holds no checkpoint; train first",
        [f"--config={tiny.__file__}", "--mode=evaluate", "--workdir=RUN"],
    ),
    (2, "no option 'widht'. Did you mean width?", ["--config.model.widht=3", "--workdir=OLD"]),
    (1, "There is no folder", ["--mode=embed", "--workdir=RUN"]),
)
"""(exit code, part of the sentence, options) of main.py."""

START = """
import json, os, sys
from facenet_jax import commands
from facenet_jax.commands import run
for number, options in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{sys.argv[2]}/{number}", os.O_CREAT | os.O_WRONLY), 2)
        sys.argv = ["main.py", *options]
        os._exit(commands.main(options))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""main.py with each of many command lines: it imports once, and a copy of it runs for each."""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """(exit code, what it wrote to stderr) of each of SENTENCES."""
    folder = tmp_path_factory.mktemp("main")
    (folder / "file").write_text("")
    (folder / "old").mkdir()
    shutil.copy(OLD, folder / "old")
    places = {"FILE": folder / "file", "OLD": folder / "old", "RUN": folder / "run"}
    lines = json.dumps([options for *_, options in SENTENCES])
    for name, path in places.items():
        lines = lines.replace(f"--workdir={name}", f"--workdir={path}")
    done = subprocess.run(
        [sys.executable, "-c", START, lines, folder],
        env=tiny.environment(),
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not places["RUN"].exists()  # a refused start leaves nothing behind
    codes = map(int, done.stdout.split())
    return [(code, (folder / str(i)).read_text()) for i, code in enumerate(codes)]


@pytest.mark.parametrize("number", range(len(SENTENCES)))
def test_main_says_one_sentence_and_its_exit_code(said, number):
    code, sentence, _ = SENTENCES[number]
    found, text = said[number]
    assert found == code, text
    (line,) = text.splitlines()
    assert line.startswith("main.py: ")
    assert sentence in line


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("configs/demo.py", "demo"),
        ("configs/mun/demo.py", "mun-demo"),
        ("/a/configs/mun/demo.py:idc", "mun-demo-idc"),
        ("my_research/mine.py:x", "mine-x"),
    ],
)
def test_runs_of_different_configs_have_different_folders(file, name):
    assert cli.run_name(file) == name


def test_a_config_that_is_no_python_is_one_sentence(tmp_path):
    said = r"no Python: invalid syntax in mine\.py, line 2\.$"
    with pytest.raises(UserError, match=said), cli.explained():
        compile("x = 1\ndef get_config(:\n", "mine.py", "exec")


def test_a_config_that_fails_is_one_sentence_with_its_line(tmp_path):
    """Not the traceback that ml_collections puts into its error."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import demo\n\n\ndef get_config():\n    c = demo.get_config()\n"
        "    c.train.shard_state = True\n    return c\n"
    )
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    with pytest.raises(UserError) as refusal, cli.explained():
        values(["main.py", f"--config={file}"])
    text = str(refusal.value)
    assert f"The config file fails in line 6 of {file}: TypeError" in text
    assert "shard_state" in text
    assert "Traceback" not in text
