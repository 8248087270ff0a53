"""docs/first_hour.md prints what the program prints."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.support import tiny_run as tiny

PAGE = (tiny.ROOT / "docs" / "first_hour.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
STEPS = [step for block in BLOCKS for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
FACENET = """import sys
from facenet_jax import commands
sys.argv[0] = "facenet"
sys.exit(commands.main())"""


def test_the_page_has_commands():
    assert len(STEPS) >= 8


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.partition("\n")[0])
def test_the_page_shows_what_is_printed(step, tmp_path):
    """In an empty folder, as the recipes are found from anywhere."""
    line, _, said = step.partition("\n")
    name, *arguments = shlex.split(line)
    assert name == "facenet"
    done = subprocess.run(
        [sys.executable, "-c", FACENET, *arguments],
        cwd=tmp_path,
        env=tiny.environment() | {"PYTHONPATH": str(tiny.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.stdout.strip() == said.strip()
    assert (done.returncode == 0) == ("--help" in arguments)
