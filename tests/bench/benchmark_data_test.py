"""The benchmark of the data side runs, on a size that measures nothing."""

import json

import pytest

from scripts import benchmark_data


@pytest.mark.parametrize(
    ("what", "sides", "array"),
    [
        pytest.param(
            "prepare",
            ("bare_seconds", "ours_seconds", "next_start_seconds (goal 3)"),
            24 * 3 * 256 * 128 * 3,
            marks=pytest.mark.slow,
        ),
        ("rank", ("product_seconds", "whole_seconds"), None),
        ("msmt17", ("seconds",), None),
    ],
)
def test_every_benchmark_runs_small(what, sides, array, tmp_path, capsys):
    path = tmp_path / "figures.json"
    options = ["--what", what, "--small", "--rounds", "1", "--json", str(path)]
    assert benchmark_data.main(options) == 0
    figures = json.loads(path.read_text())
    for side in sides:
        assert len(figures[side]) == 1
    assert figures.get("array_bytes") == array
    peaks = [value for name, value in figures.items() if name.startswith("peak_bytes")]
    assert all(50e6 < peak < 5e9 for peak in peaks)
    shown = capsys.readouterr().out
    assert all(name in shown for name in figures)
