"""Tables of runs: their configs, what is run again and what is not, and what they say."""

import json

import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import commands, train
from facenet_jax.lab import Row, Table, runs, scores, summary, tables
from facenet_jax.retrieval.intervals import paired
from tests.support import tiny_run as tiny

BASE = "tests/support/tiny_run.py"


def a_table() -> Table:
    after = {"model.neck_feature": "after"}
    rows = (
        Row("plain", argument="three_stream", published=(1.0, 2.0)),
        Row("after", argument="three_stream", scored=after),
        Row("slow", {"optim.learning_rate": 0.01}, "three_stream", against="after"),
    )
    return Table("Tiny", BASE, rows)


def jobs(tmp_path, seeds=(0, 1)):
    return runs.jobs(a_table(), tmp_path, seeds, "whole", tables.Start(data="somewhere"))


def finish(job, seed):
    """Write the files of a finished run: random precisions; returns them."""
    rng = np.random.default_rng(seed)
    precision = rng.random(12)
    precision[3] = np.nan
    flare = np.zeros((12, 3), bool)
    flare[:4, 0] = flare[2:6, 1] = True
    arrays = {
        "average_precision": precision,
        "first": np.where(np.isnan(precision), np.nan, 1.0 + np.arange(12) % 2),
        "identity": np.arange(12) // 3,
        "flare": flare,
        "modalities": np.array(tiny.MODALITIES),
    }
    file = scores.path(job.folder, job.row.scored, scores.WHOLE)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    scores.listed(job.folder, job.row.scored, "whole").write_text(json.dumps([scores.WHOLE]))
    return arrays


@pytest.mark.parametrize("name", tables.names())
def test_every_row_of_our_tables_is_a_legal_config(name):
    table = tables.find(name)
    published = {}
    for row in table.rows:
        digest = runs.digest(tables.config_of(table, row, 3, tables.Start()))
        same = published.setdefault((digest, str(row.scored)), row.published)
        assert same == row.published, "one run, and two published scores"


def test_the_flare_table_shares_runs_between_ways_of_matching():
    table = tables.find("configs/tables/flare.py")
    found = {}
    for row in table.rows:
        config = tables.config_of(table, row, 0, tables.Start())
        found.setdefault(runs.digest(config), []).append(row.name)
    assert [len(names) for names in found.values()] == [12, 12, 2, 2, 2, 2]


def test_rows_change_the_config_and_seeds_go_one_after_the_other(tmp_path):
    found = jobs(tmp_path)
    assert [(job.row.name, job.seed) for job in found[:4]] == [
        ("plain", 0),
        ("after", 0),
        ("slow", 0),
        ("plain", 1),
    ]
    plain, after, slow, again = found[:4]
    assert plain.folder == after.folder != slow.folder
    assert plain.folder != again.folder
    assert (slow.config.optim.learning_rate, slow.config.data.root) == (0.01, "somewhere")
    assert runs.digest(plain.config) == runs.digest(again.config)


def test_what_is_finished_is_not_run_again_and_a_failure_is_said(tmp_path, monkeypatch):
    found, called, said = jobs(tmp_path, (0,)), [], []
    finish(found[0], 0)

    def run(command, check):
        called.append(command[3:])
        job = found[len(called)]
        if job.row.name != "slow":
            finish(job, 1)
        return type("Done", (), {"returncode": 3})()

    monkeypatch.setattr(runs.subprocess, "run", run)
    with pytest.raises(UserError, match=r"'after' with seed 0 .* exit code 3"):
        runs.run_all(found, said.append)
    assert len(called) == 1
    assert called[0][0] == str(found[1].folder)
    assert json.loads(called[0][1]) == {"model.neck_feature": "after"}
    assert said[0].endswith("finished before")
    assert (found[1].folder / "config.json").exists()


