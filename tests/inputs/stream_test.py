"""A streamed run is the resident run, to the last bit."""

import dataclasses
import functools
import pickle

import jax
import numpy as np
import pytest

from facenet_jax import run as runs
from facenet_jax.inputs import stream
from facenet_jax.inputs.device import DeviceSplit
from facenet_jax.inputs.stream import Batches, OnDisk, OnDiskSplit, open_reader
from tests.support import tiny_run as tiny


@functools.cache
def trainer(devices):
    """With all that draws per sample; of the baseline, which compiles quicker."""
    c = tiny.config("three_stream", augment__erase=0.5, model__drop_path=0.3)
    return tiny.Trainer(c, devices)


def on_disk(data: DeviceSplit, folder) -> OnDiskSplit:
    """The images of a split in two files, as query and gallery are, the labels where they were."""
    images = []
    for m, whole in enumerate(data.images):
        for i, rows in enumerate((slice(0, 11), slice(11, None))):
            np.save(folder / f"{m}-{i}.npy", whole[rows])
        images.append(tuple(np.load(folder / f"{m}-{i}.npy", mmap_mode="r") for i in range(2)))
    return OnDiskSplit(dataclasses.replace(data, images=()), tuple(images))


def run(devices, data, counts, workers=0, start=0, state=None):
    """(state, losses of all steps) after dispatches of these lengths."""
    t = trainer(devices)
    state, losses = state or t.start(), []
    rows, length = np.asarray(t.schedule.rows), t.config.train.steps_per_dispatch
    chunk = t.chunk if isinstance(data, DeviceSplit) else streaming(devices)
    with open_reader(data, rows, length, t.mesh, workers=workers, start=start) as read:
        for count in counts:
            state, scalars = chunk(state, read(count), count)
            losses.append(np.asarray(scalars["loss"])[:count])
    return state, np.concatenate(losses)


@functools.cache
def streaming(devices):
    """The steps of a trainer, compiled for windows."""
    t = trainer(devices)
    labels = dataclasses.replace(t.data, images=())
    images = tuple((np.asarray(x),) for x in t.data.images)
    return runs.compile_step(t.run_, OnDiskSplit(labels, images))


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
    with open_reader(data, rows, 3, t.mesh) as read:
        window = read(2)
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


def test_no_image_travels_between_devices():
    text = streaming(4).compiled.as_text()
    moved = [
        line
        for line in text.splitlines()
        if "u8[" in line.split(" = ")[-1].split("(")[0]
        and any(name in line for name in ("all-gather", "all-to-all", "collective-permute"))
    ]
    assert not moved


def test_other_processes_get_a_place_in_a_file(tmp_path):
    """Not a copy; and the place is that of a view, deep in the file."""
    np.save(tmp_path / "a.npy", np.arange(3 * 50 * 4, dtype=np.uint8).reshape(150, 4))
    view = np.load(tmp_path / "a.npy", mmap_mode="r")[57:140][:, 2:]
    content = pickle.dumps(OnDisk(view))
    assert len(content) < 600
    again = pickle.loads(content).array
    np.testing.assert_array_equal(again, view)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(OnDisk(np.array(view)))).array, view)


def test_rows_count_on_from_one_split_to_the_next():
    images = np.arange(2 * 5, dtype=np.uint8).reshape(2, 5, 1, 1, 1)
    parts = [(of_modality[:2], of_modality[2:]) for of_modality in images]
    batches = Batches(parts, np.array([[[0, 4, 2], [1, 3, -1]]]))
    np.testing.assert_array_equal(batches[0][..., 0, 0, 0], [[0, 4, 2], [6, 8, 0]])


def test_modalities_may_have_different_numbers_of_images():
    """And parts of different lengths."""
    first, second = (np.arange(n, dtype=np.uint8)[:, None, None, None] for n in (3, 6))
    parts = [(first[:1], first[1:]), (second[:4], second[4:])]
    batches = Batches(parts, np.array([[[2, 0], [5, 3]], [[-1, 1], [0, -1]]]))
    np.testing.assert_array_equal(batches[0][..., 0, 0, 0], [[2, 0], [5, 3]])
    np.testing.assert_array_equal(batches[1][..., 0, 0, 0], [[0, 1], [0, 0]])


@pytest.mark.slow
def test_a_run_that_streams_by_itself_ends_as_a_resident_one(tmp_path):
    """Stopped while resident, then streamed by two processes for want of room, to the end."""
    c = tiny.config("three_stream", train__steps=12, data__prepared=str(tmp_path))
    c.data.root = str(tiny.tree(tmp_path / "tree"))
    assert tiny.train(c, tmp_path / "whole")
    assert tiny.train(c, tmp_path / "parts", stop_at=2) is None

    rest = tiny.main(
        f"--workdir={tmp_path / 'parts'}",
        "--config.data.max_memory_fraction=1e-9",
        "--config.data.workers=2",
        config="",  # the workdir remembers its own
    )
    assert rest.returncode == 0, rest.stderr
    assert "from step 6" in rest.stderr
    assert "more than 1e-07 % (config.data.max_memory_fraction)" in rest.stderr
    assert "leaked" not in rest.stderr
    for name in ("query", "gallery"):
        ours, theirs = (
            np.load(tmp_path / run / "embeddings" / f"{name}.npz")["embedding"]
            for run in ("parts", "whole")
        )
        np.testing.assert_array_equal(ours, theirs)
