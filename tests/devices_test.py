"""The number of devices and processes changes no loss, and no activation travels between them."""

import functools
import math
import re
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
import tiny

from facenet_jax.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 10  # to compare; rounding errors grow from step to step
RUN = 60  # steps of the runs in processes of their own, which must last until a signal comes
PLAIN = ("loss", "loss_id", "loss_triplet", "loss_mc")
LOSSES = (*PLAIN, "loss_mask_kl")


@functools.cache
def trainer(devices):
    """Drop path and augmentation are on; random erasing too, which draws the most."""
    return tiny.Trainer(tiny.config(augment__erase=0.5, model__drop_path=0.3), devices)


@functools.cache
def losses(devices):
    return trainer(devices).run(STEPS)[1]


def assert_close(others, ours, names=LOSSES):
    """Losses within 1e-5 of each other, relative to the total, which every term is a summand of."""
    for name in names:
        error = np.abs(others[name] - ours[name]) / np.maximum(ours["loss"], 1e-3)
        assert error.max() < 1e-5, name


def test_eight_devices_give_the_losses_of_one():
    assert_close(losses(8), losses(1))


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    """Saved on eight devices after five steps, finished on one."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(5, trainer(8).run(5)[0])
    checkpoints.wait()
    state = checkpoints.restore(5, trainer(1).start())
    checkpoints.close()
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(state)} == {1}
    _, scalars = trainer(1).run(5, state)
    assert_close(scalars, {name: losses(1)[name][5:] for name in LOSSES})


def shapes(text, collective):
    """The shapes of all arrays that a kind of collective gives in a compiled program."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(f" {collective}")
        if right.startswith(("(", "-start(")) and " = " in left:
            dims = re.findall(r"\w+\[([\d,]*)\]", left.split(" = ")[1])
            found += [tuple(int(d) for d in dim.split(",") if d) for dim in dims]
    return found


def test_only_features_and_logits_are_gathered():
    """An all-gather of images, tokens or parameters would be larger than any of these."""
    run = trainer(8)
    text = run.chunk.lower(run.start(), run.data, run.schedule, run.count(3)).compile().as_text()
    batch = run.schedule.rows.shape[-1]
    width = run.config.model.width
    largest = 3 * batch * max(width, tiny.IDENTITIES)
    gathered = shapes(text, "all-gather")
    assert gathered, "no all-gather at all: does the triplet loss see the whole batch?"
    assert max(math.prod(shape) for shape in gathered) <= largest, gathered
    assert not shapes(text, "all-to-all")
    # What is summed are gradients, each once, and a few scalars and statistics.
    parameters = [leaf.size for leaf in jax.tree.leaves(run.start().params)]
    reduced = [math.prod(shape) for shape in shapes(text, "all-reduce")]
    assert max(reduced) <= max(parameters)
    assert 0.9 * sum(parameters) < sum(reduced) < 1.1 * sum(parameters)


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
        # Half the network compiles in half the time; the tests above have the whole of it.
        "--config.model.mfmp.enabled=False",
        "--config.model.flare_heads=False",
        "--config.losses.mask_kl=0",
    ]


def by_name(folder):
    """The losses of the first steps."""
    lines = [line for line in tiny.metrics(folder) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, RUN + 1))
    return {name: np.array([line[f"train/{name}"] for line in lines[:STEPS]]) for name in PLAIN}


def start_pair(place):
    """Two processes of two devices each, on one run."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    several = [f"--coordinator=localhost:{port}", "--processes=2"]
    return [
        subprocess.Popen(
            tiny.command(*options(place, "two"), *several, f"--process_id={i}"),
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


def test_two_processes_train_as_one_and_stop_together(place):
    """SIGTERM to one of them stops both at one step; started again they finish the run."""
    one = tiny.main(*options(place, "one"))
    assert one.returncode == 0, one.stderr

    pair, lines = start_pair(place), place / "two" / "metrics.jsonl"
    while not lines.exists() or lines.read_bytes().count(b"\n") < 4:
        assert all(process.poll() is None for process in pair), finish_pair(pair)
        time.sleep(0.005)
    pair[1].send_signal(signal.SIGTERM)
    first, second = finish_pair(pair)
    left = Checkpoints(place / "two" / "checkpoints").latest()
    assert 4 < left < RUN
    assert f"saved step {left}" in first
    assert "saved step" not in second  # only process 0 speaks
    assert not (place / "two" / "result.json").exists()

    first, _ = finish_pair(start_pair(place))
    assert f"from step {left}" in first
    assert_close(by_name(place / "two"), by_name(place / "one"), PLAIN)
    assert (place / "two" / "result.json").exists()
    assert Checkpoints(place / "two" / "checkpoints").latest() == RUN
