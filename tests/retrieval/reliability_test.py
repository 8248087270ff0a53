"""Weighted parts against a slow twin, and through the evaluation."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax import retrieval
from facenet_jax.retrieval import Embeddings, reliability
from facenet_jax.retrieval.metrics import per_query_of_distances
from facenet_jax.retrieval.scoring import configured

PARTS = {"visible": (0, 3), "thermal": (3, 7)}


def side(count, seed, identities=4):
    rng = np.random.default_rng(seed)
    identity = np.arange(count) % identities
    return Embeddings(
        rng.standard_normal((count, 7)).astype(np.float32),
        PARTS,
        identity,
        np.arange(count).astype(str),
        {"camera": rng.integers(0, 3, count), "flare": rng.random((count, 2)) < 0.4},
        label_modalities=tuple(PARTS),
    )


def twin(query, gallery, of_query, of_gallery):
    found = np.zeros((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            total = weights = 0.0
            for p, (start, stop) in enumerate(PARTS.values()):
                a, b = query.embedding[i, start:stop], gallery.embedding[j, start:stop]
                weight = min(of_query[i, p], of_gallery[j, p])
                total += weight * (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
                weights += weight
            found[i, j] = 1 - total / weights
    return found


@pytest.fixture
def sides(monkeypatch):
    monkeypatch.setattr(reliability, "BLOCK", 4)
    query, gallery = side(9, 0), side(16, 1)
    return query, gallery, reliability.of_flare(query, gallery, 0.3)


def test_distances_are_those_of_the_twin(sides):
    query, gallery, weights = sides
    found = np.concatenate(list(reliability.blocks(query, gallery, *weights)))
    np.testing.assert_allclose(found, twin(query, gallery, *weights), atol=1e-6)


def test_evaluation_ranks_by_them(sides):
    query, gallery, weights = sides
    protocol = Protocol("x/camera", junk="camera")
    result = retrieval.evaluate(query, gallery, protocol, reliabilities=weights)
    labels = [x.identity for x in (query, gallery)] + [x.labels["camera"] for x in (query, gallery)]
    distances = np.concatenate(list(reliability.blocks(query, gallery, *weights)))
    expected = per_query_of_distances([distances], *labels)
    (found,) = result.trials
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)


def test_trials_take_their_rows_of_the_weights(sides):
    query, gallery, weights = sides
    rows = np.array([15, 2, 4, 9, 5, 7, 1, 12])
    protocol = Protocol("x/none", junk="none", trials=lambda labels: [rows])
    result = retrieval.evaluate(query, gallery, protocol, reliabilities=weights)
    expected = per_query_of_distances(
        [twin(query, gallery, *weights)[:, rows]], query.identity, gallery.identity[rows]
    )
    (found,) = result.trials
    np.testing.assert_allclose(found.average_precision, expected.average_precision)


def test_of_flare_takes_the_columns_of_the_parts_by_name():
    one = side(2, 0)
    flare = np.array([[True, False, False], [False, True, False]])
    names = ("near_infrared", "visible", "thermal")
    one = dataclasses.replace(one, labels={"flare": flare}, label_modalities=names)
    found, same = reliability.of_flare(one, one, 0.5)
    np.testing.assert_array_equal(found, [[1, 1], [0.5, 1]])  # visible, thermal
    np.testing.assert_array_equal(same, found)
    for other in ({"label_modalities": names[1:]}, {"labels": {}}):
        with pytest.raises(UserError, match="which a side lacks; set it to 1"):
            reliability.of_flare(dataclasses.replace(one, **other), one, 0.5)


def test_options_of_a_config_say_how_to_match(sides):
    query, gallery, weights = sides
    protocol = Protocol("x/camera", junk="camera")
    options = ConfigDict({"centre": True, "complete": (), "flare_weight": 0.3})
    found = configured(query, gallery, protocol, options).metrics()
    expected = retrieval.evaluate(query, gallery, protocol, centre=True, reliabilities=weights)
    assert found == expected.metrics()
    options.flare_weight = 1.0
    expected = retrieval.evaluate(query, gallery, protocol, centre=True).metrics()
    assert configured(query, gallery, protocol, options).metrics() == expected


def test_refusals(sides):
    query, gallery, weights = sides
    with pytest.raises(UserError, match="Reliabilities must be above 0"):
        list(reliability.blocks(query, gallery, weights[0] * 0, weights[1]))
    with pytest.raises(UserError, match="parts visible of the query"):
        list(reliability.blocks(query.select(["visible"]), gallery, weights[0][:, :1], weights[1]))
    with pytest.raises(UserError, match="Re-ranking"):
        retrieval.evaluate(
            query,
            gallery,
            Protocol("x/none", junk="none"),
            rerank=(3, 2, 0.3),
            reliabilities=weights,
        )
