import dataclasses
import time
import tracemalloc

import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.inputs.sampler import Plan, epoch_batches, make_plan, pk, pk_samples
from tests.support import tiny_run as tiny

SIZES = {3: 8, 40: 9, 7: 5, -2: 4, 11: 11, 90: 3, 12: 1}
"""Rows of each identity; 90 and 12 have fewer than K = 4."""
P, K = 3, 4


def labels(seed=0):
    """Labels in no order, each as often as SIZES says."""
    identity = np.repeat(list(SIZES), list(SIZES.values()))
    return np.random.default_rng(seed).permutation(identity)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Which samples make up each batch of a run."""

    rows: np.ndarray
    epoch: np.ndarray


def plan(identity, *, seed=5, epochs=20, steps=0, p=P, k=K):
    return Samples(*pk_samples(identity, seed=seed, p=p, k=k, epochs=epochs, steps=steps))


def test_every_batch_has_p_identities_of_k_rows_side_by_side():
    identity = labels()
    result = plan(identity)
    assert result.rows.dtype == result.epoch.dtype == np.int32
    groups = identity[result.rows].reshape(-1, P, K)
    assert (groups == groups[:, :, :1]).all()
    assert all(len(set(batch)) == P for batch in groups[:, :, 0])


def test_no_row_comes_twice_in_an_epoch_where_an_identity_has_enough():
    identity = labels()
    result = plan(identity)
    assert list(np.unique(result.epoch)) == list(range(1, 21))
    assert (np.diff(result.epoch) >= 0).all()
    drawn_often = set()
    for epoch in range(1, 21):
        rows = result.rows[result.epoch == epoch].ravel()
        count = np.bincount(rows, minlength=len(identity))
        for label, size in SIZES.items():
            mine = count[identity == label]
            if size >= K:
                assert mine.max() <= 1
                assert mine.sum() <= size // K * K  # the remainder is dropped
            else:
                assert mine.sum() in (0, K)  # one group, drawn with replacement
                drawn_often |= {label} if mine.max() > 1 else set()
    assert drawn_often == {90, 12}


def test_an_epoch_ends_when_fewer_than_p_identities_have_a_group_left():
    """Groups by label: 2, 2, 1, 1, 2, 1, 1, ten in all; three of them make a batch."""
    identity = labels()
    result = plan(identity)
    groups = {label: max(size // K, 1) for label, size in SIZES.items()}
    for epoch in range(1, 21):
        drawn = identity[result.rows[result.epoch == epoch][:, ::K]].ravel()
        left = [label for label, n in groups.items() if (drawn == label).sum() < n]
        assert len(left) < P


def test_all_rows_are_reached():
    identity = labels()
    assert set(plan(identity).rows.ravel()) == set(range(len(identity)))


def test_an_epoch_depends_on_seed_and_number_alone():
    """Epoch 3 alone, drawn by Philox with the key (seed, 3), is epoch 3 of the whole."""
    identity = labels()
    result = plan(identity)
    groups = [np.flatnonzero(identity == label) for label in np.unique(identity)]
    generator = np.random.Generator(np.random.Philox(key=[5, 3]))
    alone = epoch_batches(groups, generator, P, K)
    np.testing.assert_array_equal(result.rows[result.epoch == 3], alone)
    np.testing.assert_array_equal(plan(identity).rows, result.rows)
    assert not np.array_equal(result.rows[result.epoch == 4][: len(alone)], alone)
    other = plan(identity, seed=6)
    assert not np.array_equal(other.rows[:5], result.rows[:5])


def test_identities_are_drawn_evenly():
    """With one group each and P = 2 of 6, every identity opens a batch as often as any other."""
    identity = np.repeat(np.arange(6), 4)
    result = plan(identity, p=2, epochs=600)
    first = identity[result.rows[:: 6 // 2, 0]]  # the first of each epoch
    counts = np.bincount(first, minlength=6)
    assert len(first) == 600
    assert np.abs(counts - 100).max() < 4 * (600 * 1 / 6 * 5 / 6) ** 0.5


def test_steps_cut_the_plan_or_stretch_it():
    identity = labels()
    whole = plan(identity)
    for steps in (1, 7, len(whole.epoch) - 1):
        cut = plan(identity, steps=steps, epochs=1)
        np.testing.assert_array_equal(cut.rows, whole.rows[:steps])
        np.testing.assert_array_equal(cut.epoch, whole.epoch[:steps])
    assert len(plan(identity, steps=200, epochs=1).epoch) == 200


def test_labels_may_be_any_numbers_in_any_order():
    """Renaming the identities in an order-preserving way changes nothing."""
    identity = labels()
    _, renamed = np.unique(identity, return_inverse=True)
    np.testing.assert_array_equal(plan(identity).rows, plan(renamed * 1000 - 7).rows)


def test_too_few_identities_are_named():
    with pytest.raises(
        UserError, match=r"has 7 identities, but a batch .*identities_per_batch = 8"
    ):
        plan(labels(), p=8)
    assert len(plan(labels(), p=7, epochs=1).rows) == 1


OPTIONS = {"identities_per_batch": 2, "samples_per_identity": 2}


def split(rows):
    """Four identities of two samples, whose images stand at `rows` [M, N]."""
    names = (*tiny.MODALITIES, "infrared")[: len(rows)]
    images = {name: np.zeros((10, 4, 4, 3), np.uint8) for name in names}
    return tiny.split(images, np.arange(8) // 2, np.asarray(rows, np.int32))


def make(name, given, steps=20):
    return make_plan({"name": name}, given, seed=3, options=OPTIONS, epochs=0, steps=steps)


def test_a_sample_brings_all_the_images_it_has():
    """Whatever rows they have, and -1 for those it lacks."""
    given = split([[7, 6, 5, 4, 3, 2, 1, 0], [0, 1, -1, 2, 3, 4, 5, 6]])
    plan = make("pk", given)
    samples, epoch = pk_samples(given.identity, seed=3, p=2, k=2, epochs=0, steps=20)
    assert plan.rows.shape == (20, 2, 4)
    assert plan.batch == 4
    np.testing.assert_array_equal(plan.epoch, epoch)
    for step, chosen in enumerate(samples):
        np.testing.assert_array_equal(plan.rows[step], given.rows[:, chosen])
    assert (plan.rows == -1).any()


def backwards(split, *, seed, options, epochs, steps):
    """A sampler as a user writes it."""
    found = pk(split, seed=seed, options=options, epochs=epochs, steps=steps)
    return Plan(found.rows[::-1], found.epoch)


def beyond(split, **arguments):
    found = pk(split, **arguments)
    return Plan(found.rows + 5, found.epoch)


def one_modality(split, **arguments):
    found = pk(split, **arguments)
    return Plan(found.rows[:, :1], found.epoch)


def nothing(split, **arguments):
    found = pk(split, **arguments)
    return Plan(np.full_like(found.rows, -1), found.epoch)


COMPLETE = [np.arange(8)] * 2


def test_a_sampler_of_the_users_own_is_named_by_its_import_path():
    given = split(COMPLETE)
    own = make("tests.inputs.sampler_test.backwards", given)
    np.testing.assert_array_equal(own.rows, make("pk", given).rows[::-1])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kp", r"config.sampler.name is 'kp'; it must be 'pk' or 'cross_modal', or the import"),
        ("tests.inputs.sampler_test.COMPLETE", "it must be 'pk' or 'cross_modal', or the import"),
        ("tests.inputs.sampler_test.missing", r"config.sampler.name.*missing"),
        (
            "tests.inputs.sampler_test.beyond",
            r"names rows 5 to 12; the modalities have \[10, 10\] images",
        ),
        (
            "tests.inputs.sampler_test.one_modality",
            r"rows int32 \[20, 1, 4\] for 20 steps",
        ),
        ("tests.inputs.sampler_test.nothing", "a sample that has no image at all"),
    ],
)
def test_a_sampler_that_does_not_fit_is_named(name, words):
    with pytest.raises(UserError, match=words):
        make(name, split(COMPLETE))


@pytest.mark.parametrize(
    ("length", "words"),
    [
        ({"steps": 10**9, "epochs": 1}, r"config.train.steps is 1000000000; .* 500000 is the larg"),
        ({"steps": 0, "epochs": 10**9}, r"config.train.epochs is 1000000000; .* 166666 is the lar"),
        ({"steps": 500_001, "epochs": 1}, "config.train.steps is 500001"),
    ],
)
def test_a_run_without_end_is_refused_before_it_is_drawn(length, words):
    """Within a second and a megabyte."""
    split = tiny.training_split()
    options = {"identities_per_batch": 4, "samples_per_identity": 2}
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(UserError, match=words):
            make_plan({"name": "pk"}, split[:24], seed=0, options=options, **length)
        assert time.monotonic() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_the_bytes_of_a_plan_are_bounded_too():
    options = {"identities_per_batch": 1000, "samples_per_identity": 100}
    with pytest.raises(UserError, match=r"about 1000 steps of 100000 samples.* 894 is the largest"):
        make_plan(
            {"name": "pk"}, tiny.training_split(), seed=0, options=options, epochs=1, steps=1000
        )
