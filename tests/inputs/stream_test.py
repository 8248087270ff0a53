"""A streamed run is the resident run, to the last bit."""

import dataclasses
import functools
import pickle
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from facenet_jax.inputs import stream
from facenet_jax.inputs.stream import Batches, OnDisk, Streamed, feed
from facenet_jax.step import Resident
from tests.support import tiny_run as tiny

pytestmark = pytest.mark.usefixtures("quick_compile")


@functools.cache
def trainer(devices):
    return tiny.Trainer(tiny.config(augment__erase=0.5, model__drop_path=0.3), devices)


def on_disk(data: Resident, folder) -> Streamed:
    """The images of a split in two files, as query and gallery are, the labels where they were."""
    images, parts = np.stack(data.images), []
    for i, rows in enumerate((slice(0, 11), slice(11, None))):
        np.save(folder / f"{i}.npy", images[:, rows])
        parts.append(np.load(folder / f"{i}.npy", mmap_mode="r"))
    return Streamed(dataclasses.replace(data, images=()), tuple(parts))


def run(devices, data, counts, workers=0, start=0, state=None):
    """(state, losses of all steps) after dispatches of these lengths."""
    t = trainer(devices)
    state, losses = state or t.start(), []
    rows, length = np.asarray(t.schedule.rows), t.config.train.steps_per_dispatch
    with feed(data, rows, length, t.mesh, workers=workers, start=start) as batches:
        for count in counts:
            state, scalars = t.chunk(state, batches(count), t.schedule, t.count(count))
            losses.append(np.asarray(scalars["loss"])[:count])
    return state, np.concatenate(losses)


@functools.cache
def resident(devices):
    return run(devices, trainer(devices).data, (3, 3, 1))


def assert_equal(ours, theirs):
    np.testing.assert_array_equal(ours[1], theirs[1])
    jax.tree.map(np.testing.assert_array_equal, ours[0], theirs[0])


@pytest.mark.parametrize("counts", [(3, 3, 1), (1, 2, 3, 1)])
@pytest.mark.parametrize("devices", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stream_gives_the_bits_of_the_resident_run(devices, counts, tmp_path):
    """One device by the last test below; here only at leisure."""
    data = on_disk(trainer(devices).data, tmp_path)
    assert_equal(run(devices, data, counts), resident(devices))


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_nothing(workers, tmp_path):
    data = on_disk(trainer(4).data, tmp_path)
    assert_equal(run(4, data, (3, 3, 1), workers=workers), resident(4))


def test_a_stream_goes_on_at_any_step(tmp_path):
    data = on_disk(trainer(4).data, tmp_path)
    state, _ = run(4, data, (3, 1))
    state, losses = run(4, data, (2, 1), start=4, state=state)
    np.testing.assert_array_equal(losses, resident(4)[1][4:])
    jax.tree.map(np.testing.assert_array_equal, state, resident(4)[0])


def test_images_in_a_stream_are_split_over_the_devices(tmp_path):
    t = trainer(4)
    rows = np.asarray(t.schedule.rows)
    data = on_disk(t.data, tmp_path)
    with feed(data, rows, 3, t.mesh) as batches:
        window = batches(2)
    assert window.images[0].shape == (3, 8, *tiny.SIZE, 3)
    assert {piece.data.shape[1] for piece in window.images[0].addressable_shards} == {2}
    like = stream.shapes(data, 3, 8, t.mesh)
    jax.tree.map(
        lambda a, b: (
            (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
            or pytest.fail("another shape")
        ),
        window,
        like,
    )


def test_no_image_travels_between_devices(tmp_path):
    t = trainer(4)
    like = stream.shapes(on_disk(t.data, tmp_path), 3, 8, t.mesh)
    text = t.chunk.lower(t.start(), like, t.schedule, t.count(3)).compile().as_text()
    moved = [
        line
        for line in text.splitlines()
        if "u8[" in line.split(" = ")[-1].split("(")[0]
        and any(name in line for name in ("all-gather", "all-to-all", "collective-permute"))
    ]
    assert not moved


def test_other_processes_get_a_place_in_a_file(tmp_path):
    """Not a copy; and the place is that of a view, deep in the file."""
    np.save(tmp_path / "a.npy", np.arange(3 * 50 * 4, dtype=np.uint8).reshape(3, 50, 4))
    view = np.load(tmp_path / "a.npy", mmap_mode="r")[1:, 7:40][:, 2:]
    content = pickle.dumps(OnDisk(view))
    assert len(content) < 600
    again = pickle.loads(content).array
    np.testing.assert_array_equal(again, view)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(OnDisk(np.array(view)))).array, view)


def test_rows_count_on_from_one_split_to_the_next():
    images = np.arange(2 * 5, dtype=np.uint8).reshape(2, 5, 1, 1, 1)
    batches = Batches((images[:, :2], images[:, 2:]), np.array([[[0, 4, 2], [1, 3, 3]]]))
    np.testing.assert_array_equal(batches[0][..., 0, 0, 0], [[0, 4, 2], [6, 8, 8]])


def test_a_run_that_streams_by_itself_ends_as_a_resident_one(tmp_path):
    """Stopped while resident, then streamed by two processes for want of room, to the end."""
    tiny.tree(tmp_path / "tree")

    def options(name, *more):
        return (
            f"--workdir={tmp_path / name}",
            f"--config.data.root={tmp_path / 'tree'}",
            f"--config.data.prepared={tmp_path}",
            "--config.train.steps=60",
            "--config.train.save_every_steps=1",  # slow enough for the signal
            # Half the network compiles in half the time; the tests above have the whole of it.
            "--config.model.mfmp.enabled=False",
            "--config.model.flare_heads=False",
            "--config.losses.mask_kl=0",
            *more,
        )

    whole = tiny.main(*options("whole"))
    assert whole.returncode == 0, whole.stderr
    assert "streamed" not in whole.stderr

    first = subprocess.Popen(
        tiny.command(*options("parts")), env=tiny.environment(), cwd=tiny.ROOT, stderr=-1, text=True
    )
    lines = tmp_path / "parts" / "metrics.jsonl"
    while not lines.exists() or lines.read_bytes().count(b"\n") < 4:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.005)
    first.send_signal(signal.SIGTERM)
    assert "Stopped by SIGTERM" in first.communicate(timeout=100)[1]

    more = ("--config.data.resident_share=1e-9", "--config.data.workers=2")
    rest = tiny.main(*options("parts", *more))
    assert rest.returncode == 0, rest.stderr
    assert "more than 1e-07 % (config.data.resident_share)" in rest.stderr
    assert "leaked" not in rest.stderr
    for name in ("query", "gallery"):
        ours, theirs = (
            np.load(tmp_path / run / "embeddings" / f"{name}.npz")["embedding"]
            for run in ("parts", "whole")
        )
        np.testing.assert_array_equal(ours, theirs)
