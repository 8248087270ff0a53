"""README.md says what is there: its code runs; commands, options, files and links exist."""

import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

from facenet_jax import commands
from facenet_jax.runtime import script
from tests.support import tiny_run as tiny

README = (tiny.ROOT / "README.md").read_text()
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCED.findall(README)
PYTHON = [text for language, text in BLOCKS if language == "python"]
PROSE = FENCED.sub("", README)
CODE = re.findall(r"`([^`\n]+)`", PROSE)
"""What stands between backticks outside the fenced blocks."""

OURS = re.compile(r"facenet(?=\s)|python main\.py|python scripts/\w+\.py")
OPTION = re.compile(r"--[\w.]+")
PLACES = ("", "facenet_jax", "facenet_jax/commands")
"""Where a file is looked for that README names without its folder."""

TOP = ("configs", "data_tfds", "docs", "facenet_jax", "scripts", "tests")


def command_lines() -> list[str]:
    """Every command of this project in README, in a fenced block or between backticks."""
    fenced = "\n".join(text for language, text in BLOCKS if not language)
    lines = fenced.replace("\\\n", " ").splitlines() + CODE
    found = (line.partition(" #")[0].strip() for line in lines)
    return list(dict.fromkeys(line for line in found if OURS.match(line)))


def words(line: str) -> list[str]:
    """The words of a command without the brackets around what may be left out."""
    return shlex.split(re.sub(r"[\[\]]", "", line))


@functools.cache
def help_of(*line: str) -> str:
    """What `line --help` prints; `line` is facenet COMMAND or scripts/FILE.py, and its --config."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "path", [str(tiny.ROOT / "scripts"), *sys.path])
        patch.chdir(tiny.ROOT)
        with contextlib.suppress(SystemExit):
            if line[0] == "facenet":
                patch.setattr(sys, "argv", ["facenet"])
                commands.main([*line[1:], "--help"])
            else:
                # Not as __main__: some set up JAX there, which is done here already.
                patch.setattr(sys, "argv", [*line, "--help"])
                runpy.run_path(line[0])["main"]()
    return out.getvalue()


def options_in(text: str) -> set[str]:
    """The options that a help text or a command line has, without their values."""
    return set(OPTION.findall(text))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs/demo, a tiny network trained for a moment, and three images."""
    place = tmp_path_factory.mktemp("readme")
    (place / "runs").mkdir()
    tiny.trained(place, place / "runs" / "demo")
    for name, pixels in zip(("a.jpg", "a_n.png", "a_t.png"), tiny.pictures(1, 1)[0], strict=True):
        Image.fromarray(pixels[0]).save(place / name)
    return place


@pytest.mark.parametrize("text", PYTHON, ids=range(len(PYTHON)))
def test_python_runs(runs, monkeypatch, text):
    monkeypatch.chdir(runs)
    images = list(tiny.pictures(1, 2)[0][2])
    values = {"images": images, "others": np.random.default_rng(0).normal(size=(3, 48))}
    values["others"] = values["others"].astype(np.float32)
    exec(compile(text, "README.md", "exec"), values)
    assert values["embedding"].shape == (1, 48)
    assert values["thermal_only"].shape == (2, 16)


def test_there_is_something_to_check():
    assert len(PYTHON) >= 1
    assert len(command_lines()) > 30
    assert len(named_paths()) > 30


def problems(line: str) -> str:
    """What is wrong with a command of README; nothing where it and its options exist."""
    first, second, *rest = words(line)
    if first == "python" and second != "main.py":
        if not (tiny.ROOT / second).is_file():
            return f"no file {second}"
        text = help_of(second)
    else:
        rest = [second, *rest] if first == "facenet" else rest
        name = rest[0] if rest and not rest[0].startswith("-") else "train"
        if name not in commands.COMMANDS:
            return f"no command {name}"
        text = help_of("facenet", name, *recipe(rest))
    if not text:
        return "no help"
    unknown = options_in(line) - options_in(text) - {"--help", "--config.section.option"}
    return f"no option {', '.join(sorted(unknown))}" if unknown else ""


