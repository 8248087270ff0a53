import json
import time

import jax
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import run as runs
from facenet_jax.commands import benchmark
from scripts import complexity
from tests.support import tiny_run as tiny

TINY = tiny.__file__


def test_parameters_are_those_of_the_network():
    """One block of width D: 12 D^2 + 13 D; MFMP 4 D^2 + 3 D; a neck D; a classifier D C."""
    width, patch, identities = 16, 8, 603
    block, norm = 12 * width**2 + 13 * width, 2 * width
    tokens = (3 * patch**2 + 1) * width + width + 9 * width  # patch, class token, position
    trunk, last = 3 * (tokens + block), 3 * (block + norm)
    mfmp = 2 * (4 * width**2 + width + norm)
    heads = 2 * (block + norm + width + 2 * width)
    row = complexity.counted(tiny.get_config())
    assert row["embedding_parameters"] == trunk + last + mfmp
    necks = 3 * (width + width * identities)
    assert row["parameters"] == trunk + last + mfmp + heads + necks
    by_part = row["by_part"]["parameters"]
    assert (by_part["trunk"], by_part["last"], by_part["mfmp"]) == (trunk, last, mfmp)
    for kind, parts in row["by_part"].items():
        assert sum(parts.values()) == row[kind], kind

    _, after = complexity.parameters(tiny.config(model__neck_feature="after"))
    assert after == row["embedding_parameters"] + 3 * width
    _, without = complexity.parameters(tiny.config(model__fce__enabled=False))
    assert without == trunk + last


@pytest.mark.slow
def test_every_config_has_a_row(capsys, tmp_path):
    # The suite refuses the promotion to float32 within attention.
    with jax.numpy_dtype_promotion("standard"):
        complexity.main([f"--json={tmp_path / 'rows.json'}"])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert list(rows) == complexity.CONFIGS
    full, baseline = rows["configs/wmveid863.py"], rows["configs/wmveid863_baseline.py"]
    np.testing.assert_allclose(full["training_flops"], 195.4e9, rtol=1e-3)
    assert all(full[name] > baseline[name] > 0 for name in full if name != "by_part")
    table = capsys.readouterr().out.splitlines()
    assert table[0].count("|") == table[2].count("|") == 6
    assert table[2].startswith("| wmveid863 | 277.")


@pytest.mark.slow
def test_measured_figures_come_from_the_benchmark(capsys, monkeypatch, tmp_path):
    asked, results = [], {}

    def in_this_process(file, what, options):
        asked.append((file, what, options))
        config = tiny.config(data__name="wmveid863", train__steps_per_dispatch=1)
        results[what] = benchmark.run_benchmark(config, benchmark.Options(what, 1, time.time()))
        return results[what]

    monkeypatch.setattr(complexity, "benchmark", in_this_process)
    monkeypatch.setattr(runs, "make_mesh", lambda: tiny.make_mesh(1))
    target = tmp_path / "rows.json"
    arguments = [TINY, "--measure", "--chunks=1", f"--json={target}", "--config.model.remat=full"]
    complexity.main(arguments)
    assert asked[0] == (TINY, "train", ["--chunks=1", "--config.model.remat=full"])
    assert [what for _, what, _ in asked] == ["train", "embed"]
    row = json.loads(target.read_text())[TINY]
    for what, name in (("train", "training"), ("embed", "embedding")):
        assert row[f"{name}_seconds"] == 1 / results[what]["rate"]
        assert row[f"{name}_memory"] == results[what]["memory"]["process_peak"]
    out = capsys.readouterr().out
    assert f"{1e3 * row['training_seconds']:.4g}" in out
    assert "batch 8 in training and 8 in embedding, memory of the process, cpu 0" in out


def test_an_option_that_changes_the_network_is_refused(monkeypatch):
    monkeypatch.setattr(
        complexity, "benchmark", lambda *_: {"flops_per_sample": 7, "memory": {}, "config": {}}
    )
    with pytest.raises(UserError, match="variant=S change the network"):
        complexity.main([TINY, "--measure", "--config.model.variant=S"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.py"], "nowhere.py does not exist"),
        ([TINY, "--chunk=3", "--steps_per_chunk=1"], "no option without --measure"),
    ],
)
def test_what_cannot_be_is_said(arguments, text):
    with pytest.raises(UserError, match=text):
        complexity.main(arguments)


def test_a_measurement_that_fails_is_an_error(capfd):
    with pytest.raises(UserError, match=r"benchmark\.py"):
        complexity.main([TINY, "--measure", "--config.model.dtype=int8"])
    assert "config.model.dtype is 'int8'" in capfd.readouterr().err
