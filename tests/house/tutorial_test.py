"""docs/tutorial.ipynb runs from its first cell to its last, without Jupyter."""

import importlib.util
import json
import re

import pytest

from tests.support import tiny_run as tiny

PAGE = tiny.ROOT / "docs" / "tutorial.ipynb"
NOTEBOOK = json.loads(PAGE.read_text())


def cells(kind: str) -> list[str]:
    """The text of the cells of a kind."""
    return ["".join(x["source"]) for x in NOTEBOOK["cells"] if x["cell_type"] == kind]


def test_the_notebook_is_small_and_has_no_outputs():
    assert PAGE.stat().st_size < 20_000
    code = [x for x in NOTEBOOK["cells"] if x["cell_type"] == "code"]
    assert len(code) >= 6
    assert all(not x["outputs"] and x["execution_count"] is None for x in code)
    for link in re.findall(r"\]\(([^)#]+)\)", "".join(cells("markdown"))):
        assert (PAGE.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jinja2") is None, reason="needs .[report]")
def test_the_cells_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.tree(tmp_path / "photos")
    (tmp_path / "photos" / "test").rename(tmp_path / "photos" / "gallery")
    values = {"__name__": "tutorial"}
    for number, text in enumerate(cells("code")):
        exec(compile(text, f"cell {number}", "exec"), values)
    said = capsys.readouterr().out
    assert "train: 32 samples of 8 identities" in said
    assert re.search(r"mAP \d+\.\d % on \d+ queries", said)
    assert len(values["embeddings"]) == 12
    assert len(re.findall(r"^\d  .*\.jpg$", said, re.MULTILINE)) == 5
    assert (tmp_path / "runs" / "tutorial" / "report.html").stat().st_size > 10_000
