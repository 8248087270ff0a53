"""Parts of blinded modalities from similar gallery rows: a slow twin, and the evaluation."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax import retrieval
from facenet_jax.retrieval import Embeddings, completion
from facenet_jax.retrieval.completion import Completion
from facenet_jax.retrieval.scoring import configured

PARTS = {"visible": (0, 3), "near_infrared": (3, 5), "thermal": (5, 9)}
PROTOCOL = Protocol("x/none", junk="none")


def side(count, seed, share=0.4):
    rng = np.random.default_rng(seed)
    flare = rng.random((count, 3)) < share
    flare[:, 2] = False
    return Embeddings(
        rng.standard_normal((count, 9)).astype(np.float32),
        PARTS,
        np.arange(count) % 4,
        np.arange(count).astype(str),
        {"flare": flare},
        label_modalities=tuple(PARTS),
    )


def how(query, gallery, neighbours=3, alpha=2.0):
    return Completion(neighbours, alpha, *completion.blinded(query, gallery))


def twin(x, gallery, of_x, of_gallery, neighbours, alpha):
    """Row by row and part by part, with loops."""
    found = x.copy()
    for i, row in enumerate(x):
        cosines = [
            (row @ other) / (np.linalg.norm(row) * np.linalg.norm(other)) for other in gallery
        ]
        for p, (start, stop) in enumerate(PARTS.values()):
            if not of_x[i, p]:
                continue
            usable = [j for j in range(len(gallery)) if not of_gallery[j, p]]
            close = sorted(usable, key=lambda j, c=cosines: -c[j])[:neighbours]
            weights = [max(cosines[j], 0) ** alpha for j in close]
            if sum(weights) == 0:
                weights = [1.0] * len(close)
            mean = sum(w * gallery[j, start:stop] for w, j in zip(weights, close, strict=True))
            found[i, start:stop] = mean / sum(weights)
    return found


@pytest.mark.parametrize(("neighbours", "alpha"), [(1, 0.0), (3, 3.0), (5, 0.0), (4, 1.0)])
def test_both_sides_equal_the_twin(neighbours, alpha, monkeypatch):
    monkeypatch.setattr(completion, "DISTANCE_BYTES", 300)  # a few rows at a time
    query, gallery = side(12, 0), side(20, 1)
    given = how(query, gallery, neighbours, alpha)
    found = completion.complete(query.embedding, gallery.embedding, PARTS, given)
    for got, x, of in zip(found, (query, gallery), (given.of_query, given.of_gallery), strict=True):
        expected = twin(x.embedding, gallery.embedding, of, given.of_gallery, neighbours, alpha)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        columns = np.repeat(of, [stop - start for start, stop in PARTS.values()], axis=1)
        assert columns.any()
        np.testing.assert_array_equal(got[~columns], x.embedding[~columns])


def test_neighbours_that_point_the_other_way_count_alike():
    query = side(1, 0)
    query.labels["flare"][:] = [[True, False, False]]
    rows = -np.tile(query.embedding, (4, 1)) + np.eye(4, 9, dtype=np.float32) * 0.1
    gallery = dataclasses.replace(side(4, 1, share=0.0), embedding=rows)
    found, _ = completion.complete(
        query.embedding, gallery.embedding, PARTS, how(query, gallery, 4, 3.0)
    )
    np.testing.assert_allclose(found[0, :3], rows[:, :3].mean(0), rtol=1e-5)


def test_the_order_of_the_gallery_changes_no_bit():
    query, gallery = side(12, 0), side(20, 1)
    order = np.random.default_rng(2).permutation(20)
    given = how(query, gallery)
    shuffled = given._replace(of_gallery=given.of_gallery[order])
    one = completion.complete(query.embedding, gallery.embedding, PARTS, given)
    other = completion.complete(query.embedding, gallery.embedding[order], PARTS, shuffled)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1][order], other[1])


def test_a_missing_image_is_completed_like_a_blinded_one():
    query, gallery = side(6, 0, share=0.0), side(8, 1, share=0.0)
    assert not completion.blinded(query, gallery)[0].any()
    present = np.ones((6, 3), bool)
    present[2, 2] = False
    query.labels["present"] = present
    of_query, _ = completion.blinded(query, gallery)
    np.testing.assert_array_equal(of_query, ~present)


def test_a_part_that_is_no_modality_is_never_blinded(tmp_path):
    """As DeMo's experts; the columns of the labels are named in the file."""
    parts = {"visible": (0, 3), "near_infrared": (3, 5), "thermal": (5, 7), "experts": (7, 9)}
    written = [dataclasses.replace(x, parts=parts) for x in (side(6, 0), side(8, 1))]
    for number, one in enumerate(written):
        one.write(tmp_path / f"{number}.npz")
    read = Embeddings.read_all(tmp_path / "0.npz", tmp_path / "1.npz")
    for one, of in zip(written, completion.blinded(*read), strict=True):
        np.testing.assert_array_equal(of[:, :3], one.labels["flare"])
        assert not of[:, 3].any()


