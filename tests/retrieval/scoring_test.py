"""Protocols: junk, ignored rows, trials and collapsed identities, against a slow obvious twin."""

import numpy as np
import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tfds.errors import UserError
from data_tfds.samples import Protocol, Side
from facenet_jax import retrieval
from facenet_jax.retrieval import Embeddings, metrics, protocols, report
from facenet_jax.retrieval.distances import given_rows
from facenet_jax.retrieval.rerank import rerank

SYSU = Protocol("sysu", ignore=(("camera", 3, 2),), collapse=True)


def twin(distances, query, gallery, protocol):
    """The definition, one query and one gallery row at a time: {query: (AP, INP, CMC's rank)}."""
    found = {}
    for q, row in enumerate(distances):
        kept = []
        for g, distance in enumerate(row):
            match = query["identity"][q] == gallery["identity"][g]
            junk = protocol.junk
            leaves = match and junk != "none" and query[junk][q] == gallery[junk][g]
            for label, query_value, gallery_value in protocol.ignore:
                leaves |= query[label][q] == query_value and gallery[label][g] == gallery_value
            if not leaves:
                kept.append((distance, bool(match), gallery["identity"][g]))
        kept.sort()  # at equal distances False, no match, comes first
        ranks = [rank for rank, (_, match, _) in enumerate(kept, start=1) if match]
        if ranks:
            before = [identity for *_, identity in kept[: ranks[0]]]
            found[q] = (
                sum(hit / rank for hit, rank in enumerate(ranks, 1)) / len(ranks),
                len(ranks) / ranks[-1],
                len(set(before)) if protocol.collapse else ranks[0],
            )
    return found


def check(ranking, expected):
    assert ranking.query.tolist() == list(expected)
    found = zip(
        ranking.average_precision,
        ranking.inverse_negative_penalty,
        ranking.first_match,
        strict=True,
    )
    for ours, theirs in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def score_distances(distances, query, gallery, protocol):
    shape = distances.shape
    relevance = protocols.relevance(protocol, query, gallery, shape[0], np.arange(shape[1]))
    rows = given_rows([distances], *shape, relevance.valid)
    return metrics.rank(rows, relevance, protocol.collapse)


def side(generator, rows, width=4, **labels):
    """Vectors of +-1, whose distances are few and exact, with labels of few values."""
    held = {"camera": generator.integers(4, size=rows), "scene": generator.integers(3, size=rows)}
    return Embeddings(
        generator.choice([-1.0, 1.0], size=(rows, width)).astype(np.float32),
        {"all": (0, width)},
        generator.integers(5, size=rows),
        np.array([f"sample-{row}" for row in range(rows)]),
        {**held, **labels},
    )


