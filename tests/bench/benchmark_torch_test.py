import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import run as runs
from facenet_jax.bench.alternate import Worker
from facenet_jax.runtime import cli
from scripts import benchmark_torch
from tests.support import tiny_run as tiny


def main(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["benchmark_torch.py", *options])
    return cli.guarded(benchmark_torch.main)


def test_a_missing_torch_is_one_sentence(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    assert main(monkeypatch, "--config=tests/support/tiny_run.py") == 2
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


def test_a_config_is_needed(monkeypatch, capsys):
    assert main(monkeypatch, "--config=none.py") == 2
    assert "none.py does not exist" in capsys.readouterr().err


def test_both_sides_see_the_same_batches_rates_and_weights():
    c = tiny.config(data__name="msvr310")
    c.losses.triplet.weight = ((0.0, 0.0), (0.5, 1.0), (1.0, 1.0))
    first, second = (benchmark_torch.arrays(c, 10) for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    steps = (10 + benchmark_torch.WARM_UP) * c.train.steps_per_dispatch
    assert first["rows"].shape == (steps, 3, 8)
    assert first["weights"].shape == (steps, 4)
    np.testing.assert_allclose(first["weights"][[0, steps // 4 + 1], 1], [0, 0.5], atol=0.05)
    dataset, plan = benchmark_torch.inputs(c, 10)
    ours = runs.assemble(c, dataset, mesh=tiny.make_mesh(1), plan=plan)
    np.testing.assert_array_equal(ours.rates, first["rates"])
    np.testing.assert_array_equal(ours.plan.rows, first["rows"])
    assert ours.model.spec.identities == first["identities"] == 155


def test_only_our_own_worker_takes_memory_of_a_gpu():
    """JAX takes most of it once its backend is asked for anything, and the peer needs some."""
    program = (
        "import benchmark_torch\n"
        "from facenet_jax import config as configs\n"
        "from jax._src import xla_bridge\n"
        "from tests.support import tiny_run as tiny\n"
        "c = tiny.config(data__name='msvr310')\n"
        "configs.check(c)\n"
        "benchmark_torch.arrays(c, 10)\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    paths = f"{tiny.ROOT}:{tiny.ROOT / 'scripts'}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=tiny.environment() | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n", done.stderr


class Counter:
    """A target that adds up."""

    def __init__(self, start):
        if start < 0:
            raise UserError("Too low.")
        self.sum = start

    def add(self, number):
        self.sum += number
        if self.sum > 100:
            sys.exit(7)
        return self.sum


@pytest.mark.slow  # three processes, each with JAX
def test_a_worker_keeps_its_state_between_calls():
    workers = [Worker("a", Counter, 1), Worker("b", Counter, 10)]
    assert [worker.ask("add", 1)[-1] for worker in workers] == [2, 11]
    assert [worker.ask("add", 1)[-1] for worker in workers] == [3, 12]
    assert workers[0].ask("add", 0)[0] < 1
    with pytest.raises(UserError, match=r"process of b ended with exit code 7"):
        workers[1].ask("add", 1000)
    workers[0].close()
    with pytest.raises(UserError, match="Too low"):
        Worker("c", Counter, -1)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "embed"])
def test_the_comparison(what, tmp_path):
    pytest.importorskip("torch", reason="PyTorch, the extra `bench`, is not installed")
    options = ["--config=tests/support/tiny_run.py", f"--what={what}", "--seconds=0", "--nocompile"]
    subprocess.run(
        [sys.executable, "scripts/benchmark_torch.py", *options, f"--json={tmp_path / 'r.json'}"],
        cwd=tiny.ROOT,
        check=True,
    )
    result = json.loads((tmp_path / "r.json").read_text())
    ours, theirs = (np.array(result[n]["seconds_per_step"]) for n in ("facenet_jax", "PyTorch"))
    assert len(ours) == len(theirs) == 10
    assert result["ratio"] == pytest.approx(np.median(theirs) / np.median(ours))
    assert result["embedding_difference"] < 1e-5
