"""ROC, equal error rate and rates at a threshold, against a slow obvious twin, with ties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tfds.samples import Protocol
from facenet_jax.retrieval import Embeddings, verification
from facenet_jax.retrieval.distances import Euclidean

CAMERA = Protocol("camera", junk="camera")


def side(embedding, identity, camera=None):
    camera = np.zeros(len(embedding), int) if camera is None else np.asarray(camera)
    names = np.arange(len(embedding)).astype(str)
    return Embeddings(np.float32(embedding), {}, np.asarray(identity), names, {"camera": camera})


def twin(genuine, impostor, limit):
    """(EER, TPR at FPR <= limit): every threshold by itself, from rates as fractions."""
    points = [(0.0, 0.0)]
    for t in sorted({*genuine, *impostor}):
        points.append((np.mean(genuine <= t), np.mean(impostor <= t)))
    best = max(tpr for tpr, fpr in points if fpr <= limit)
    for (tpr0, fpr0), (tpr1, fpr1) in itertools.pairwise(points):
        gap0, gap1 = 1 - tpr0 - fpr0, 1 - tpr1 - fpr1
        if gap1 <= 0:
            w = gap0 / (gap0 - gap1)
            return fpr0 + w * (fpr1 - fpr0), best
    raise AssertionError


# Tenths that float32 rounds, with many ties; 17 binary digits tell them apart.
angles = st.lists(st.integers(0, 20).map(lambda n: np.float32(n / 10)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(angles, angles, st.sampled_from([0.05, 0.25, 0.5]))
def test_rates_are_those_of_the_twin(genuine, impostor, limit):
    genuine, impostor = np.array(genuine), np.array(impostor)
    found = verification.curve(iter([(genuine[:3], impostor), (genuine[3:], impostor[:0])]))
    eer, tpr = twin(genuine, impostor, limit)
    np.testing.assert_allclose(found.equal_error()[0], eer, atol=1e-12)
    place = found.at_fpr(limit)
    if limit * len(impostor) < 1:
        assert place is None
    else:
        np.testing.assert_allclose(found.tpr[place], tpr, atol=1e-12)
    nearer = (genuine[:, None] < impostor).mean() + (genuine[:, None] == impostor).mean() / 2
    np.testing.assert_allclose(found.area(), nearer, atol=1e-12)


def test_bins_keep_order_and_are_exact_for_near_vectors():
    near = np.arange(2**17, dtype=np.float32) * np.float32(2.0**-24)  # cosines above 0.992
    assert np.array_equal(np.diff(verification.bins(near)) > 0, np.ones(len(near) - 1, bool))
    some = np.sort(np.random.default_rng(0).uniform(0, 2, 5000).astype(np.float32))
    found = verification.bins(np.append(some, np.float32(2)))
    assert (np.diff(found) >= 0).all()
    assert found[-1] == verification.BINS - 1
    top = verification.largest_angle(found[:-1])
    assert (top >= some).all()
    np.testing.assert_allclose(top, some, rtol=2.0**-16)


@pytest.mark.parametrize("own", [False, True])
def test_pairs_are_those_that_the_protocol_keeps(own):
    rng = np.random.default_rng(1)
    gallery = side(rng.normal(size=(30, 5)), rng.integers(0, 4, 30), rng.integers(0, 2, 30))
    query = (
        gallery
        if own
        else side(rng.normal(size=(9, 5)), rng.integers(0, 5, 9), rng.integers(0, 2, 9))
    )
    protocol = Protocol("some", junk="camera", ignore=(("camera", 1, 0),))
    unit = [x.embedding / np.linalg.norm(x.embedding, axis=1)[:, None] for x in (query, gallery)]
    cosines = unit[0] @ unit[1].T
    for row, genuine, impostor in verification.pairs(query, gallery, protocol, own=own):
        same, others = [], []
        for g in range(30):
            match = query.identity[row] == gallery.identity[g]
            cameras = query.labels["camera"][row], gallery.labels["camera"][g]
            left = (match and cameras[0] == cameras[1]) or cameras == (1, 0) or (own and g == row)
            if not left:
                (same if match else others).append(1 - cosines[row, g])
        np.testing.assert_allclose(np.sort(genuine), np.sort(same), atol=1e-6)
        np.testing.assert_allclose(np.sort(impostor), np.sort(others), atol=1e-6)


def test_angles_compare_over_queries_of_any_length():
    rng = np.random.default_rng(2)
    query, gallery = rng.normal(size=(4, 6)), rng.normal(size=(7, 6))
    query *= np.array([[1e-3], [1], [50], [1e12]])
    gallery *= np.logspace(-8, 8, 7)[:, None]
    distances = Euclidean(query, gallery)
    found = np.array([row.copy() for row in distances.angles(np.arange(4))])
    unit = [x / np.linalg.norm(x, axis=1)[:, None] for x in (query, gallery)]
    np.testing.assert_allclose(found, 1 - (unit[0] @ unit[1].T)[:, distances.order], atol=1e-6)


def test_a_query_scaled_changes_nothing_and_planted_ranks_are_found():
    identity = np.repeat(np.arange(20), 4)
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(20, 32))
    rows = centres[identity] + 0.01 * rng.normal(size=(80, 32))
    query, gallery = side(rows[::2], identity[::2]), side(rows[1::2], identity[1::2])
    none = Protocol("none")
    found = verification.roc(query, gallery, none).metrics()
    assert found["eer"] == 0
    assert found["tpr_at_fpr"]["0.001"] == 1
    assert found["tpr_at_fpr"]["0.0001"] is None  # 1,520 impostors cannot tell
    assert found["genuine_pairs"] == 80
    scaled = side(query.embedding * 8, query.identity)
    assert verification.roc(scaled, gallery, none).metrics() == found


def test_without_pairs_of_both_kinds_nothing_is_said():
    one = side(np.eye(3), [1, 1, 1])
    found = verification.roc(one, one, Protocol("none")).metrics()
    assert (found["genuine_pairs"], found["impostor_pairs"], found["eer"]) == (9, 0, None)
    none = verification.roc(one, one, CAMERA)
    assert none.metrics()["genuine_pairs"] == 0
    assert set(none.thresholds().values()) == {None}
    assert verification.bootstrap(none, one, one, CAMERA)["eer"] is None


def test_a_threshold_gives_the_rates_that_it_promises():
    rng = np.random.default_rng(4)
    identity = np.repeat(np.arange(25), 4)
    rows = rng.normal(size=(25, 16))[identity] + 0.8 * rng.normal(size=(100, 16))
    one = side(rows, identity)
    whole = verification.roc(one, one, Protocol("none"), own=True)
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    apart = ~np.eye(100, dtype=bool)
    same = (identity[:, None] == identity) & apart
    for point in whole.thresholds().values():
        if point is None:
            continue
        accepted = unit @ unit.T >= point["cosine"]
        np.testing.assert_allclose(accepted[same].mean(), point["tpr"], atol=1e-12)
        np.testing.assert_allclose(accepted[~same & apart].mean(), point["fpr"], atol=1e-12)
        assert whole.rates_at(point["cosine"] + 1e-9) == {k: point[k] for k in ("tpr", "fpr")}
    assert whole.rates_at(1.1) == {"tpr": 0, "fpr": 0}


def test_intervals_hold_the_value_and_are_those_of_drawing_identities():
    rng = np.random.default_rng(5)
    identity = np.repeat(np.arange(12), 5)
    rows = rng.normal(size=(12, 8))[identity] + rng.normal(size=(60, 8))
    query, gallery = side(rows[::2], identity[::2]), side(rows[1::2], identity[1::2])
    none = Protocol("none")
    whole = verification.roc(query, gallery, none)
    found = verification.bootstrap(whole, query, gallery, none, draws=300)
    low, high = found["eer"]
    assert low < whole.equal_error()[0] < high
    assert found["tpr_at_fpr"]["0.0001"] is None
    # The twin draws the queries themselves.
    by_row = {row: kinds for row, *kinds in _copied(query, gallery, none)}
    weights, _ = verification.intervals.draw(12, 1, 300, 0)
    names = np.unique(query.identity)
    eers = []
    for weight in weights:
        drawn = [
            r
            for i, n in zip(names, weight, strict=True)
            for r in [*np.flatnonzero(query.identity == i)] * int(n)
        ]
        genuine, impostor = (np.concatenate([by_row[r][k] for r in drawn]) for k in (0, 1))
        eers.append(twin(genuine, impostor, 1)[0])
    np.testing.assert_allclose([low, high], np.quantile(eers, (0.025, 0.975)), atol=0.01)


def _copied(*arguments):
    for row, genuine, impostor in verification.pairs(*arguments):
        yield row, genuine.copy(), impostor.copy()
