"""Whole runs, of main.py as a user starts it, or of what it calls where that is enough."""

import gc
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from data_tfds.errors import UserError
from facenet_jax import evaluate, stored
from facenet_jax.inputs.sampler import pk_samples
from facenet_jax.runtime import cli, workdir
from facenet_jax.runtime.checkpoint import Checkpoints
from facenet_jax.runtime.log import Log
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
    done = tiny.main(
        *options(place, "straight"), *LENGTH, "--config.evaluate.sanity_baselines=True"
    )
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
    clock = ("time", "perf/samples_per_second")
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


def test_killed_and_restarted_ends_with_the_same_bits(place, straight, log_lines):
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

    # The second start was a process of its own; the third is what main.py calls.
    tiny.train(stored.read_config(folder), folder)
    assert any(f"from step {left}" in line for line in log_lines)
    assert any("Compiled the training step" in line for line in log_lines)

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

    # Started once more it has nothing left to train, and writes its results again.
    log_lines.clear()
    (folder / "result.json").unlink()
    again = tiny.train(stored.read_config(folder), folder)
    assert any(f"from step {STEPS}" in line for line in log_lines)
    assert not any("Compiled the training step" in line for line in log_lines)
    assert again["last"] == last


def test_metrics_name_every_term_of_every_step(straight):
    lines = training_lines(straight)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        names = {f"train/{name}" for name in LOSSES}
        names |= {"train/learning_rate", "train/gradient_norm", "train/parameter_norm"}
        assert line.keys() == {"step"} | names
        assert np.isfinite(list(line.values())).all()
    assert all("perf/samples_per_second" in x for x in tiny.metrics(straight)[:-1])
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
    last_epoch = pk_samples(identity, seed=0, p=4, k=2, epochs=0, steps=STEPS)[1][-1]
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
        assert tuple(columns["modalities"]) == tiny.MODALITIES
        for label in ("identity", "camera", "scene"):
            assert (columns[label].shape, columns[label].dtype) == ((count,), np.dtype("int32"))
        assert set(columns["identity"]) == set(range(first, first + 4))
        assert (columns["flare"].shape, columns["flare"].dtype) == ((count, 3), np.dtype(bool))
        assert columns["flare"][:, :2].any()
        assert not columns["flare"][:, 2].any()  # thermal knows no flare
        assert all(
            f"{i:04d}" == x[:4] for i, x in zip(columns["identity"], columns["name"], strict=True)
        )


