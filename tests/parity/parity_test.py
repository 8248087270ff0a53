"""The release's own numbers on golden/tiny, and that a wrong number is seen."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.parity import model as parity
from facenet_jax.parity.rows import Golden, compared
from scripts import check_parity

TINY = pathlib.Path(__file__).resolve().parents[1] / "golden" / "tiny"


@pytest.fixture(scope="module")
def rows():
    return check_parity.check(TINY)


def test_every_quantity_of_the_release_is_met(rows):
    assert [row for row in rows if row.status == "FAIL"] == []
    names = [row.name for row in rows]
    assert len(names) == len(set(names))
    recorded = set(np.load(TINY / "facenet_official_small.npz")) - {"images", "labels", "flare"}
    assert recorded <= set(names)
    for file in ("grad_norms", "param_norms_after_5_steps"):
        tensors = json.loads((TINY / f"{file}.json").read_text())
        kind = {"grad_norms": "gradient norm"}.get(file, "norm after the steps")
        assert sum(name.startswith(kind) for name in names) == len(tensors)
    absent = [row.name for row in rows if row.status == "absent"]
    assert absent == ["vit_timm_small", "lr_by_epoch.json", "components_official.npz"]


def test_the_table_folds_what_agrees_and_shows_what_does_not(rows):
    folded = check_parity.folded(rows)
    assert len(folded) < 50
    wrong = dataclasses.replace(rows[100], name="gradient norm base.cls_token", status="FAIL")
    text = check_parity.table(check_parity.folded([*rows, wrong]))
    assert "gradient norm base.cls_token" in text
    assert len(text.splitlines()) == len(folded) + 2


@pytest.fixture(scope="module")
def twin(rows):  # after rows, so that one compilation serves both
    return parity.Twin(Golden(TINY), check_parity.recipes())


def test_a_changed_weight_or_reference_fails(twin, monkeypatch):
    golden = Golden(TINY)
    changed = dict(twin.arrays)
    changed["embedding_flare_mixed"] = changed["embedding_flare_mixed"] + 1e-3
    monkeypatch.setattr(twin, "arrays", changed)
    with jax.default_matmul_precision("highest"):
        failed = [r.name for r in parity.forward_rows(twin, golden) if r.status == "FAIL"]
    assert failed == ["embedding_flare_mixed"]


def test_gradients_are_held_to_the_reference_both_ways(twin):
    zero = jax.tree.map(np.zeros_like, twin.variables["params"])
    reference = {"base.cls_token": 1.0, "b1.1.bias": None, "base.pos_embed": 0.0, "fc": None}
    statuses = {
        row.name: row.status
        for row in parity.gradient_rows(twin, zero, reference)
        if "not in the reference" not in row.name
    }
    assert statuses == {
        "gradient norm base.cls_token": "FAIL",
        "gradient norm b1.1.bias (none)": "ok",
        "gradient norm base.pos_embed": "ok",
        "gradient norm fc (none)": "ok",
    }
    one = jax.tree.map(np.ones_like, twin.variables["params"])
    row = list(parity.gradient_rows(twin, one, reference))[1]
    assert (row.name, row.status) == ("gradient norm b1.1.bias (none)", "FAIL")


@pytest.mark.parametrize(
    ("ours", "reference", "status"),
    [
        ([1.0, 2.0], [1.0, 2.00003], "ok"),
        ([1.0, 2.0], [1.0, 2.00005], "FAIL"),
        ([1.0, np.nan], [1.0, 2.0], "FAIL"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "FAIL"),
        (0.0, 0.0, "ok"),
        (1e-4, 0.0, "FAIL"),
    ],
)
def test_rows_judge_by_the_largest_reference(ours, reference, status):
    assert compared("x", ours, reference, 2e-5).status == status


def test_unusable_directories_are_sentences(tmp_path):
    with pytest.raises(UserError, match=r"has no meta\.json"):
        check_parity.main(["--golden", str(tmp_path)])
    shutil.copytree(TINY, tmp_path / "tiny")
    (tmp_path / "tiny" / "meta.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        check_parity.check(tmp_path / "tiny")
    meta = json.loads((TINY / "meta.json").read_text()) | {"recipe": "unknown"}
    (tmp_path / "tiny" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="'unknown'; known are wmveid863"):
        check_parity.check(tmp_path / "tiny")


def test_the_parts_match_where_the_shared_directory_is(shared):
    from facenet_jax.parity.parts import part_rows

    with jax.default_matmul_precision("highest"):
        found = list(part_rows(Golden(shared / "golden"), check_parity.recipes()))
    assert [row.name for row in found if row.status != "ok"] == []
    assert len(found) > 30
