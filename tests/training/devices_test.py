"""The number of devices and processes changes no loss, and no activation travels between them."""

import dataclasses
import functools
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from facenet_jax import step
from facenet_jax.bench import collectives as program
from facenet_jax.inputs import augment
from facenet_jax.inputs.device import gather
from facenet_jax.losses.identity import hardest
from facenet_jax.runtime import mesh
from facenet_jax.runtime.checkpoint import Checkpoints
from tests.support import tiny_run as tiny

STEPS = 10  # to compare; rounding errors grow from step to step
RUN = 60  # steps of the runs in processes of their own, which must last until a signal comes
PLAIN = ("loss", "loss_id", "loss_triplet")  # of the baseline
LOSSES = (*PLAIN, "loss_mc", "loss_mask_kl")


CASES = [(8, False), pytest.param(2, False, marks=pytest.mark.slow), (4, True)]
"""Devices, and whether the state is divided; eight have one sample each."""
DIVIDED = {"train__shard_state": "always", "train__shard_above": 256}


@functools.cache
def trainer(devices, divided=False):
    """Drop path and augmentation are on; random erasing too, which draws the most."""
    more = DIVIDED if divided else {}
    config = tiny.config(augment__erase=0.5, model__drop_path=0.3, **more)
    return tiny.Trainer(config, devices)


@functools.cache
def run(devices, divided=False):
    """(state, losses) after the steps that are compared."""
    return trainer(devices, divided).run(STEPS)


def assert_close(others, ours, names=LOSSES):
    """Losses within 1e-5 of each other, relative to the total, which every term is a summand of."""
    for name in names:
        error = np.abs(others[name] - ours[name]) / np.maximum(ours["loss"], 1e-3)
        assert error.max() < 1e-5, name


@pytest.mark.parametrize(
    ("devices", "divided"),
    [*CASES[:2], pytest.param(4, True, marks=pytest.mark.slow)],
)
def test_any_number_of_devices_gives_the_losses_of_one(devices, divided):
    """And the running statistics of BatchNorm, which are those of the whole batch."""
    (state, losses), (one, expected) = run(devices, divided), run(1)
    assert_close(losses, expected)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (state.collections, one.collections)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(("devices", "divided"), CASES[1:])
def test_any_number_of_devices_mines_the_same_triplets(devices, divided):
    """And gives the same embeddings, from one state."""
    mined, embedded = mine(devices, divided), extract(devices, divided)
    jax.tree.map(np.testing.assert_array_equal, mined, mine(1))
    np.testing.assert_allclose(embedded, extract(1), rtol=1e-5, atol=1e-6)


@functools.cache
def mine(devices, divided=False):
    """The hardest samples in each modality of a training batch split over the devices."""
    t = trainer(devices, divided)

    def mined(state):
        images, batch = gather(t.data, t.schedule.rows[3], 3, t.mesh)
        batch = dataclasses.replace(batch, images=augment.normalise(images))
        key = jax.random.key(0)
        outputs, _ = t.model.apply(state.variables, batch, train=True, progress=0.0, key=key)
        return {name: hardest(x, batch.identity) for name, x in outputs.features.items()}

    return jax.tree.map(np.asarray, jax.jit(mined)(t.start()))


@functools.cache
def extract(devices, divided=False):
    t = trainer(devices, divided)
    state = t.start()
    variables = mesh.replicated(state.variables, t.mesh)
    rows = np.tile(np.arange(16, dtype=np.int32), (3, 1))
    embed = step.make_extract(t.model, t.mesh, tiny.MODALITIES)
    return np.asarray(embed(variables, t.data, rows, rows[0] < 15))


