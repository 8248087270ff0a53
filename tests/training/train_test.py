"""Whole runs of main.py as a user starts them, in processes of their own."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from data_tfds.errors import UserError
from data_tfds.samples import BANDS
from facenet_jax import train
from facenet_jax.inputs import sampler
from facenet_jax.runtime import workdir
from facenet_jax.runtime.checkpoint import Checkpoints
from tests.support import tiny_run as tiny

STEPS = 60
LOSSES = ("loss", "loss_id", "loss_triplet", "loss_mask_kl", "loss_mc")
LENGTH = [f"--config.train.steps={STEPS}", "--config.train.save_every_steps=5"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set, and the options that name it."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.tree(folder / "tree")
    return folder


def options(place, name):
    return [
        f"--workdir={place / name}",
        f"--config.data.root={place / 'tree'}",
        f"--config.data.prepared={place / 'prepared'}",
    ]


@pytest.fixture(scope="module")
def straight(place):
    """The workdir of a run to the end without a break, evaluated on the way."""
    done = tiny.main(*options(place, "straight"), *LENGTH, "--config.evaluate.floors=True")
    assert done.returncode == 0, done.stderr
    return place / "straight"


def saved(folder, step=None):
    """(step, the arrays of its checkpoint, by path) of a workdir; the newest unless named."""
    checkpoints = Checkpoints(folder / "checkpoints")
    step = step or checkpoints.latest()
    tree = checkpoints.manager.restore(step, args=ocp.args.StandardRestore())
    checkpoints.close()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def training_lines(folder):
    """What metrics.jsonl says of the steps, without what depends on the clock."""
    clock = ("time", "perf/triplets_per_second")
    return [
        {name: value for name, value in line.items() if name not in clock}
        for line in tiny.metrics(folder)
        if "train/loss" in line
    ]


def start(place, name):
    return subprocess.Popen(
        tiny.command(*options(place, name), *LENGTH),
        env=tiny.environment(),
        cwd=tiny.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def signal_after(process, folder, lines, what):
    """Send a signal once metrics.jsonl has that many lines; (exit code, stderr)."""
    path, deadline = folder / "metrics.jsonl", time.time() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.stderr.read()
        assert time.time() < deadline
        time.sleep(0.002)
    process.send_signal(what)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_killed_and_restarted_ends_with_the_same_bits(place, straight):
    """SIGKILL at a random step, then SIGTERM at another, then to the end."""
    folder, moment = place / "broken", random.SystemRandom()
    first, second = moment.randint(2, 25), moment.randint(27, 40)

    code, errors = signal_after(start(place, "broken"), folder, first, signal.SIGKILL)
    assert code == -signal.SIGKILL, errors
    code, errors = signal_after(start(place, "broken"), folder, second, signal.SIGTERM)
    assert code == 0, errors
    left = Checkpoints(folder / "checkpoints").latest()
    assert second <= left < STEPS
    assert f"saved step {left}" in errors
    assert not (folder / "result.json").exists()

    done = tiny.main(*options(place, "broken"), *LENGTH)
    assert done.returncode == 0, done.stderr
    assert f"from step {left}" in done.stderr

    (step, parameters), (other_step, others) = saved(straight), saved(folder)
    assert step == other_step == STEPS, (first, second)
    assert parameters.keys() == others.keys()
    for name, value in parameters.items():
        np.testing.assert_array_equal(others[name], value, err_msg=f"{name} {first} {second}")
    assert training_lines(folder) == training_lines(straight)
    last, other_last = (
        json.loads((x / "result.json").read_text())["last"] for x in (straight, folder)
    )
    assert last == other_last

    again = tiny.main(*options(place, "broken"), *LENGTH)  # has nothing left to train
    assert again.returncode == 0, again.stderr
    assert f"from step {STEPS}" in again.stderr
    assert "Compiled the training step" not in again.stderr
    assert "Compiled the training step" in done.stderr


def test_metrics_name_every_term_of_every_step(straight):
    lines = training_lines(straight)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        names = {f"train/{name}" for name in LOSSES}
        names |= {"train/learning_rate", "train/gradient_norm", "train/parameter_norm"}
        assert line.keys() == {"step"} | names
        assert np.isfinite(list(line.values())).all()
    assert all("perf/triplets_per_second" in x for x in tiny.metrics(straight)[:-1])
    assert {"test/mAP", "test/R1"} <= tiny.metrics(straight)[-1].keys()


def test_event_files_have_the_same_scalars(straight):
    (path,) = (straight / "tensorboard").iterdir()
    read = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            read[event.step, value.tag] = value.tensor.float_val[0]
    for line in tiny.metrics(straight):
        for name, value in line.items():
            if name not in ("step", "time"):
                np.testing.assert_allclose(read[line["step"], name], value, rtol=1e-6)


def test_result_has_its_entries_and_ranges(straight):
    result = json.loads((straight / "result.json").read_text())
    assert result["protocol"] == "wmveid863/official"
    identity = np.repeat(np.arange(tiny.IDENTITIES), tiny.SAMPLES)
    last_epoch = sampler.pk_plan(identity, seed=0, p=4, k=2, epochs=0, steps=STEPS).epoch[-1]
    entries = {"last", "best_on_test", "untrained", "raw_pixels"}
    assert entries <= result.keys()
    for name, entry in result.items():
        if name == "protocol":
            continue
        assert entry["cmc"].keys() == {"1", "5", "10", "20"}
        for value in (entry["mAP"], entry["mINP"], *entry["cmc"].values()):
            assert 0 <= value <= 1
        assert list(entry["cmc"].values()) == sorted(entry["cmc"].values())
        assert (entry["queries"], entry["valid_queries"], entry["gallery"]) == (4, 4, 12)
        trained = name in ("last", "best_on_test")
        assert (entry["step"], entry["epoch"]) == ((STEPS, last_epoch) if trained else (0, 0))
    assert result["last"] == result["best_on_test"]  # the only evaluation was that of the end


def test_embeddings_have_their_schema(straight):
    for name, count, first in (("query", 4, 101), ("gallery", 12, 101)):
        with np.load(straight / "embeddings" / f"{name}.npz") as file:
            columns = dict(file)
        assert columns["embedding"].shape == (count, 48)
        assert columns["embedding"].dtype == np.float32
        norms = np.linalg.norm(columns["embedding"], axis=1)
        assert np.abs(norms - 1).min() > 1e-3  # as the network gives them, not normalised
        np.testing.assert_array_equal(columns["parts"], [[0, 16], [16, 32], [32, 48]])
        assert tuple(columns["modalities"]) == BANDS
        for label in ("identity", "camera", "scene"):
            assert (columns[label].shape, columns[label].dtype) == ((count,), np.dtype("int32"))
        assert set(columns["identity"]) == set(range(first, first + 4))
        assert (columns["flare"].shape, columns["flare"].dtype) == ((count, 2), np.dtype(bool))
        assert columns["flare"].any()
        assert all(
            f"{i:04d}" == x[:4] for i, x in zip(columns["identity"], columns["name"], strict=True)
        )


def test_config_and_environment_are_written(straight):
    config = json.loads((straight / "config.json").read_text())
    assert config["model"]["identities"] == tiny.IDENTITIES  # resolved
    assert config["train"]["steps"] == STEPS
    environment = json.loads((straight / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["devices"] == ["cpu 0"]
    assert environment["command"][0].endswith("main.py")


def test_evaluate_and_embed_reproduce_the_files_of_the_run(place, straight):
    """Without --config and without options: the workdir remembers both."""
    copy = place / "copy"
    shutil.copytree(straight, copy)
    shutil.rmtree(copy / "embeddings")
    (copy / "result.json").unlink()
    command = [x for x in tiny.command(f"--workdir={copy}") if not x.startswith("--config")]
    for mode, file in (("embed", "embeddings/gallery.npz"), ("evaluate", "result.json")):
        done = subprocess.run(
            [*command, f"--mode={mode}"],
            env=tiny.environment(),
            cwd=tiny.ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert (copy / file).exists()
        for name in ("query", "gallery"):
            with (
                np.load(copy / "embeddings" / f"{name}.npz") as new,
                np.load(straight / "embeddings" / f"{name}.npz") as old,
            ):
                assert sorted(new) == sorted(old)
                for column in old:
                    np.testing.assert_array_equal(new[column], old[column])
        shutil.rmtree(copy / "embeddings")
    new, old = (json.loads((x / "result.json").read_text()) for x in (copy, straight))
    assert new == old


def test_a_second_process_and_another_config_are_refused(place, straight):
    with workdir.locked(straight):
        done = tiny.main(*options(place, "straight"), *LENGTH)
    assert done.returncode == 1
    assert "is in use by process" in done.stderr.splitlines()[-1]

    changed = ["--config.optim.learning_rate=0.5", "--config.model.fce.mask=hard"]
    done = tiny.main(*options(place, "straight"), *LENGTH, *changed)
    assert done.returncode == 1
    sentence = done.stderr.splitlines()[-1]
    assert "config.optim.learning_rate was 0.02 and is 0.5" in sentence
    assert "config.model.fce.mask was 'soft' and is 'hard'" in sentence
    assert "Choose another --workdir" in sentence


def test_an_infinite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(place):
    """The weight of the triplet loss explodes at step 31 of 60. The baseline compiles faster."""
    changes = [
        "--config.losses.triplet=((0.0,1.0),(0.49,1.0),(0.51,1e39))",
        "--config.losses.mask_kl=0",
        "--config.model.flare_heads=False",
        "--config.model.mfmp.enabled=False",
        "--config.model.fce.enabled=False",
    ]
    done = tiny.main(*options(place, "infinite"), *LENGTH, *changes)
    assert done.returncode == 1
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("main.py: loss, gradient_norm, ")
    assert "at step 31; the last good checkpoint is kept" in sentence
    assert "Traceback" not in done.stderr
    step, arrays = saved(place / "infinite")
    assert step == 30
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert not (place / "infinite" / "result.json").exists()


class FakeRun:
    """What `train.Log` asks of a run."""

    plan = type("Plan", (), {"rows": np.zeros((9, 8)), "epoch": np.ones(9, int)})


def test_the_first_bad_step_and_its_terms_are_named():
    log = train.Log(FakeRun(), None)
    nan = float("nan")
    loss = np.array([1.0, nan, nan])
    scalars = {
        "gradient_norm": loss,
        "loss_triplet": np.array([1.0, 2.0, nan]),
        "loss_id": loss,
        "loss": loss,
    }
    log.push(3, 3, scalars)
    with pytest.raises(UserError, match=r"^loss_id, loss, gradient_norm became nan at step 5;"):
        log.flush()


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_full_disk_while_saving_is_one_sentence(place, straight):
    """Every file is limited to less than a checkpoint needs, as on a disk that fills up."""
    _, *arguments = tiny.command(*options(place, "full"), *LENGTH)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments],
        env=tiny.environment(),
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    (sentence,) = [x for x in done.stderr.splitlines() if x.startswith("main.py: ")] or [
        done.stderr
    ]
    assert f"A checkpoint could not be written to {place / 'full'}" in sentence
    assert "File too large" in sentence
    assert "free space" in sentence
    assert Checkpoints(place / "full" / "checkpoints").latest() is None
