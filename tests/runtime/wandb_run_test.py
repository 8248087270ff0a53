"""A run on wandb, against a module that stands for the package."""

import json
import sys
import types

import pytest

from data_tfds.errors import UserError
from facenet_jax.runtime import wandb_run, writers
from facenet_jax.runtime.writers import Writer
from tests.support import tiny_run as tiny

CONFIG = {"seed": 3, "train": {"wandb_project": "vehicles"}}


class Run:
    """What wandb.init returns: keeps what it is told."""

    def __init__(self):
        self.logged, self.summary, self.ends = [], {}, []

    def log(self, values, step=None):
        self.logged.append((step, values))

    def finish(self, exit_code):
        self.ends.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    """The package, with the keywords of each `init` and the run of each."""
    module = types.ModuleType("wandb")
    module.started, module.runs = [], []

    def init(**keywords):
        module.started.append(keywords)
        module.runs.append(Run())
        return module.runs[-1]

    module.init = init
    module.Image = lambda image, caption: (image, caption)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_scalars_go_to_wandb_by_step(wandb, tmp_path):
    (tmp_path / "a").mkdir()
    writer = Writer(tmp_path / "a", "wandb", CONFIG)
    writer.write(1, {"train/loss": 0.5})
    writer.write(2, {"test/mAP": 0.25})
    writer.flush()
    writer.results({"protocol": "p", "last": {"mAP": 0.25, "mINP": 0.125, "step": 2}})
    writer.close()
    (started,), (run,) = wandb.started, wandb.runs
    assert (started["project"], started["name"], started["config"]) == ("vehicles", "a", CONFIG)
    assert (started["resume"], started["dir"]) == ("allow", str(tmp_path / "a"))
    assert run.logged == [(1, {"train/loss": 0.5}), (2, {"test/mAP": 0.25})]
    assert run.summary == {"last/mAP": 0.25, "last/mINP": 0.125}
    assert run.ends == [0]
    assert len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "a" / "tensorboard").exists()


def test_a_run_that_goes_on_keeps_its_id_and_one_from_the_start_has_another(wandb, tmp_path):
    for resumed in (False, True, False):
        Writer(tmp_path, "wandb", CONFIG, resumed).close()
    first, second, third = (started["id"] for started in wandb.started)
    assert first == second != third
    for damaged in ("{", "[]", '{"id": 7}'):
        (tmp_path / wandb_run.FILE).write_text(damaged)
        Writer(tmp_path, "wandb", CONFIG, resumed=True).close()
        assert json.loads((tmp_path / wandb_run.FILE).read_text())["id"] not in ("", 7, third)


@pytest.mark.parametrize(("error", "ends"), [(UserError("no"), [1]), (tiny.Killed(), [])])
def test_a_run_that_failed_is_shown_as_such(wandb, tmp_path, error, ends):
    with pytest.raises(type(error)), Writer(tmp_path, "wandb", CONFIG):
        raise error
    assert wandb.runs[0].ends == ends


@pytest.mark.parametrize("names", ["tensorboard", "none"])
def test_wandb_is_not_imported_unless_it_is_named(monkeypatch, tmp_path, names):
    monkeypatch.setitem(sys.modules, "wandb", None)
    writers.refuse_missing(names)
    Writer(tmp_path, names).close()
    assert (tmp_path / "tensorboard").exists() == (names == "tensorboard")


@pytest.mark.parametrize("found", [None, types.ModuleType("wandb")], ids=["none", "a folder"])
def test_a_package_that_is_missing_is_one_sentence(monkeypatch, tmp_path, found):
    """Before anything of the run is done; a folder ./wandb is no package either."""
    monkeypatch.setitem(sys.modules, "wandb", found)
    c = tiny.config("three_stream", train__writers="tensorboard,wandb")
    c.data.root, c.data.prepared = str(tmp_path), str(tmp_path)
    with pytest.raises(UserError, match=r"not installed; install it with .*\[wandb\]") as error:
        tiny.train(c, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "config.json").exists()


def test_what_wandb_refuses_is_one_sentence(wandb, monkeypatch, tmp_path):
    def init(**keywords):
        raise RuntimeError("no api_key\nconfigured.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match=r"could not start \(no api_key configured\); log in"):
        Writer(tmp_path, "wandb", CONFIG)
    assert not (tmp_path / wandb_run.FILE).exists()


def test_a_training_is_one_run_also_where_it_was_stopped(wandb, tmp_path):
    """Every step once, the scores of the evaluation, and the result beside it."""
    c = tiny.config("three_stream", train__steps=6, train__writers="wandb")
    c.data.root, c.data.prepared = str(tiny.tree(tmp_path / "tree")), str(tmp_path / "prepared")
    assert tiny.train(c, tmp_path / "run", stop_at=1) is None
    result = tiny.train(c, tmp_path / "run")
    assert len({started["id"] for started in wandb.started}) == 1
    assert wandb.started[0]["config"]["optim"]["learning_rate"] == 0.02
    one, other = wandb.runs
    losses = [step for run in wandb.runs for step, row in run.logged if "train/loss" in row]
    assert losses == list(range(1, 7))
    assert [row["test/mAP"] for _, row in other.logged if "test/mAP" in row] == [
        result["last"]["mAP"]
    ]
    assert other.summary["last/mAP"] == result["last"]["mAP"]
    assert (one.ends, other.ends) == ([0], [0])