@pytest.mark.parametrize("line", command_lines())
def test_a_command_and_its_options_exist(line):
    assert not problems(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("facenet reprot DIR", "no command reprot"),
        ("facenet report DIR --otu=a", "no option --otu"),
        ("python main.py train --config configs/demo.py --config.data.rot=a", "no option --config"),
        ("python scripts/no.py", "no file scripts/no.py"),
        ("python scripts/scaling.py [--weak|--strong]", "no option --strong"),
    ],
)
def test_a_wrong_command_is_seen(line, said):
    assert problems(line).startswith(said)


def recipe(rest: list[str]) -> list[str]:
    """The --config of a command line, if it names a file of this checkout."""
    for before, word in zip(["", *rest], rest, strict=False):
        if before == "--config" and word.endswith(".py"):
            return [f"--config={word}"]
    return []


def test_every_option_named_alone_exists():
    """Such as `--config.data.name=folder/camera`: of some command, at FACENet's config."""
    known = set().union(*(options_in(help_of("facenet", name)) for name in commands.COMMANDS))
    loose = [code for code in CODE if code.startswith("--")]
    named = set().union(*map(options_in, loose)) - {"--config.section.option"}
    named |= {f"--{code}" for code in CODE if re.fullmatch(r"config\.\w+\.[\w.]+", code)}
    assert len(named) > 8
    assert not named - known


def test_every_extra_and_make_target_exists():
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"\.\[(\w+)\]", README))
    assert extras
    assert extras <= set(project["optional-dependencies"])
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert targets
    assert targets <= set(re.findall(r"^(\w+):", (tiny.ROOT / "Makefile").read_text(), re.M))


def named_paths() -> list[str]:
    """Files and folders of this repository that README names between backticks or in a command."""
    inside = [word for line in command_lines() for word in words(line)]
    found = []
    for code in [*CODE, *inside]:
        path = code.partition("=")[2] if code.startswith("--") else code
        path = re.sub(r":\w+$", "", path)
        ours = path.split("/")[0] in TOP or re.fullmatch(r"[\w/]+\.(py|md)", path)
        if ours and re.fullmatch(r"[\w./-]+", path):
            found.append(path)
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("path", named_paths())
def test_a_file_that_is_named_exists(path):
    assert any((tiny.ROOT / place / path).exists() for place in PLACES)


def recipes() -> list[str]:
    """The files that the table of systems names, also those by their name alone.

    A cell such as `configs/a.py`, `b`, each also `_c` stands for a, b, a_c and b_c.
    """
    found = []
    table = README.partition("## Systems")[2].partition("## What")[0]
    for row in (line for line in table.splitlines() if line.startswith("| ")):
        for cell in row.split("|"):
            codes = re.findall(r"`([^`]+)`", cell)
            if not codes or not codes[0].startswith("configs/"):
                continue
            folder, _, name = codes[0].rpartition("/")
            names = [name.partition(":")[0].removesuffix(".py")] if name else []
            for code in codes[1:]:
                plain = [code]
                if code.startswith("_"):
                    plain = [each + code for each in names]
                names += plain
            found += [f"{folder}/{each}.py" for each in names]
    return list(dict.fromkeys(found))


def test_every_recipe_of_the_table_exists():
    found = recipes()
    assert len(found) > 25
    assert not [path for path in found if not (tiny.ROOT / path).is_file()]


def test_the_row_of_a_table_that_is_named_exists():
    named = [code.split()[-1] for code in CODE if re.search(r"configs/\S+\.py:[a-z]", code)]
    assert named
    for path in named:
        script.load_config(path)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "page",
    [tiny.ROOT / "README.md", *sorted((tiny.ROOT / "docs").glob("*.md"))],
    ids=lambda x: x.name,
)
def test_every_link_resolves(page):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text()))
    for link in links:
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {slug(each) for each in headings}, link
