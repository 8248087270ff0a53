"""Re-ranking in blocks against a dense float64 twin written from the definition."""

import tracemalloc

import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax.retrieval import Embeddings, evaluate, metrics, rerank


def twin(query, gallery, k1, k2, lambda_):
    """All pairs at once, sets as Python sets, no list or block."""
    points = np.concatenate([query, gallery]).astype(np.float64)
    points = points / np.maximum(np.sqrt((points**2).sum(1, keepdims=True)), 1e-12)
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(distances, 0)
    scaled = distances / distances.max(axis=1, keepdims=True)
    np.fill_diagonal(distances, -1)  # itself first
    ranking = np.argsort(distances, axis=1, kind="stable")
    total = len(points)

    def reciprocal(point, k):
        return {j for j in ranking[point, : k + 1] if point in ranking[j, : k + 1]}

    description = np.zeros((total, total))
    for point in range(total):
        own = reciprocal(point, k1)
        expanded = set(own)
        for other in own:
            theirs = reciprocal(other, round(k1 / 2))
            if 3 * len(theirs & own) > 2 * len(theirs):
                expanded |= theirs
        members = sorted(expanded)
        weights = np.exp(-scaled[point, members])
        description[point, members] = weights / weights.sum()
    description = np.array([description[ranking[point, :k2]].mean(0) for point in range(total)])
    shared = np.minimum(description[:, None], description[None]).sum(-1)
    final = (1 - lambda_) * (1 - shared / (2 - shared)) + lambda_ * scaled
    return final[: len(query), len(query) :]


def clustered(seed=0, queries=12, gallery=60, width=10, identities=8):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(identities, width))
    identity = generator.integers(identities, size=queries + gallery)
    points = centres[identity] + 0.7 * generator.normal(size=(queries + gallery, width))
    points *= generator.uniform(0.1, 20, (len(points), 1))
    return points[:queries], points[queries:], identity[:queries], identity[queries:]


@pytest.mark.parametrize("block", [None, 1, 7, 200])
@pytest.mark.parametrize("parameters", [(20, 6, 0.3), (5, 1, 0.0), (7, 3, 0.5), (1, 9, 0.2)])
def test_blocks_equal_the_dense_twin(parameters, block):
    query, gallery, *_ = clustered(seed=parameters[0])
    blocks = list(rerank.rerank(query, gallery, *parameters, block=block))
    actual = np.concatenate(blocks)
    assert actual.dtype == np.float32
    if block == 7:
        assert [len(part) for part in blocks] == [7, 5]
    np.testing.assert_allclose(actual, twin(query, gallery, *parameters), atol=2e-6)


def test_lambda_one_is_the_plain_ranking():
    query, gallery, *identities = clustered(1)
    plain = metrics.per_query(query, gallery, *identities).metrics()
    again = metrics.per_query_of_distances(rerank.rerank(query, gallery, 5, 2, 1.0), *identities)
    assert again.metrics() == plain


def test_it_helps_on_overlapping_clusters():
    query, gallery, *identities = clustered(2, queries=60, gallery=300, identities=12)
    plain = metrics.per_query(query, gallery, *identities).metrics()["mAP"]
    blocks = rerank.rerank(query, gallery, 20, 6, 0.3)
    assert metrics.per_query_of_distances(blocks, *identities).metrics()["mAP"] > plain + 0.02


def test_equal_rows_are_ranked_by_place_and_stay_finite():
    """More copies of one row than k1 + 1: each still counts itself among its neighbours."""
    query, gallery = np.ones((3, 4)), np.concatenate([np.ones((20, 4)), -np.ones((2, 4))])
    distances = np.concatenate(list(rerank.rerank(query, gallery, 4, 2, 0.3)))
    assert np.isfinite(distances).all()
    assert distances[:, :20].max() < distances[:, 20:].min()
    assert np.isfinite(np.concatenate(list(rerank.rerank(query, np.ones((9, 4)), 4, 2)))).all()