def test_evaluation_ranks_completed_embeddings_within_each_trial():
    query, gallery = side(12, 0), side(20, 1)
    rows = np.array([3, 1, 4, 15, 9, 2, 6, 5, 13, 8, 19, 7])
    trials = dataclasses.replace(PROTOCOL, trials=lambda labels: [rows])
    given = how(query, gallery)
    found = retrieval.evaluate(query, gallery, trials, complete=given)
    few = given._replace(of_gallery=given.of_gallery[rows])
    both = completion.complete(query.embedding, gallery.embedding[rows], PARTS, few)
    part = Embeddings(both[1], PARTS, gallery.identity[rows], gallery.name[rows], {})
    expected = retrieval.evaluate(dataclasses.replace(query, embedding=both[0]), part, PROTOCOL)
    np.testing.assert_array_equal(
        found.trials[0].average_precision, expected.trials[0].average_precision
    )


def test_it_comes_before_expansion():
    query, gallery = side(12, 0), side(20, 1)
    given = how(query, gallery)
    both = completion.complete(query.embedding, gallery.embedding, PARTS, given)
    sides = [
        dataclasses.replace(x, embedding=y) for x, y in zip((query, gallery), both, strict=True)
    ]
    more = {"expand": (2, 1.0), "augment_gallery": (3, 0.0)}
    found = retrieval.evaluate(query, gallery, PROTOCOL, complete=given, **more)
    expected = retrieval.evaluate(*sides, PROTOCOL, **more)
    np.testing.assert_array_equal(
        found.trials[0].average_precision, expected.trials[0].average_precision
    )


def test_the_option_is_read_from_the_config():
    query, gallery = side(12, 0), side(20, 1)
    options = ConfigDict({"centre": False, "flare_weight": 1.0, "complete": (3, 2.0)})
    found = configured(query, gallery, PROTOCOL, options)
    expected = retrieval.evaluate(query, gallery, PROTOCOL, complete=how(query, gallery))
    plain = retrieval.evaluate(query, gallery, PROTOCOL)
    values = [x.trials[0].average_precision for x in (found, expected, plain)]
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])
    pixels = dataclasses.replace(query, parts={}), dataclasses.replace(gallery, parts={})
    same = configured(*pixels, PROTOCOL, options).trials[0].average_precision
    np.testing.assert_array_equal(same, values[2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"neighbours": 0}, "completion with 0 neighbours"),
        ({"alpha": -1.0}, "alpha = -1.0"),
        ({"of_gallery": np.array([[True, False, False]] * 20)}, "part visible .* there are 0"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, words):
    query, gallery = side(12, 0), side(20, 1)
    given = how(query, gallery)._replace(**change)
    with pytest.raises(UserError, match=words):
        completion.complete(query.embedding, gallery.embedding, PARTS, given)


def test_embeddings_without_the_label_are_refused():
    query, gallery = side(12, 0), side(20, 1)
    bare = dataclasses.replace(gallery, labels={})
    with pytest.raises(
        UserError,
        match=r"label flare .* visible, near_infrared, thermal is needed, which a side lacks",
    ):
        completion.blinded(query, bare)
    other = dataclasses.replace(gallery, parts={"visible": (0, 9)})
    with pytest.raises(UserError, match="only parts that both have can be completed"):
        completion.blinded(query, other)
    given = how(query, gallery)
    ones = np.ones((12, 3)), np.ones((20, 3))
    with pytest.raises(UserError, match="take one of them"):
        retrieval.evaluate(query, gallery, PROTOCOL, complete=given, reliabilities=ones)