def test_config_and_environment_are_written(straight):
    config = json.loads((straight / "config.json").read_text())
    assert config["train"]["steps"] == STEPS
    spec = stored.read_spec(straight)
    assert (spec.modalities, spec.image_size) == (tiny.MODALITIES, tiny.SIZE)
    assert spec.identities == tiny.IDENTITIES
    environment = json.loads((straight / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["devices"] == ["cpu 0"]
    assert environment["command"][0].endswith("main.py")


def same_embeddings(ours, theirs):
    for name in ("query", "gallery"):
        with np.load(ours / f"{name}.npz") as new, np.load(theirs / f"{name}.npz") as old:
            assert sorted(new) == sorted(old)
            for column in old:
                np.testing.assert_array_equal(new[column], old[column])


@pytest.fixture
def copy(place, straight, tmp_path):
    """The workdir of the straight run without its results."""
    shutil.copytree(straight, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "embeddings")
    (tmp_path / "copy" / "result.json").unlink()
    return tmp_path / "copy"


@pytest.mark.slow  # the next one embeds and scores
def test_embed_reproduces_the_files_of_the_run(straight, copy):
    """Without --config: the workdir remembers it, and takes single changes."""
    before = {name: (copy / name).read_bytes() for name in ("config.json", "environment.json")}
    batch = "--config.evaluate.batch=4"
    done = tiny.main(f"--workdir={copy}", "--mode=embed", batch, config="")
    assert done.returncode == 0, done.stderr
    for name in ("query", "gallery"):
        with (
            np.load(copy / "embeddings" / f"{name}.npz") as new,
            np.load(straight / "embeddings" / f"{name}.npz") as old,
        ):
            assert sorted(new) == sorted(old)
            for column in set(old) - {"embedding"}:
                np.testing.assert_array_equal(new[column], old[column])
            # Another batch is another program, equal but for rounding.
            np.testing.assert_allclose(new["embedding"], old["embedding"], rtol=1e-4, atol=1e-5)
    assert {name: (copy / name).read_bytes() for name in before} == before
    command = json.loads((copy / "environment-embed.json").read_text())["command"]
    assert batch in command


def test_evaluate_reproduces_result_and_embeddings_of_the_run(straight, copy):
    before = {name: (copy / name).read_bytes() for name in ("config.json", "environment.json")}
    with tiny.on(1):
        evaluate.evaluate(stored.read_config(copy), copy)
    same_embeddings(copy / "embeddings", straight / "embeddings")
    new, old = (json.loads((x / "result.json").read_text()) for x in (copy, straight))
    assert new == old
    assert {name: (copy / name).read_bytes() for name in before} == before
    assert (copy / "environment-evaluate.json").exists()

    config = stored.read_config(copy)
    config.evaluate.centre = True
    with tiny.on(1):
        centred = evaluate.evaluate(config, copy)
    # What training scored by the other rule stands beside nothing of this one.
    scored = {name for name, x in centred.items() if isinstance(x, dict) and x.get("centred")}
    assert scored == {name for name, x in centred.items() if isinstance(x, dict)}
    assert "best_on_test" not in centred


@pytest.mark.slow  # tests/outside/door_test.py has a quick one
def test_a_workdir_is_scored_on_any_other_data_set(place, straight, copy):
    """Of other identities, without a training split; the results have a folder of their own."""
    before = {path.name: path.read_bytes() for path in copy.glob("*.json*")}
    done = tiny.main(
        f"--workdir={copy}",
        "--mode=evaluate",
        "--config.data.name=folder/camera",
        f"--config.data.root={tiny.folder(place / 'mine')}",
        config="",
    )
    assert done.returncode == 0, done.stderr
    folder = copy / "other_data" / "folder-camera-mine"
    assert f"The results on folder/camera go to {folder}" in done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["protocol"] == "folder/camera"
    assert (result["last"]["queries"], result["last"]["gallery"]) == (3, 6)
    assert result["last"]["step"] == STEPS
    assert result["best_in_training"]["gallery"] == 6  # scored again, on these data
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "data.json", "environment-evaluate.json", "result.json", "scores.json"),
        "embeddings",
    }
    with np.load(folder / "embeddings" / "gallery.npz") as file:
        assert set(file["identity"]) == {7, 8, 9}
    assert {path.name: path.read_bytes() for path in copy.glob("*.json*")} == before
    assert not (copy / "embeddings").exists()


def test_a_second_process_is_refused(place, straight):
    with workdir.locked(straight):
        done = tiny.main(*options(place, "straight"), *LENGTH)
    assert done.returncode == 1
    assert "is in use by process" in done.stderr.splitlines()[-1]


def test_other_images_in_the_place_of_the_old_are_refused_with_both_digests(place, straight):
    """Of training as of evaluation; nothing in the workdir changes."""
    other = shutil.copytree(place / "tree", place / "black")
    for path in (other / "train").rglob("*.jpg"):
        Image.new("RGB", tiny.SIZE[::-1]).save(path)
    before = {path.name: path.read_bytes() for path in straight.glob("*.json*")}
    known = json.loads(before["data.json"])["digests"]
    config = stored.read_config(straight)
    config.data.root = str(other)
    with pytest.raises(UserError) as refused:
        tiny.train(config, straight)
    sentence = str(refused.value)
    assert f"The data set is not the one that {straight} was trained and scored on" in sentence
    assert re.search(rf"train was {known['train']} and is [0-9a-f]{{32}} \(from ", sentence)
    assert "gallery was" not in sentence  # which is the same
    assert "set --config.data.changed=accept" in sentence
    assert {path.name: path.read_bytes() for path in straight.glob("*.json*")} == before


def test_the_same_files_at_another_place_are_the_same_data(place, copy, log_lines):
    """A run that has ended writes its results again, in its own folder, and knows the new root."""
    config = stored.read_config(copy)
    config.data.root = str(shutil.copytree(place / "tree", place / "moved"))
    with tiny.on(1):
        evaluate.evaluate(config, copy)
    assert (copy / "result.json").exists()
    assert not (copy / "other_data").exists()
    record = json.loads((copy / "data.json").read_text())
    assert (record["root"], record["earlier"]) == (config.data.root, [])


