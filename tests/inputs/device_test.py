"""A split on the devices, and the batch at some of its rows."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facenet_jax import run as runs
from facenet_jax.inputs import device
from facenet_jax.inputs.device import gather, image_labels, in_tiles, tiled
from facenet_jax.inputs.stream import open_reader
from tests.support import tiny_run as tiny

COUNT = 6
MISSING = np.array([[0, 1, 2, -1, 3, 4], [-1, 0, 1, 2, 3, -1], [0, 1, 2, 3, 4, 5]], np.int32)
"""Samples of which some lack the visible or the near-infrared image."""


def split(rows=MISSING):
    """Six samples of six identities; every image has a grey value of its own."""
    count = rows.max(axis=1) + 1
    images = {
        modality: np.broadcast_to(
            (50 * m + 1 + np.arange(n, dtype=np.uint8))[:, None, None, None], (n, *tiny.SIZE, 3)
        )
        for m, (modality, n) in enumerate(zip(tiny.MODALITIES, count, strict=True))
    }
    return tiny.split(
        images,
        10 * np.arange(COUNT),
        rows,
        camera=np.arange(COUNT, dtype=np.int32) + 3,
        flare=np.arange(COUNT)[:, None] % np.array([2, 3, 6]) == 0,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["resident", "streamed"])
def run(request):
    c = tiny.config("three_stream", data__resident="never" if request.param else "always")
    return runs.assemble(c, tiny.dataset(), mesh=tiny.make_mesh(2))


def at(run, split, samples):
    """(images, batch) of some samples of a split, through the devices."""
    data, rows = runs.on_devices(run, split)
    rows = rows[:, samples]
    with open_reader(data, rows[None], 1, run.mesh) as read:
        take = jax.jit(lambda data, rows: gather(data, rows, jnp.int32(0), run.mesh))
        return take(read(1), jnp.asarray(rows))


def test_a_batch_has_the_images_and_labels_of_its_samples(run):
    samples = np.array([3, 0, 5, 2])
    given = split()
    images, batch = at(run, given, samples)
    rows = MISSING[:, samples]
    np.testing.assert_array_equal(batch.present, rows >= 0)
    np.testing.assert_array_equal(batch.identity, samples)  # numbered from 0
    for m, modality in enumerate(tiny.MODALITIES):
        there = rows[m] >= 0
        np.testing.assert_array_equal(images[m][there], given.images[modality][rows[m][there]])
        assert not np.asarray(images[m][~there]).any()  # black
        np.testing.assert_array_equal(batch.labels["camera"][m][there], samples[there] + 3)
        np.testing.assert_array_equal(
            batch.labels["flare"][m][there], given.labels["flare"][samples[there], m]
        )


def test_without_a_missing_image_nothing_is_said_of_presence(run):
    images, batch = at(run, split(np.tile(np.arange(COUNT, dtype=np.int32), (3, 1))), [1, 4])
    assert batch.present is None
    np.testing.assert_array_equal(images[1, :, 0, 0, 0], [52, 55])


def test_a_sample_that_lacks_its_first_image_keeps_its_identity(run):
    """It is read from the first image that is there."""
    rows = MISSING.copy()
    rows[1, 3] = -1
    rows[1] = np.where(rows[1] > 2, rows[1] - 1, rows[1])
    _, batch = at(run, split(rows), np.array([3, 3, 1, 1]))
    np.testing.assert_array_equal(batch.identity, [3, 3, 1, 1])


def test_modalities_may_have_orders_of_their_own(run):
    """As in a set that is not aligned: image n of a modality is not that of sample n."""
    rows = np.stack([np.arange(COUNT), np.arange(COUNT)[::-1], np.roll(np.arange(COUNT), 2)])
    samples = np.array([0, 1, 4, 5])
    images, batch = at(run, split(rows.astype(np.int32)), samples)
    np.testing.assert_array_equal(images[:, :, 0, 0, 0], rows[:, samples] + [[1], [51], [101]])
    np.testing.assert_array_equal(batch.labels["camera"], np.tile(samples + 3, (3, 1)))


def test_labels_of_a_sample_become_those_of_its_images():
    given = split()
    np.testing.assert_array_equal(image_labels(given, given.labels["camera"], 0), [3, 4, 5, 7, 8])
    flare = image_labels(given, given.labels["flare"], 1)
    np.testing.assert_array_equal(flare, given.labels["flare"][[1, 2, 3, 4], 1])


def test_splits_follow_one_another_and_share_their_numbers(run):
    """Query and gallery: identities are numbered over both, rows count on."""
    first, second = split(), dataclasses.replace(split(), identity=10 * np.arange(1, COUNT + 1))
    data, rows = runs.on_devices(run, first, second)
    assert rows.shape == (3, 2 * COUNT)
    np.testing.assert_array_equal(rows[:, :COUNT], MISSING)
    counts = MISSING.max(axis=1, keepdims=True) + 1
    np.testing.assert_array_equal(rows[:, COUNT:], np.where(MISSING < 0, -1, MISSING + counts))
    labels = data.labels if run.streams else data
    for m in range(3):
        identity = np.asarray(labels.identity[m])
        ours, theirs = MISSING[m][MISSING[m] >= 0], rows[m, COUNT:][rows[m, COUNT:] >= 0]
        np.testing.assert_array_equal(identity[ours], np.flatnonzero(MISSING[m] >= 0))
        np.testing.assert_array_equal(identity[theirs], np.flatnonzero(MISSING[m] >= 0) + 1)


def mesh_of(platform):
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((256, 128), None),
        ((128, 256), None),
        ((288, 144), (992, 128)),  # 972 filled up to whole tiles of 32
        ((32, 64), (48, 128)),  # 64 would be a third more
        ((252, 126), (768, 128)),
        ((5, 7), (1, 128)),
    ],
)
def test_a_tpu_keeps_images_in_tiles_whose_rows_it_cannot_take(size, expected):
    assert tiled(size, mesh_of("tpu")) == expected
    assert tiled(size, mesh_of("gpu")) is None
    if expected is None:
        return
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    kept = in_tiles(images, expected)
    assert kept.shape == (3, *expected)
    flat = kept.reshape(3, -1)
    length = size[0] * size[1] * 3
    np.testing.assert_array_equal(flat[:, :length], images.reshape(3, -1))
    assert not flat[:, length:].any()
    assert in_tiles(images[:0], expected).shape == (0, *expected)


def test_a_batch_out_of_tiles_has_the_same_images(monkeypatch):
    c = tiny.config("three_stream", data__resident="always")
    run = runs.assemble(c, tiny.dataset(), mesh=tiny.make_mesh(2))
    samples = np.array([3, 0, 5, 2])
    expected, _ = at(run, split(), samples)
    monkeypatch.setattr(device, "tiled", lambda size, mesh: tiled(size, mesh_of("tpu")))
    data, _ = runs.on_devices(run, split())
    assert data.images[0].ndim == 3
    images, batch = at(run, split(), samples)
    np.testing.assert_array_equal(images, expected)
    assert not np.all(batch.present)
