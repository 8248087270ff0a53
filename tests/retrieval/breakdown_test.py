"""Scores by label, their intervals, and the calibrated threshold."""

import numpy as np
import pytest

from data_tfds.samples import Protocol
from facenet_jax import retrieval
from facenet_jax.retrieval import Embeddings, breakdown, calibration, intervals, report

CAMERA = Protocol("camera", junk="camera")


def sides(rows=80, people=10, **labels):
    rng = np.random.default_rng(0)
    identity = np.arange(rows) % people
    embedding = np.float32(
        5 + rng.normal(size=(people, 12))[identity] + 0.8 * rng.normal(size=(rows, 12))
    )
    camera = np.arange(rows) // people % 3
    columns = {"camera": camera} | {name: np.asarray(x) for name, x in labels.items()}
    parts = {"visible": (0, 6), "thermal": (6, 12)}

    def side(some):
        of = {name: x[some] for name, x in columns.items()}
        return Embeddings(
            embedding[some], parts, identity[some], np.arange(rows)[some].astype(str), of
        )

    return side(slice(0, rows // 4)), side(slice(rows // 4, None))


def test_scores_by_label_are_those_of_the_queries_alone():
    night = np.arange(80) % 2
    night[:3] = -1  # not known
    flare = np.stack([np.arange(80) % 2, np.arange(80) % 3 == 0], axis=1).astype(bool)
    query, gallery = sides(night=night, flare=flare)
    result = retrieval.evaluate(query, gallery, CAMERA)
    found = breakdown.by_label(result, query, draws=50)
    assert list(found) == ["camera", "night", "flare", "identity"]
    assert list(found["night"]) == ["day", "night"]
    assert set(found["flare"]) == {"none", "visible", "thermal", "visible+thermal"}
    for label, value, keep in [
        ("night", "day", query.labels["night"] == 0),
        ("flare", "thermal", ~query.labels["flare"][:, 0] & query.labels["flare"][:, 1]),
        ("identity", "4", query.identity == 4),
    ]:
        scores = dict(found[label][value])
        ends = scores.pop("intervals", None)
        assert scores == result.metrics(keep)
        assert (ends is None) == (label == "identity")
    assert sum(x["queries"] for x in found["flare"].values()) == len(query)


def test_a_group_without_a_valid_query_has_no_score():
    query, gallery = sides()
    gone = query.labels["camera"] == 1
    query = Embeddings(
        query.embedding, query.parts, np.where(gone, 99, query.identity), query.name, query.labels
    )
    found = breakdown.by_label(retrieval.evaluate(query, gallery, CAMERA), query, draws=20)
    assert found["camera"]["1"] is None
    assert found["camera"]["0"]["valid_queries"] == 10


def test_intervals_are_those_of_the_queries_values():
    query, gallery = sides()
    result = retrieval.evaluate(query, gallery, CAMERA)
    found = breakdown.ends(result, query)
    of = result.trials[0]
    expected = intervals.bootstrap(of.average_precision, query.identity[of.query])
    assert found["mAP"] == [expected.low, expected.high]
    assert found["mAP"][0] < result.metrics()["mAP"] < found["mAP"][1]
    trials = Protocol("two", trials=lambda labels: [np.arange(40), np.arange(20, 60)])
    result = retrieval.evaluate(query, gallery, trials)
    rows, values = breakdown.values(result, "R1")
    each = [np.bincount(t.query, t.first_match <= 1, len(query)) for t in result.trials]
    assert np.array_equal(values, np.mean(each, axis=0)[rows])


def test_details_as_text_and_of_the_centred_ranking():
    query, gallery = sides()
    rankings = [retrieval.evaluate(query, gallery, CAMERA, centre=c) for c in (False, True)]
    plain, centred = (breakdown.details(query, gallery, CAMERA, each) for each in rankings)
    assert centred["verification"]["eer"] < plain["verification"]["eer"]
    text = report.details(plain)
    assert f"EER {100 * plain['verification']['eer']:.1f}" in text
    assert "TPR at FPR 0.0001 -" in text  # 1,080 impostors
    assert "camera 1" in text


@pytest.mark.parametrize("same_parts", [True, False])
def test_a_threshold_says_which_pairs_it_was_found_on(same_parts, monkeypatch):
    monkeypatch.setattr(calibration, "ROWS", 30)
    query, gallery = sides()
    if not same_parts:
        query = Embeddings(
            query.embedding, {"infrared": (0, 12)}, query.identity, query.name, query.labels
        )
    found = calibration.calibrate(query, gallery, CAMERA)
    assert found["pairs"] == ("within the gallery" if same_parts else "of query and gallery")
    assert found["rows"] == (30 if same_parts else 20)
    assert found["thresholds"]["0.0001"] is None
    point, on_queries = found["thresholds"]["eer"], found["on_queries"]["eer"]
    if not same_parts:
        assert {k: point[k] for k in on_queries} == on_queries
    mean = gallery.embedding.mean(axis=0)
    left, right = query.embedding - mean, gallery.embedding - mean
    left, right = (x / np.linalg.norm(x, axis=1)[:, None] for x in (left, right))
    match = query.identity[:, None] == gallery.identity
    junk = match & (query.labels["camera"][:, None] == gallery.labels["camera"])
    accepted = left @ right.T >= point["cosine"]
    assert on_queries["tpr"] == accepted[match & ~junk].mean()
    assert on_queries["fpr"] == accepted[~match].mean()