def test_a_divided_state_is_divided():
    """All large arrays, those of the optimiser too."""
    state, _ = run(4, divided=True)
    for leaf in jax.tree.leaves(state):
        pieces = 4 if leaf.size >= 256 else 1
        assert leaf.addressable_shards[0].data.size == leaf.size // pieces, leaf.shape
    # Along the inputs of a kernel, never along the stacked modalities or layers.
    assert state.params["trunk"]["blocks"]["fc1"]["kernel"].sharding.spec == P(None, None, "data")


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, False), (1, False)), ((4, True), (8, False)), ((8, False), (4, True))],
)
def test_a_run_goes_on_with_another_number_of_devices(before, after, tmp_path):
    """Saved after five steps, finished on fewer devices or more, divided or not."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(5, trainer(*before).run(5)[0])
    checkpoints.wait()
    state = checkpoints.restore(5, trainer(*after).start())
    checkpoints.close()
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(state)} == {after[0]}
    _, scalars = trainer(*after).run(5, state)
    assert_close(scalars, {name: run(1)[1][name][5:] for name in LOSSES})


def moved(devices, divided):
    """({kind: sizes}, sizes of the parameters, the largest feature or logit) of a training step."""
    t = trainer(devices, divided)
    found = program.collectives(t.program.compiled.as_text())
    sizes = {kind: [x.size for x in found if x.kind == kind] for kind in program.KINDS}
    parameters = [leaf.size for leaf in jax.tree.leaves(t.start().params)]
    batch = t.schedule.rows.shape[-1]
    return sizes, parameters, 3 * batch * max(t.config.model.width, tiny.IDENTITIES)


def test_only_features_and_logits_are_gathered():
    """An all-gather of images, tokens or parameters would be larger than any of these."""
    sizes, parameters, largest = moved(8, divided=False)
    assert sizes["all-gather"], "no all-gather at all: does the triplet loss see the whole batch?"
    assert max(sizes["all-gather"]) <= largest
    assert not sizes["all-to-all"]
    assert not sizes["collective-permute"]
    # What is summed are gradients and a few scalars and statistics. A kernel that multiplies class
    # token and patches apart has a gradient of each, and CPU's partitioner sums both: 1.36 times
    # the parameters here. docs/scaling.md says what that costs.
    reduced = sizes["all-reduce"]
    assert max(reduced) <= max(parameters)
    assert 0.9 * sum(parameters) < sum(reduced) < 1.4 * sum(parameters)


@pytest.mark.slow  # 40 s of compiling
def test_divided_parameters_are_gathered_and_no_activation_is():
    sizes, parameters, largest = moved(4, divided=True)
    large = sum(size for size in parameters if size >= 256)
    assert {size for size in sizes["all-gather"] if size > largest} <= set(parameters)
    assert sum(sizes["all-gather"]) < 1.1 * large + 24 * largest
    summed = sizes["all-reduce"] + [4 * size for size in sizes["reduce-scatter"]]
    assert 0.9 * sum(parameters) < sum(summed) < 1.4 * sum(parameters)  # as above
    assert max(summed) <= max(parameters)
    assert not sizes["all-to-all"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    tiny.tree(folder / "tree")
    return folder


def options(place, name):
    return [
        f"--workdir={place / name}",
        f"--config.data.root={place / 'tree'}",
        f"--config.data.prepared={place / 'prepared'}",
        f"--config.train.steps={RUN}",
        "--config.train.save_every_steps=2",  # slow enough for a signal, looked for once a second
    ]


def by_name(folder):
    """The losses of the first steps."""
    lines = [line for line in tiny.metrics(folder) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, RUN + 1))
    return {name: np.array([line[f"train/{name}"] for line in lines[:STEPS]]) for name in PLAIN}


def start_pair(place):
    """Two processes of two devices each, on one run; images stream and the state is divided."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    several = [f"--coordinator=localhost:{port}", "--processes=2"]
    several += ["--config.data.resident=never", "--config.train.shard_state=always"]
    several += ["--config.train.shard_above=256"]
    return [
        subprocess.Popen(
            tiny.command(
                *options(place, "two"), *several, f"--process_id={i}", config=tiny.BASELINE
            ),
            env=tiny.environment(devices=2),
            cwd=tiny.ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def finish_pair(pair):
    """What both said, after they ended well."""
    errors = [process.communicate(timeout=200)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    return errors


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_together(place):
    """SIGTERM to one of them stops both at one step; started again they finish the run."""
    one = tiny.config("three_stream", train__steps=RUN)
    one.data.root, one.data.prepared = str(place / "tree"), str(place / "prepared")
    tiny.train(one, place / "one")

    pair, lines = start_pair(place), place / "two" / "metrics.jsonl"
    while not lines.exists() or lines.read_bytes().count(b"\n") < 4:
        assert all(process.poll() is None for process in pair), finish_pair(pair)
        time.sleep(0.005)
    pair[1].send_signal(signal.SIGTERM)
    first, second = finish_pair(pair)
    left = Checkpoints(place / "two" / "checkpoints").latest()
    assert 4 < left < RUN
    assert f"saved step {left}" in first
    assert "4 x cpu (parameters and optimiser divided over them)" in first
    assert "saved step" not in second  # only process 0 speaks
    assert not (place / "two" / "result.json").exists()

    first, _ = finish_pair(start_pair(place))
    assert f"from step {left}" in first
    assert_close(by_name(place / "two"), by_name(place / "one"), PLAIN)
    assert (place / "two" / "result.json").exists()
    assert Checkpoints(place / "two" / "checkpoints").latest() == RUN
