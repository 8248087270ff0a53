"""The cross-modal sampler: its law, a function of seed and epoch, and what it refuses."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.arrays import split_of
from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.inputs.device import gather
from facenet_jax.inputs.sampler import make_plan
from facenet_jax.run import on_devices
from facenet_jax.runtime.mesh import make_mesh

COUNTS = {3: (5, 2), 8: (1, 7), 20: (9, 3), 21: (4, 4), 50: (2, 0)}
"""Visible and infrared images of each identity; the last has no infrared one."""

VISIBLE, INFRARED = (sum(each[m] for each in COUNTS.values()) for m in (0, 1))


def unaligned():
    """One image a sample; every pixel of an image is its own number, from 1."""
    identity = [one for m in (0, 1) for one, counts in COUNTS.items() for _ in range(counts[m])]
    order = np.random.default_rng(0).permutation(len(identity))
    rows = np.full((2, len(identity)), -1)
    rows[0, :VISIBLE] = np.arange(VISIBLE)
    rows[1, VISIBLE:] = np.arange(INFRARED)
    images = {
        name: np.tile(first + np.arange(n, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 3))
        for name, n, first in (("visible", VISIBLE, 1), ("infrared", INFRARED, 101))
    }
    return split_of(images, np.array(identity)[order], rows=rows[:, order])


def plan(split, *, seed=5, p=3, k=2, epochs=40, steps=0):
    options = {"identities_per_batch": p, "samples_per_identity": k}
    return make_plan(
        {"name": "cross_modal"}, split, seed=seed, options=options, epochs=epochs, steps=steps
    )


def identities(split, rows):
    """The identity of every image of the plan, [S, M, B]."""
    found = []
    for own, row in zip(rows.swapaxes(0, 1), split.rows, strict=True):
        of_image = np.zeros(row.max() + 1, int)
        of_image[row[row >= 0]] = split.identity[row >= 0]
        found.append(of_image[own])
    return np.stack(found, axis=1)


def test_batches_follow_their_law():
    split = unaligned()
    made = plan(split)
    batches = VISIBLE // 6 + 1  # visible has the most images
    assert made.rows.shape == (40 * batches, 2, 6)
    assert made.rows.dtype == made.epoch.dtype == np.int32
    np.testing.assert_array_equal(made.epoch, np.repeat(np.arange(1, 41), batches))
    assert (made.rows >= 0).all()
    found = identities(split, made.rows)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    groups = found[:, 0].reshape(-1, 3, 2)
    assert (groups == groups[:, :, :1]).all()
    assert all(len(set(batch)) == 3 for batch in groups[:, :, 0])
    assert set(found.ravel()) == {3, 8, 20, 21}
    drawn, count = np.unique(groups[:, :, 0], return_counts=True)
    assert dict(zip(drawn, count, strict=True)).keys() == {3, 8, 20, 21}
    assert count.min() > 0.75 * 40 * batches * 3 / 4
    single = made.rows[:, 0][found[:, 0] == 8]
    assert len(set(single)) == 1  # drawn with replacement from its one visible image
    assert len(set(made.rows[:, 1].ravel())) == INFRARED


def test_the_order_is_a_function_of_seed_and_epoch():
    split = unaligned()
    made = plan(split)
    np.testing.assert_array_equal(plan(split).rows, made.rows)
    assert (plan(split, seed=6).rows != made.rows).any()
    short = plan(split, epochs=3)
    np.testing.assert_array_equal(short.rows, made.rows[: len(short.rows)])
    cut = plan(split, steps=10)
    np.testing.assert_array_equal(cut.rows, made.rows[:10])
    np.testing.assert_array_equal(cut.epoch, made.epoch[:10])
    first, second = (made.rows[made.epoch == epoch] for epoch in (1, 2))
    assert (first != second).any()


def test_too_few_identities_with_every_modality_is_a_sentence():
    with pytest.raises(UserError, match=r"4 identities with images of all.*= 5 distinct"):
        plan(unaligned(), p=5)
    with pytest.raises(UserError, match="must be 'pk' or 'cross_modal', or the import path"):
        make_plan({"name": "no_such"}, unaligned(), seed=0, options={}, epochs=1, steps=0)


def test_an_aligned_set_can_be_taken_apart():
    identity = np.repeat([1, 2, 3], 4)
    images = {m: np.zeros((12, 2, 2, 3), np.uint8) for m in ("visible", "infrared")}
    split = split_of(images, identity)
    made = plan(split, p=2, k=3, epochs=5)
    found = identities(split, made.rows)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    assert (made.rows[:, 0] != made.rows[:, 1]).any()


def test_the_devices_see_whole_batches():
    split = unaligned()
    made = plan(split, p=4, epochs=1)  # eight columns for the eight devices of the tests
    dataset = Dataset("mine", split.modalities, {"train": split}, Protocol("mine/none"))
    run = types.SimpleNamespace(plan=made, dataset=dataset, mesh=make_mesh(), streams=False)
    data, rows = on_devices(run, split, read=made.rows)
    assert not data.missing
    assert (rows < 0).sum() == len(split)
    assert on_devices(run, split)[0].missing
    found = identities(split, made.rows)
    read = jax.jit(functools.partial(gather, mesh=run.mesh))
    images, batch = read(data, jnp.asarray(made.rows[0]), jnp.int32(0))
    numbers = np.unique(split.identity, return_inverse=True)[1]
    numbered = dict(zip(split.identity.tolist(), numbers.tolist(), strict=True))
    assert batch.identity.tolist() == [numbered[each] for each in found[0, 0].tolist()]
    np.testing.assert_array_equal(images[0, :, 0, 0, 0], made.rows[0, 0] + 1)
    np.testing.assert_array_equal(images[1, :, 0, 0, 0], made.rows[0, 1] + 101)
    assert batch.present is None
