"""Scores against a brute-force twin, planted rankings, ties, hostile input, the release."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tfds.errors import UserError
from facenet_jax.retrieval import distances as distances_module
from facenet_jax.retrieval import metrics


def twin(distances, query_identity, gallery_identity, query_group=None, gallery_group=None):
    """The definition, one query and one gallery row at a time, on given distances."""
    precisions, penalties, firsts, valid = [], [], [], []
    for q, row in enumerate(distances):
        kept = []
        for g, distance in enumerate(row):
            match = query_identity[q] == gallery_identity[g]
            junk = match and query_group is not None and query_group[q] == gallery_group[g]
            if not junk:
                kept.append((distance, bool(match)))  # False sorts first: pessimistic
        ranks = [rank for rank, (_, match) in enumerate(sorted(kept), start=1) if match]
        if ranks:
            valid.append(q)
            precisions.append(sum(hit / rank for hit, rank in enumerate(ranks, 1)) / len(ranks))
            penalties.append(len(ranks) / ranks[-1])
            firsts.append(ranks[0])
    return valid, precisions, penalties, firsts


def check(result, expected):
    valid, precisions, penalties, firsts = expected
    np.testing.assert_array_equal(result.query, valid)
    np.testing.assert_allclose(result.average_precision, precisions, rtol=1e-12)
    np.testing.assert_allclose(result.inverse_negative_penalty, penalties, rtol=1e-12)
    np.testing.assert_array_equal(result.first_match, firsts)


def scores(*arguments, **options):
    return metrics.per_query(*arguments, **options).metrics()


def labels_of(generator, queries, gallery, identities, groups):
    return (
        generator.integers(identities, size=queries),
        generator.integers(identities, size=gallery),
        generator.integers(groups, size=queries),
        generator.integers(groups, size=gallery),
    )


def normalised(rows):
    norm = np.sqrt((rows.astype(np.float64) ** 2).sum(1, keepdims=True))
    return rows / np.maximum(norm, 1e-12)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 1000]), st.booleans())
def test_given_distances_equal_the_twin(seed, levels, grouped):
    """Distances of few levels: ties everywhere. Rows may come in blocks of any size."""
    generator = np.random.default_rng(seed)
    queries, gallery = generator.integers(1, 9), generator.integers(1, 40)
    labels = labels_of(generator, queries, gallery, 4, 3)[: 4 if grouped else 2]
    distances = generator.integers(levels, size=(queries, gallery)).astype(np.float32)
    cut = generator.integers(queries + 1)
    result = metrics.per_query_of_distances([distances[:cut], distances[cut:]], *labels)
    check(result, twin(distances, *labels))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans())
def test_small_integer_vectors_tie_exactly(seed, block, unit):
    """+-1 vectors have equal norms and integer products: every tie is a true one, in any block."""
    generator = np.random.default_rng(seed)
    queries, gallery = generator.integers(1, 9), generator.integers(1, 60)
    width = generator.integers(1, 12)
    query = generator.choice([-1, 1], size=(queries, width))
    rows = generator.choice([-1, 1], size=(gallery, width))
    labels = labels_of(generator, queries, gallery, 4, 3)
    result = metrics.per_query(query, rows, *labels, normalise=unit, block=block)
    check(result, twin(-(query @ rows.T), *labels))


@pytest.mark.parametrize("unit", [True, False])
def test_embeddings_equal_the_twin(unit):
    generator = np.random.default_rng(0)
    labels = labels_of(generator, 30, 200, 12, 3)
    query = generator.normal(size=(30, 24)) * generator.uniform(0.01, 50, (30, 1))
    gallery = generator.normal(size=(200, 24)) * generator.uniform(0.01, 50, (200, 1))
    a, b = (normalised(query), normalised(gallery)) if unit else (query, gallery)
    distances = ((a[:, None] - b[None]) ** 2).sum(-1)
    for block in (None, 1, 7):
        check(
            metrics.per_query(query, gallery, *labels, normalise=unit, block=block),
            twin(distances, *labels),
        )


def test_rows_too_short_to_normalise_lie_at_distance_one():
    """A zero row stays zero: nearer than an orthogonal row, farther than one within 60 degrees."""
    gallery = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.9], [1e-14, 0.0]])
    distances = ((normalised(gallery) - [1.0, 0.0]) ** 2).sum(-1)
    assert distances.argsort().tolist() == [2, 3, 0, 1]
    first = {}
    for match in range(4):
        identity = (np.arange(4) == match).astype(int)
        query = np.array([[7.0, 0.0], [0.0, 0.0]])
        first[match] = metrics.per_query(query, gallery, np.array([1, 1]), identity).first_match
    assert [first[match][0] for match in range(4)] == [3, 4, 1, 2]
    # Seen from zero, the two rows of length 1 tie.
    assert [first[match][1] for match in range(4)] == [1, 4, 4, 2]


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e15, 1e30])
def test_the_length_of_an_embedding_does_not_matter(scale):
    generator = np.random.default_rng(1)
    labels = labels_of(generator, 20, 80, 9, 3)
    query, gallery = generator.normal(size=(20, 16)), generator.normal(size=(80, 16))
    expected = scores(query, gallery, *labels)
    if scale > 1e-12:
        assert scores(query * scale, gallery * scale, *labels) == expected
    # Without normalising nothing has a floor, at any common scale.
    expected = scores(query, gallery, *labels, normalise=False)
    assert scores(query * scale, gallery * scale, *labels, normalise=False) == expected


def planted(relevance, group=None):
    """One query of identity 1 whose gallery comes in the order of `relevance`."""
    identity = np.where(relevance, 1, np.arange(len(relevance)) + 2)
    distances = np.arange(len(relevance), dtype=float)[None]
    groups = () if group is None else (np.array([0]), np.array(group))
    return metrics.per_query_of_distances([distances], np.array([1]), identity, *groups).metrics()


def test_planted_ranking():
    score = planted([1, 0, 1, 0, 0])
    assert score["mAP"] == pytest.approx(5 / 6)
    assert score["mINP"] == pytest.approx(2 / 3)
    assert score["cmc"] == {"1": 1.0, "5": 1.0, "10": 1.0, "20": 1.0}
    assert (score["queries"], score["valid_queries"], score["gallery"]) == (1, 1, 5)


def test_cmc_counts_from_the_rank_of_the_first_match():
    for rank in (1, 2, 5, 6, 10, 11, 20, 21):
        relevance = np.arange(1, 31) == rank
        expected = {str(k): float(rank <= k) for k in (1, 5, 10, 20)}
        assert planted(relevance)["cmc"] == expected


def test_junk_leaves_the_list():
    """Without the two junk rows in front, the match at place 4 has rank 2."""
    assert planted([1, 0, 1, 1], group=[0, 1, 0, 1])["mAP"] == 0.5
    # A non-match of the query's group stays.
    assert planted([1, 0, 1, 1], group=[0, 0, 0, 1])["mAP"] == 0.5


def test_perfect_and_reversed_ranking():
    assert planted([1] * 3 + [0] * 7)["mAP"] == 1.0
    worst = planted([0] * 7 + [1] * 3)
    assert worst["mAP"] == pytest.approx((1 / 8 + 2 / 9 + 3 / 10) / 3)
    assert worst["mINP"] == pytest.approx(3 / 10)


def test_a_collapsed_model_scores_the_worst_rank():
    """All embeddings equal: every match ranks behind every non-match."""
    generator = np.random.default_rng(2)
    row = generator.normal(size=(1, 333)).astype(np.float32)
    identity = np.arange(700) % 70
    score = scores(np.repeat(row, 5, 0), np.repeat(row, 700, 0), np.arange(5), identity)
    hits = np.arange(1, 11)
    assert score["mAP"] == pytest.approx(np.mean(hits / (690 + hits)), rel=1e-12)
    assert score["cmc"]["20"] == 0.0


@pytest.mark.parametrize("width", [3, 37, 515])
@pytest.mark.parametrize("queries", [1, 2, 13])
def test_gallery_order_does_not_matter_bit_for_bit(width, queries):
    """Every gallery row has copies of other identities, anywhere; blocks of odd sizes."""
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(150, width)).astype(np.float32)
    gallery = rows[generator.integers(150, size=611)]
    query = generator.normal(size=(queries, width)).astype(np.float32)
    identity, group = generator.integers(6, size=611), generator.integers(3, size=611)
    one = (np.arange(queries) % 6, identity, np.arange(queries) % 3, group)
    result = metrics.per_query(query, gallery, *one, block=4)

    order = generator.permutation(611)
    other = (one[0], identity[order], one[2], group[order])
    permuted = metrics.per_query(query, gallery[order], *other, block=4)
    np.testing.assert_array_equal(permuted.average_precision, result.average_precision)
    np.testing.assert_array_equal(
        permuted.inverse_negative_penalty, result.inverse_negative_penalty
    )
    np.testing.assert_array_equal(permuted.first_match, result.first_match)

    # The distance of copies is one number, so each tie is pessimistic as in the twin.
    unique, inverse = np.unique(gallery, axis=0, return_inverse=True)
    distances = -(normalised(query) @ normalised(unique).T)[:, inverse]
    check(result, twin(distances, *one))


def test_copies_tie_even_if_the_product_rounds_by_position(monkeypatch):
    """A BLAS may compute the edge of a matrix by another kernel; the last bit then differs."""

    def uneven(a, b, out):
        np.dot(a, b, out=out)
        out[:, 1::3] = np.nextafter(out[:, 1::3], np.float32(9))
        out[:, 2::5] = np.nextafter(out[:, 2::5], np.float32(-9))
        return out

    monkeypatch.setattr(distances_module.np, "matmul", uneven)
    gallery = np.random.default_rng(7).normal(size=(9, 21)).repeat(20, axis=0)
    identity = np.arange(180) % 20
    result = metrics.per_query(gallery[:1], gallery, np.arange(20)[:1], identity)
    # Of each row's 20 copies one is a match, behind the 19 others at its distance.
    expected = np.mean([hit / (20 * hit) for hit in range(1, 10)])
    np.testing.assert_allclose(result.average_precision, [expected], rtol=1e-12)


def test_queries_without_a_match_are_skipped_and_counted():
    query, gallery = np.eye(3), np.eye(3)
    score = scores(query, gallery, np.array([0, 7, 8]), np.array([0, 1, 2]))
    assert (score["queries"], score["valid_queries"], score["gallery"]) == (3, 1, 3)
    assert score["mAP"] == 1.0


def test_subsets_come_from_one_ranking():
    generator = np.random.default_rng(5)
    labels = labels_of(generator, 40, 90, 30, 2)
    query, gallery = generator.normal(size=(40, 8)), generator.normal(size=(90, 8))
    result = metrics.per_query(query, gallery, *labels)
    assert result.metrics() == scores(query, gallery, *labels)
    keep = generator.random(40) < 0.5
    part = (labels[0][keep], labels[1], labels[2][keep], labels[3])
    alone = scores(query[keep], gallery, *part)
    subset = result.metrics(keep)
    assert subset["cmc"] == alone["cmc"]
    assert subset["mAP"] == pytest.approx(alone["mAP"], rel=1e-12)
    assert [subset[k] for k in ("queries", "valid_queries", "gallery")] == [
        alone[k] for k in ("queries", "valid_queries", "gallery")
    ]
    with pytest.raises(UserError, match="None of the 0 queries"):
        result.metrics(np.zeros(40, bool))


def test_memory_is_a_block_and_not_the_distance_matrix(monkeypatch):
    monkeypatch.setattr(distances_module, "DISTANCE_BYTES", 2**20)
    generator = np.random.default_rng(6)
    query = generator.normal(size=(900, 8)).astype(np.float32)
    gallery = generator.normal(size=(8000, 8)).astype(np.float32)
    tracemalloc.start()
    scores(query, gallery, np.arange(900), np.arange(8000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20  # all distances: 27 MiB


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query", "gallery"])
def test_values_that_are_not_finite_are_refused_by_row(value, name):
    arrays = {"query": np.ones((4, 3)), "gallery": np.ones((6, 3))}
    arrays[name][2, 1] = value
    arrays[name][3, 0] = value
    with pytest.raises(UserError, match=f"{name} embeddings .* in 2 rows.* row 2:"):
        scores(arrays["query"], arrays["gallery"], np.arange(4), np.arange(6))


BAD = {
    "no queries": (r"query .*\(0, 3\)", "query", np.ones((0, 3))),
    "no gallery": (r"gallery .*\(0, 3\)", "gallery", np.ones((0, 3))),
    "no width": (r"query embeddings .*\(4, 0\)", "query", np.ones((4, 0))),
    "one dimension": (r"gallery embeddings .*\(6,\)", "gallery", np.ones(6)),
    "widths": ("2 wide and the gallery's 3", "query", np.ones((4, 2))),
    "identities": ("query identities .*not 4 integers", "query_identity", np.arange(3)),
    "floats": ("gallery identities are float64", "gallery_identity", np.ones(6)),
    "groups": ("gallery groups .*not 6", "gallery_group", np.arange(5)),
    "one group": ("Only one of query and gallery has groups", "gallery_group", None),
    "no match": ("None of the 4 queries .* 6 gallery", "query_identity", np.arange(4) + 9),
}


@pytest.mark.parametrize("name", BAD)
def test_input_that_cannot_be_ranked_is_refused(name):
    words, argument, value = BAD[name]
    arguments = {
        "query": np.ones((4, 3)),
        "gallery": np.ones((6, 3)),
        "query_identity": np.arange(4),
        "gallery_identity": np.arange(6),
        "query_group": np.arange(4),
        "gallery_group": np.arange(6) + 1,
    }
    with pytest.raises(UserError, match=words):
        scores(**{**arguments, argument: value})


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([np.ones((2, 3))], "distances of 2 queries, but labels of 4"),
        ([np.ones((2, 3)), np.ones((3, 3))], "after 2 rows, where labels say 4 queries x 3"),
        ([np.ones((4, 2))], "4 queries x 3 gallery"),
        ([np.ones((3, 3)), np.array([[0, np.nan, 1]])], "query 3 are not all finite"),
    ],
)
def test_distances_that_do_not_fit_are_refused(blocks, words):
    with pytest.raises(UserError, match=words):
        metrics.per_query_of_distances(blocks, np.array([0, 1, 2, 5]), np.arange(3))


@pytest.mark.parametrize("group", ["camera", "scene"])
def test_recorded_values_of_the_release(shared, group):
    golden = np.load(shared / "golden" / "components_official.npz")
    result = metrics.per_query(
        golden["query_features"],
        golden["gallery_features"],
        golden["query_ids"],
        golden["gallery_ids"],
        golden[f"query_{group}s"],
        golden[f"gallery_{group}s"],
    )
    score = result.metrics()
    assert score["mAP"] == pytest.approx(float(golden[f"{group}_map"]), rel=1e-9)
    recorded = golden[f"{group}_cmc"][[0, 4, 9, 19]]
    np.testing.assert_allclose(list(score["cmc"].values()), recorded, rtol=1e-6)
    if group == "camera":
        np.testing.assert_allclose(result.average_precision, golden["camera_ap"], rtol=1e-9)