def test_another_config_is_refused(straight):
    config = stored.read_config(straight)
    config.optim.learning_rate, config.model.fce.mask = 0.5, "hard"
    with pytest.raises(UserError) as refused:
        tiny.train(config, straight)
    sentence = str(refused.value)
    assert "config.optim.learning_rate was 0.02 and is 0.5" in sentence
    assert "config.model.fce.mask was 'soft' and is 'hard'" in sentence
    assert "Choose another --workdir" in sentence


def test_another_model_is_not_evaluated(straight):
    config = stored.read_config(straight)
    config.model.fce.mask = "hard"
    with pytest.raises(UserError, match=r"mask was 'soft' and is 'hard'. Choose the --workdir of"):
        evaluate.evaluate(config, straight)
    assert not (straight / "environment-evaluate.json").exists()


def baseline(place, **changes):
    """The config of a run that compiles quickly."""
    c = tiny.config("three_stream", train__steps=STEPS, train__save_every_steps=5, **changes)
    c.data.root, c.data.prepared = str(place / "tree"), str(place / "prepared")
    return c


@pytest.mark.slow
def test_a_signal_between_a_step_and_its_evaluation_loses_no_score(place):
    """At each chunk in turn: the run that goes on evaluates what was due."""
    config = baseline(place, train__evaluate_every=1)
    config.train.steps = 12
    tiny.train(config, place / "undisturbed")
    expected = json.loads((place / "undisturbed" / "result.json").read_text())
    folder = place / "signals"
    while tiny.train(config, folder, stop_at=1) is None and not (folder / "result.json").exists():
        if Checkpoints(folder / "checkpoints").latest() == 12:
            tiny.train(config, folder)
    assert json.loads((folder / "result.json").read_text()) == expected
    scores = [
        [x for x in tiny.metrics(y) if "test/mAP" in x] for y in (folder, place / "undisturbed")
    ]
    one, other = ([(x["step"], x["test/mAP"]) for x in lines] for lines in scores)
    assert one == other


def test_an_infinite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(place):
    """The weight of the triplet loss explodes at step 31 of 60."""
    weight = ((0.0, 1.0), (0.49, 1.0), (0.51, 1e39))
    config, folder = baseline(place, losses__triplet__weight=weight), place / "infinite"
    with pytest.raises(UserError) as stopped:
        tiny.train(config, folder)
    sentence = str(stopped.value)
    assert sentence.startswith("loss, loss_triplet, gradient_norm, ")
    assert "at step 31; the last good checkpoint is kept" in sentence
    step, arrays = saved(folder)
    assert step == 30
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert not (folder / "result.json").exists()


def test_the_first_bad_step_and_its_terms_are_named():
    log = Log(np.ones(9, int), 8, None)
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


def test_the_line_of_progress_says_a_sum(log_lines):
    """What a person reads adds up: loss 1.500 = id 1.000 + mc 0.500."""
    log = Log(np.array([1, 1, 2]), 8, None)
    log.push(0, 2, {name: np.zeros(2) for name in ("loss", "loss_id", "loss_mc", "learning_rate")})
    last = {"loss": 1.5, "loss_id": 1.0, "loss_mc": 0.5, "learning_rate": 0.01}
    log.push(2, 1, {name: np.array([value]) for name, value in last.items()})
    log.flush()
    line = log_lines[-1]
    assert line.startswith("step 3/3  epoch 2  loss 1.500 = id 1.000 + mc 0.500  lr 0.01  ")
    assert " samples/s  0:00 left" in line


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_while_saving_is_one_sentence(place, capsys):
    """Every file is limited to less than a checkpoint needs, as on a disk that fills up."""
    folder, limits = place / "full", resource.getrlimit(resource.RLIMIT_FSIZE)
    least = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, least)
    jax.config.update(least, 1e9)  # half a program in the cache would harm other tests
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        code = cli.guarded(lambda: tiny.train(baseline(place), folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        jax.config.update(least, before)
    assert code == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert f"A checkpoint could not be written to {folder}" in sentence
    assert "File too large" in sentence
    assert "free space" in sentence
    assert Checkpoints(folder / "checkpoints").latest() is None
    gc.collect()  # the writes that Orbax gave up complain here and not in another test