def test_memory_is_a_block_and_not_all_pairs():
    generator = np.random.default_rng(3)
    query, gallery = generator.normal(size=(40, 8)), generator.normal(size=(2000, 8))
    tracemalloc.start()
    for _ in rerank.rerank(query, gallery, 6, 2, 0.3, block=32):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * 2**20  # all pairs: 16 MiB


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ((72, 6, 0.3), r"k1 = 72 .* 72 query and gallery rows: k1 must lie in 1\.\.71"),
        ((0, 6, 0.3), "k1 = 0"),
        ((20, 0, 0.3), "k2 = 0"),
        ((20, 73, 0.3), "k2 = 73"),
        ((20, 6, 1.5), "lambda = 1.5"),
        ((20, 6, float("nan")), "lambda = nan"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_at_once(parameters, words):
    query, gallery, *_ = clustered()
    with pytest.raises(UserError, match=words):
        rerank.rerank(query, gallery, *parameters)


def test_values_that_are_not_finite_are_refused():
    query, gallery, *_ = clustered()
    gallery[4, 0] = np.nan
    with pytest.raises(UserError, match=r"gallery embeddings .* row 4"):
        rerank.rerank(query, gallery)


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (50, 15)])
def test_recorded_distances_of_the_release(shared, k1, k2):
    """The release accumulates in float16, hence 1e-2."""
    golden = np.load(shared / "golden" / "components_official.npz")
    blocks = rerank.rerank(golden["query_features"], golden["gallery_features"], k1, k2, 0.3)
    expected = golden[f"rerank_k{k1}_{k2}_l03"]
    error = np.abs(np.concatenate(list(blocks)) - expected).max() / np.abs(expected).max()
    assert error < 1e-2


def test_ties_depend_on_no_order_and_are_pessimistic():
    """+-1 vectors and copies of rows: one result for every order of queries and gallery."""
    generator = np.random.default_rng(3)
    sides = {}
    for name, rows in (("query", 20), ("gallery", 90)):
        sides[name] = (
            generator.choice([-1.0, 1.0], (rows, 6)).astype(np.float32),
            generator.integers(8, size=rows),
        )

    def score(orders):
        query, gallery = (
            Embeddings(embedding[order], {}, identity[order], np.array(["a"] * len(order)), {})
            for (embedding, identity), order in zip(sides.values(), orders, strict=True)
        )
        found = evaluate(query, gallery, Protocol("none"), rerank=(10, 4, 0.3))
        return found.metrics()

    first = score([np.arange(20), np.arange(90)])
    for _ in range(5):
        assert score([np.arange(20), generator.permutation(90)]) == first
        # Means over queries in another order round otherwise.
        found = score([generator.permutation(20), generator.permutation(90)])
        assert found["cmc"] == first["cmc"]
        assert found["mAP"] == pytest.approx(first["mAP"], abs=1e-12)


def test_equal_embeddings_give_the_lowest_score():
    identity = np.arange(30) % 10
    names = np.array(["a"] * 30)
    same = Embeddings(np.ones((30, 4), np.float32), {}, identity, names, {})
    plain = evaluate(same, same, Protocol("none")).metrics()
    again = evaluate(same, same, Protocol("none"), rerank=(5, 3, 0.3)).metrics()
    assert again == plain
    assert again["cmc"]["10"] == 0


def test_results_go_back_to_their_queries():
    """Sorted by bits inside, in the order of the queries outside."""
    query, gallery, own, theirs = clustered(5, queries=15)
    one, other = (
        Embeddings(x.astype(np.float32), {}, identity, identity.astype(str), {})
        for x, identity in ((query, own), (gallery, theirs))
    )
    (found,) = evaluate(one, other, Protocol("none"), rerank=(5, 3, 0.3)).trials
    blocks = rerank.rerank(query, gallery, 5, 3, 0.3)
    expected = metrics.per_query_of_distances(blocks, own, theirs)
    np.testing.assert_array_equal(found.query, expected.query)
    np.testing.assert_allclose(found.average_precision, expected.average_precision)
