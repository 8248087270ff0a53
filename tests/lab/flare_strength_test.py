"""The script that scores workdirs on sets of different flare: its figures, picture and refusals."""

import json

import flare_strength
import numpy as np
import pytest
from PIL import Image

IDENTITY = np.repeat(np.arange(4), 3)
FLARE = np.tile([[True, False], [False, False], [True, True]], (4, 1))


def arrays(shift: float) -> dict[str, np.ndarray]:
    precision = np.linspace(0.2, 0.8, 12) + shift
    return {
        "average_precision": precision,
        "identity": IDENTITY,
        "flare": FLARE,
        "modalities": np.array(["visible", "thermal"]),
    }


def test_gains_are_those_of_flared_queries_over_the_first_line(tmp_path, monkeypatch, capsys):
    shifts = {"a": (0.0, 0.1), "b": (-0.05, 0.02)}

    def of_workdir(workdir, root):
        extra = 0.01 * float(root)
        ways = zip(flare_strength.WAYS, shifts[workdir[0]], strict=True)
        return {way: arrays(shift - extra) for way, shift in ways}

    monkeypatch.setattr(flare_strength, "of_workdir", of_workdir)
    out = tmp_path / "figure.png"
    words = ["--sets", "0.3=3", "0.1=1", "--runs", "A=a0,a1", "B=b0,b1", "--out", str(out)]
    assert flare_strength.main(words) == 0
    lines = json.loads(out.with_suffix(".json").read_text())
    assert list(lines) == ["A", "A, completed", "B", "B, completed"]
    assert [point["strength"] for point in lines["A"]] == [0.1, 0.3]
    for name, gain in zip(lines, (0.0, 0.1, -0.05, 0.02), strict=True):
        for point in lines[name]:
            assert point["queries"] == 8
            values = [point[key] for key in ("gain", "low", "high")]
            np.testing.assert_allclose(values, gain, atol=1e-12)
    flared = np.linspace(0.2, 0.8, 12)[FLARE.any(1)].mean()
    assert lines["A"][1]["mAP"] == pytest.approx(flared - 0.03)
    with Image.open(out) as picture:
        assert picture.width > 500
    assert "0.1 A, completed: mAP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sets", "runs", "words"),
    [
        (["data/rendered"], ["A=a"], "--sets data/rendered must be NAME=VALUE"),
        (["weak=x"], ["A=a"], "weak of a set must be a number"),
        (["0.1=x"], ["A=a,b", "B=c"], "as many workdirs"),
        (["0.1=x", "0.10=y"], ["A=a"], "a strength of its own"),
        (["0.1=x"], ["A=a", "A=b"], "each name once"),
    ],
)
def test_what_does_not_fit_is_one_sentence(sets, runs, words, capsys, tmp_path):
    out = str(tmp_path / "x.png")
    assert flare_strength.main(["--sets", *sets, "--runs", *runs, "--out", out]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.svg", "no_folder/x.png"])
def test_a_picture_that_cannot_be_written_is_refused_first(name, capsys, tmp_path):
    words = ["--sets", "0.1=x", "--runs", "A=a", "--out", str(tmp_path / name)]
    assert flare_strength.main(words) == 2
    assert "must be a .png in a folder that exists" in capsys.readouterr().err
