"""Every promise of SECURITY.md and docs/reliability.md names a test that is there."""

import ast
import pathlib
import re

import pytest

from data_tfds.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = ("SECURITY.md", "docs/reliability.md")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_names_a_test_that_is_there(page):
    named = NAMED.findall((ROOT / page).read_text())
    assert len(named) > 8
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert name in {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}, (file, name)


def test_every_line_of_what_is_not_trusted_has_its_test():
    text = (ROOT / "SECURITY.md").read_text()
    table = text.partition("## Not trusted")[2].partition("## Trusted")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert rows
    assert all(NAMED.search(row) for row in rows)


def test_an_error_shows_no_codes_and_no_text_without_end():
    text = str(UserError(f"a\x1b[31m\n\0b {'x' * 10_000} c"))
    assert text.isprintable()
    assert len(text) < 200
    assert text.startswith("a\\x1b[31m\\n\\x00b xxx")
    assert text.endswith("x... c")