def test_summary_is_that_of_the_queries_written_out(tmp_path):
    found = jobs(tmp_path)
    arrays = {(job.row.name, job.seed): finish(job, n) for n, job in enumerate(found)}
    said = summary.summary(a_table(), found, draws=50)
    plain, after, slow = (row["scores"]["all"] for row in said["rows"])
    valid = [q for q in range(12) if q != 3]

    def precisions(name, rows):
        return np.stack([arrays[name, s]["average_precision"][rows] for s in (0, 1)])

    expected = precisions("plain", valid)
    assert plain["all"]["mAP"] == pytest.approx(expected.mean())
    assert plain["all"]["deviation"] == pytest.approx(expected.mean(1).std(ddof=1))
    assert "gain" not in plain["all"]
    both = [2]  # row 3 has no match
    assert plain["flared visible + near_infrared"]["queries"] == len(both)
    assert plain["flared visible"]["mAP"] == pytest.approx(precisions("plain", [0, 1]).mean())
    assert plain["clean"]["mAP"] == pytest.approx(precisions("plain", range(6, 12)).mean())
    identity = np.arange(12)[valid] // 3
    gain = paired(precisions("slow", valid), precisions("after", valid), identity, draws=50)
    assert [slow["all"][k] for k in ("gain", "gain_low", "gain_high")] == pytest.approx(list(gain))
    assert after["all"]["gain"] == pytest.approx(
        (precisions("after", valid) - precisions("plain", valid)).mean()
    )
    lines = summary.markdown(said).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| plain | plain | 0, 1 |")
    assert lines[2].endswith("| 1.0 / 2.0 |")
    assert "published: 1.0 / 2.0" in summary.text(said)


def test_a_row_without_runs_is_said_to_have_none(tmp_path):
    found = jobs(tmp_path, (0,))
    finish(found[0], 0)
    said = summary.summary(a_table(), found, draws=10)
    assert [bool(row["scores"]) for row in said["rows"]] == [True, False, False]
    assert "slow (against after), no seed finished" in summary.text(said)


def test_runs_of_other_queries_are_refused(tmp_path):
    found = jobs(tmp_path, (0,))
    finish(found[0], 0)
    finish(found[1], 0)
    file = scores.path(found[1].folder, found[1].row.scored, scores.WHOLE)
    np.savez(file, **{**np.load(file), "identity": np.arange(12)})
    with pytest.raises(UserError, match="different queries"):
        summary.summary(a_table(), found, draws=10)


def test_a_run_is_trained_once_and_scored_in_both_ways(tmp_path, monkeypatch):
    """In this process, on arrays: the scores are those of evaluation."""
    from facenet_jax import run

    data = tiny.dataset()
    keep = run.open_run

    def open_run(config, **rest):
        return keep(config, load=lambda options, training: data, **rest)

    for module in (train, scores):
        monkeypatch.setattr(module, "open_run", open_run)
    monkeypatch.setattr(runs.compile_cache, "use", lambda folder: None)
    start = tables.Start()
    table = Table(
        "Tiny",
        BASE,
        tuple(
            Row(row.name, {**row.changes, "train.steps": 2}, row.argument, scored=row.scored)
            for row in a_table().rows[:2]
        ),
    )
    plain, after = runs.jobs(table, tmp_path, (0,), "whole", start)
    for job in (plain, after):
        runs.prepare(job)
        runs.one(job.folder, dict(job.row.scored), "whole")
        assert job.done
    result = json.loads((plain.folder / "result.json").read_text())
    own, other = summary.read(plain), summary.read(after)
    assert list(own) == ["all"]
    found = np.nanmean(own["all"]["average_precision"])
    assert found == pytest.approx(result["last"]["mAP"])
    assert not np.array_equal(
        own["all"]["average_precision"], other["all"]["average_precision"], equal_nan=True
    )


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("whole", ["all"]),
        ("some", ["all", "a", "b", "c", "a+b"]),
        ("every", ["all", "a", "b", "c", "a+b", "a+c", "b+c"]),
    ],
)
def test_subsets_of_the_modalities(which, expected):
    assert scores.subsets_of(("a", "b", "c"), which) == expected


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((), "needs rows"),
        ((Row("a"), Row("a")), "a name of its own"),
        ((Row("a,b"),), "comma"),
        ((Row("a"), Row("b", against="c")), "against 'c'"),
    ],
)
def test_tables_that_mean_nothing_are_refused(rows, words):
    with pytest.raises(UserError, match=words):
        Table("T", BASE, rows)


def test_a_change_that_does_not_fit_is_said():
    table = Table("T", BASE, (Row("odd", {"model.nothing": 1}),))
    with pytest.raises(UserError, match="no option 'nothing'"):
        tables.config_of(table, table.rows[0], 0, tables.Start())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["table", "no/1"], "There is no table no/1; the tables are ccnet/2"),
        (["table", "no.py"], "The table file no.py does not exist"),
        (["table", "facenet/3", "--rows", "some"], "has no row 'some'; it has baseline"),
        (["table", "configs/demo.py"], "has no function get_table()"),
        (["table", "facenet/3", "--report", "--out", "nowhere"], "No run of this table in nowhere"),
    ],
)
def test_wrong_command_lines_are_one_sentence(line, words, capsys):
    assert commands.main(line) in (1, 2)
    assert words in capsys.readouterr().err