RULES = st.builds(
    Protocol,
    name=st.just("drawn"),
    junk=st.sampled_from(["none", "camera", "scene"]),
    ignore=st.lists(
        st.tuples(st.sampled_from(["camera", "scene"]), st.integers(0, 3), st.integers(0, 3)),
        max_size=3,
    ).map(tuple),
    collapse=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(RULES, st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_any_protocol_equals_the_twin(protocol, seed, trials):
    """Distances of few values, so that ties are everywhere; trials of any rows of the gallery."""
    generator = np.random.default_rng(seed)
    query, gallery = side(generator, generator.integers(1, 8)), side(generator, 30)
    chosen = [generator.permutation(30)[: generator.integers(1, 31)] for _ in range(trials)]
    if trials:
        protocol = Protocol(**{**vars(protocol), "trials": lambda labels: chosen})
    result = retrieval.evaluate(query, gallery, protocol)
    distances = -(query.embedding @ gallery.embedding.T)
    assert len(result.trials) == max(trials, 1)
    for ranking, rows in zip(result.trials, chosen or [np.arange(30)], strict=True):
        labels = {name: values[rows] for name, values in gallery.by_name.items()}
        expected = twin(distances[:, rows], query.by_name, labels, protocol)
        check(ranking, expected)
        check(score_distances(distances[:, rows], query.by_name, labels, protocol), expected)
        assert (ranking.queries, ranking.gallery) == (len(query), len(rows))


@pytest.mark.parametrize("junk", ["none", "camera", "scene"])
def test_one_trial_has_the_numbers_of_per_query_to_the_last_bit(junk):
    generator = np.random.default_rng(0)
    query, gallery = side(generator, 40), side(generator, 300)
    vectors = [generator.normal(size=(rows, 24)).astype(np.float32) for rows in (40, 300)]
    query, gallery = (
        Embeddings(vector, {}, each.identity, each.name, each.labels)
        for vector, each in zip(vectors, (query, gallery), strict=True)
    )
    labels = [query.identity, gallery.identity]
    if junk != "none":
        labels += [query.labels[junk], gallery.labels[junk]]
    result = retrieval.evaluate(query, gallery, Protocol("p", junk))
    keep = generator.random(40) < 0.4
    expected = metrics.per_query(*vectors, *labels)
    assert result.metrics() == expected.metrics()
    assert result.metrics(keep) == result.subset(keep) == expected.metrics(keep)
    assert result.subset(keep & False) is None

    again = retrieval.evaluate(query, gallery, Protocol("p", junk), rerank=(8, 3, 0.3))
    expected = metrics.per_query_of_distances(rerank(*vectors, 8, 3, 0.3), *labels)
    assert again.metrics() == expected.metrics()


def recorded():
    q, g = np.arange(20), np.arange(60)
    distances = ((37 * q[:, None] + 101 * g + 13 * q[:, None] * g) % 97) + 0.001 * g
    query = {"identity": (2 * q) % 6, "camera": np.where(q % 2, 6, 3), "time": q % 4}
    gallery = {
        "identity": (5 * g) % 7,
        "camera": np.array((1, 2, 4, 5))[g % 4],
        "time": (g // 3) % 4,
    }
    return distances, query, gallery


@pytest.mark.parametrize(
    ("protocol", "precision", "penalty", "cmc"),
    [
        (Protocol("p"), 0.2084163851, 0.1604648641, [0.15, 0.65, 0.90, 1.0]),
        (Protocol("p", "time"), 0.1566701051, 0.12637909, [0.05, 0.50, 0.85, 1.0]),
        (SYSU, 0.2175446264, 0.1668817000, [0.20, 0.75, 1.0, 1.0]),
    ],
    ids=["none", "junk", "ignore and collapse"],
)
def test_recorded_values_of_closed_form_distances(protocol, precision, penalty, cmc):
    """Values of an independent float64 computation; one mINP was recorded with 8 digits."""
    score = score_distances(*recorded(), protocol).metrics()
    assert score["mAP"] == pytest.approx(precision, abs=1e-10)
    assert score["mINP"] == pytest.approx(penalty, abs=5e-9 if protocol.junk == "time" else 1e-10)
    assert list(score["cmc"].values()) == pytest.approx(cmc, abs=1e-12)


def test_collapse_counts_each_identity_at_its_first_row():
    query = {"identity": np.array([7])}
    gallery = {"identity": np.array([5, 5, 7, 3])}
    distances = np.arange(4.0)[None]
    collapsed = score_distances(distances, query, gallery, Protocol("p", collapse=True))
    assert collapsed.first_match.tolist() == [2]
    assert score_distances(distances, query, gallery, Protocol("p")).first_match.tolist() == [3]
    assert collapsed.average_precision.tolist() == [1 / 3]  # of rows, not of identities
    tied = score_distances(0 * distances, query, gallery, Protocol("p", collapse=True))
    assert tied.first_match.tolist() == [3]  # both other identities come before


@pytest.mark.parametrize(
    ("prefix", "protocol", "columns"),
    [("sysu", SYSU, 150), ("regdb", Protocol("regdb"), 150), ("small_regdb", Protocol("r"), 15)],
)
def test_recorded_values_of_visible_infrared_protocols(shared, prefix, protocol, columns):
    path = shared / "golden" / "siblings" / "agw" / "metrics.npz"
    if not path.is_file():
        pytest.skip("no recorded values of visible-infrared protocols in ../shared")
    z = np.load(path)
    query = {"identity": z["sysu_q_pids"], "camera": z["sysu_q_cams"]}
    gallery = {"identity": z["sysu_g_pids"][:columns], "camera": z["sysu_g_cams"][:columns]}
    ranking = score_distances(z["sysu_distmat"][:, :columns], query, gallery, protocol)
    score = ranking.metrics()
    assert score["mAP"] == pytest.approx(float(z[f"{prefix}_map"]), abs=1e-6)
    assert score["mINP"] == pytest.approx(float(z[f"{prefix}_minp"]), abs=1e-6)
    cmc = [(ranking.first_match <= rank).mean() for rank in range(1, len(z[f"{prefix}_cmc"]) + 1)]
    np.testing.assert_allclose(cmc, z[f"{prefix}_cmc"], atol=1e-6)
    if prefix == "sysu":
        assert (score["queries"], score["valid_queries"]) == (64, 61)


def test_trials_are_averaged_with_their_deviation():
    generator = np.random.default_rng(1)
    query, gallery = side(generator, 20), side(generator, 90)
    drawn = []

    def trials(labels):
        assert set(labels) == {"identity", "name", "camera", "scene"}
        np.testing.assert_array_equal(labels["camera"], gallery.labels["camera"])
        drawn.extend(generator.permutation(90)[:size] for size in (40, 40, 42))
        return drawn

    result = retrieval.evaluate(query, gallery, Protocol("p", "camera", trials=trials))
    score, each = result.metrics(), [trial.metrics() for trial in result.trials]
    assert score["trials"] == len(each) == 3
    for name in ("mAP", "mINP"):
        values = [one[name] for one in each]
        assert score[name] == pytest.approx(np.mean(values), rel=1e-12)
        assert score["deviation"][name] == pytest.approx(np.std(values), rel=1e-9)
    ones = [one["cmc"]["1"] for one in each]
    assert score["cmc"]["1"] == pytest.approx(np.mean(ones))
    assert score["deviation"]["cmc"]["1"] == pytest.approx(np.std(ones))
    assert score["queries"] == 20
    assert score["gallery"] == pytest.approx(122 / 3)
    again = Protocol("p", "camera", trials=lambda labels: [np.arange(90)])
    assert retrieval.evaluate(query, gallery, again).metrics() == (
        retrieval.evaluate(query, gallery, Protocol("p", "camera")).metrics()
    )


def test_queries_whose_matches_are_all_ignored_are_counted_as_skipped():
    query, gallery = np.array([3, 3, 6]), np.array([2, 1, 2])
    identity = np.array([0, 1, 2])
    sides = [
        Embeddings(np.eye(3, dtype=np.float32), {}, identity, np.array(["a", "b", "c"]), labels)
        for labels in ({"camera": query}, {"camera": gallery})
    ]
    result = retrieval.evaluate(*sides, SYSU)
    assert result.trials[0].query.tolist() == [1, 2]
    score = result.metrics()
    assert (score["queries"], score["valid_queries"], score["gallery"]) == (3, 2, 3)
    with pytest.raises(UserError, match="None of the 1 queries has a match among the 3"):
        result.metrics(np.array([True, False, False]))


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        ([], "draws no trial"),
        ([np.arange(3), np.array([0, 9])], "Trial 1 .* from 0 to 8"),
        ([np.array([-1])], "Trial 0"),
        ([np.arange(3.0)], r"float64 \[3\]"),
        ([np.zeros(9, bool)], r"bool \[9\]"),
        ([np.zeros(0, int)], "at least one"),
        ([np.array([1, 2, 1])], "has a row twice"),
    ],
)
def test_trials_that_are_no_gallery_rows(trials, words):
    generator = np.random.default_rng(2)
    protocol = Protocol("p", trials=lambda labels: trials)
    with pytest.raises(UserError, match=words):
        retrieval.evaluate(side(generator, 4), side(generator, 9), protocol)


@pytest.mark.parametrize(
    ("protocol", "change", "words"),
    [
        (Protocol("p", "view"), {}, "query side has no view among its labels .camera, scene"),
        (Protocol("p", ignore=(("view", 1, 2),)), {}, "has no view"),
        (
            Protocol("p", "camera"),
            {"camera": np.array([0, 1, -1, 2, -1])},
            r"gallery side has no camera for 2 rows, first for row 2 \(sample-2\), so the protocol "
            "p does not belong to this data; scene and none would",
        ),
        (
            Protocol("p", "wet"),
            {"wet": np.ones((5, 2), int)},
            r"no wet that is an integer \[N\], but int64 \[5, 2\]",
        ),
        (Protocol("p", "wet"), {"wet": np.ones(5, bool)}, r"but bool \[5\]"),
    ],
)
def test_labels_that_a_protocol_lacks_are_one_sentence(protocol, change, words):
    generator = np.random.default_rng(3)
    query, gallery = side(generator, 4, wet=np.ones(4, int)), side(generator, 5, **change)
    with pytest.raises(UserError, match=words) as error:
        retrieval.evaluate(query, gallery, protocol)
    assert len(str(error.value).splitlines()) == 1


def test_sides_of_different_widths_are_refused():
    generator = np.random.default_rng(4)
    with pytest.raises(UserError, match="4 wide and the gallery's 6"):
        retrieval.evaluate(side(generator, 4), side(generator, 9, width=6), Protocol("p"))


def test_lines_and_tables():
    generator = np.random.default_rng(5)
    query, gallery = side(generator, 20), side(generator, 90)
    one = retrieval.evaluate(query, gallery, Protocol("p", "camera")).metrics()
    cmc = " ".join(f"R{k} {100 * value:.1f}" for k, value in one["cmc"].items())
    assert report.line(one, "p") == (
        f"mAP {100 * one['mAP']:.1f} mINP {100 * one['mINP']:.1f} {cmc} "
        "(p: 20 queries valid, 0 skipped, gallery 90)"
    )
    rows = [np.arange(0, 60), np.arange(30, 90)]
    several = Protocol("p", "camera", trials=lambda labels: rows)
    ten = retrieval.evaluate(query, gallery, several).metrics()
    deviation = f"{100 * ten['deviation']['mAP']:.1f}"
    assert report.line(ten, "p").startswith(f"mAP {100 * ten['mAP']:.1f} +- {deviation} mINP ")
    assert report.line(ten, "p").endswith("(p: 2 trials, 20 queries valid, 0 skipped, gallery 60)")

    result = {"protocol": "p", "last": one | {"step": 7}, "best_on_test": ten | {"step": 5}}
    per_modality = {"near_infrared": {"all": 0.5, "clean": None, "flared": 0.25}}
    lines = report.report(result, per_modality).splitlines()
    assert lines[0].split() == ["p", "mAP", "mINP", "R1", "R5", "R10", "valid", "skipped", "step"]
    assert lines[1].split()[:2] == ["last", f"{100 * one['mAP']:.1f}"]
    assert lines[1].split()[-3:] == ["20", "0", "7"]
    assert len(lines[1]) == len(lines[0]) == len(lines[2])
    assert lines[3].split()[:4] == ["+-", "over", "trials", deviation]
    assert lines[4] == ""
    assert lines[6].split() == ["near-infrared", "50.0", "-", "25.0"]
    assert report.report({"protocol": "p"}, None).count("\n") == 0


def test_protocols_by_name():
    assert protocols.by_name("none") == Protocol("none")
    assert protocols.by_name("view") == Protocol("view", "view")
    assert protocols.by_name("msvr310/scene").junk == "scene"
    assert protocols.by_name("tests.retrieval.scoring_test.SYSU").collapse
    assert Protocol("p").query == Side("query")


def test_parts_in_other_columns_are_compared_by_name():
    """The visible columns of one file lie where the thermal ones of the other do."""
    generator = np.random.default_rng(6)
    identity = generator.integers(5, size=40)
    embedding = generator.normal(size=(40, 8)).astype(np.float32)
    names = np.array([f"n{i}" for i in range(40)])

    def of(rows, array, parts):
        return Embeddings(array[rows], parts, identity[rows], names[rows], {})

    query, gallery = np.arange(10), np.arange(10, 40)
    parts = {"visible": (0, 4), "thermal": (4, 8)}
    turned = np.concatenate([embedding[:, 4:], embedding[:, :4]], axis=1)
    back = {"thermal": (0, 4), "visible": (4, 8)}
    expected = retrieval.evaluate(
        of(query, embedding, parts), of(gallery, embedding, parts), Protocol("none")
    ).metrics()
    found = retrieval.evaluate(
        of(query, embedding, parts), of(gallery, turned, back), Protocol("none")
    ).metrics()
    assert found == expected
    with pytest.raises(UserError, match="are not as wide in the query as in the gallery"):
        retrieval.evaluate(
            of(query, embedding, parts),
            of(gallery, embedding, {"visible": (0, 2), "thermal": (2, 8)}),
            Protocol("none"),
        )


@pytest.mark.parametrize("shift", [2**53, 2**62, 2**63 - 3])
def test_large_identities_of_two_types_are_compared_exactly(shift):
    generator = np.random.default_rng(7)
    identity = generator.integers(6, size=30)
    embedding = generator.normal(size=(30, 4))

    def score(own, theirs):
        return metrics.per_query(embedding[:10], embedding[10:], own, theirs).metrics()

    large = identity.astype(np.uint64) + np.uint64(shift)
    signed = identity[:10].astype(object) + shift
    inside = np.array([int(x) if x < 2**63 else -1 for x in signed], np.int64)
    expected = score(np.where(inside < 0, -1, identity[:10]), identity[10:])
    assert score(inside, large[10:]) == expected


def own_rows(tmp_path, count, camera):
    """A query file of which `count` of 6 rows are in the gallery file too."""
    generator = np.random.default_rng(8)
    embedding = generator.normal(size=(14, 4)).astype(np.float32)
    identity, names = np.arange(14) % 3, np.array([f"n{i}" for i in range(14)])
    for name, rows in (("q", np.arange(6)), ("g", np.arange(6 - count, 14))):
        labels = {"camera": camera[rows]}
        side = Embeddings(embedding[rows], {}, identity[rows], names[rows], labels)
        side.write(tmp_path / f"{name}.npz")
    return Embeddings.read(tmp_path / "q.npz"), Embeddings.read(tmp_path / "g.npz")


def test_queries_that_find_themselves_are_refused_or_counted(tmp_path, monkeypatch):
    camera, lines = np.arange(14), []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    sides = own_rows(tmp_path, 6, camera)
    with pytest.raises(UserError, match=r"6 of 6 rows of .*q.npz are in .*g.npz too.* finds itsel"):
        retrieval.evaluate(*sides, Protocol("none"))
    retrieval.evaluate(*sides, Protocol("camera", "camera"))  # its own row is junk
    assert not lines
    retrieval.evaluate(*own_rows(tmp_path, 2, camera), Protocol("none"))
    assert "2 of 6 rows" in lines[0]
    assert "these queries find themselves" in lines[0]
    retrieval.evaluate(*own_rows(tmp_path, 0, camera), Protocol("none"))
    assert len(lines) == 1


def test_an_offset_changes_no_centred_score():
    """Features around a far point: their cosines hardly differ, until the point is subtracted."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8))
    identity = np.repeat(np.arange(5, dtype=np.int32), 6)
    rows = np.float32(centres[identity] + rng.normal(size=(30, 8)))

    def side(chosen, offset):
        names = np.flatnonzero(chosen).astype(str)
        shifted = np.float32(rows[chosen] + offset)
        return Embeddings(shifted, {"visible": (0, 8)}, identity[chosen], names, {})

    def score(offset, centre):
        first = np.arange(30) % 6 < 2
        sides = side(first, offset), side(~first, offset)
        return retrieval.evaluate(*sides, Protocol("none"), centre=centre).metrics()["mAP"]

    plain, centred = (score(0.0, centre) for centre in (False, True))
    far = rng.normal(size=8) * 1000
    assert score(far, True) == pytest.approx(centred, abs=0.02)  # but for float32
    assert abs(score(far, False) - plain) > 0.05
