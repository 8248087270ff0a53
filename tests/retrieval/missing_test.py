"""Scores where modalities are missing, against the definitions one sample at a time."""

import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax.retrieval import Embeddings, evaluate, missing

NAMES = ("visible", "near_infrared", "thermal")
WIDTH = 4
PROTOCOL = Protocol("test/none", junk="none")


def side(count, seed, names=NAMES):
    """{subset: embeddings}, each of a network of its own for each subset."""
    rng = np.random.default_rng(seed)
    identity = np.arange(count, dtype=np.int32) % 5
    name = np.array([f"{seed}-{i}" for i in range(count)])
    found = {}
    for subset in missing.subsets(names):
        spans = {m: (i * WIDTH, (i + 1) * WIDTH) for i, m in enumerate(subset)}
        embedding = rng.normal(size=(count, WIDTH * len(subset))).astype(np.float32)
        embedding += identity[:, None] * 0.3
        found[subset] = Embeddings(embedding, spans, identity, name, {})
    return found


def of_sample(by_subset, i, names, matching, compared=NAMES):
    """The embedding of one sample that has these modalities, its parts that are compared."""
    parts = {name: np.zeros(WIDTH) for name in NAMES}
    chosen = by_subset[tuple(names)]
    for name in names:
        parts[name] = chosen.embedding[i, slice(*chosen.parts[name])]
    if matching == "mean":
        return np.mean([parts[name] for name in names], axis=0)
    return np.concatenate([parts[name] for name in compared])


def mean_average_precision(query, gallery, of_query, of_gallery):
    """By sorting the cosine of each pair; of equal ones the wrong come first."""
    rows = [[x / np.linalg.norm(x) for x in each] for each in (query, gallery)]
    found = []
    for i, row in enumerate(rows[0]):
        right = of_gallery == of_query[i]
        right = right[np.lexsort((right, [-np.round(row @ other, 6) for other in rows[1]]))]
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        found.append(precision[right].mean())
    return np.mean(found)


def test_subsets_are_all_but_the_empty_one():
    assert missing.subsets(("a", "b")) == [("a",), ("b",), ("a", "b")]
    assert len(missing.subsets(NAMES)) == 7


def test_parts_that_are_not_modalities_are_compared_where_both_sides_have_them():
    """As PFNet's, which has a part for pairs of modalities."""

    def renamed(by_subset):
        found = {}
        for subset, one in by_subset.items():
            names = {m: f"{m}_pair" if m == "thermal" else m for m in subset}
            parts = {names[m]: span for m, span in one.parts.items()}
            found[subset] = Embeddings(one.embedding, parts, one.identity, one.name, {})
        return found

    query, gallery = side(6, 0), side(15, 1)
    table = missing.each_against_each(renamed(query), renamed(gallery), PROTOCOL, "shared")
    assert table == missing.each_against_each(query, gallery, PROTOCOL, "shared")
    assert table["visible"]["thermal"] is None
    curve = missing.at_random(renamed(query), renamed(gallery), PROTOCOL, "shared", seeds=(1,))
    assert curve == missing.at_random(query, gallery, PROTOCOL, "shared", seeds=(1,))
    with pytest.raises(UserError, match="a mean needs one for each of visible, near_infrared"):
        missing.each_against_each(renamed(query), renamed(gallery), PROTOCOL, "mean")


@pytest.mark.parametrize("matching", missing.MATCHINGS)
def test_each_subset_against_each(matching):
    query, gallery = side(6, 0), side(15, 1)
    table = missing.each_against_each(query, gallery, PROTOCOL, matching)
    assert [len(row) for row in table.values()] == [7] * 7
    for a in query:
        for b in gallery:
            cell = table["+".join(a)]["+".join(b)]
            if matching == "shared" and not set(a) & set(b):
                assert cell is None
                continue
            common = [name for name in NAMES if name in a and name in b]
            rows = [
                [of_sample(of, i, names, matching, common) for i in range(count)]
                for of, count, names in ((query, 6, a), (gallery, 15, b))
            ]
            expected = mean_average_precision(*rows, query[a].identity, gallery[b].identity)
            np.testing.assert_allclose(cell["mAP"], expected, rtol=1e-6)


@pytest.mark.parametrize("matching", missing.MATCHINGS)
def test_missing_at_random(matching):
    query, gallery = side(6, 0), side(15, 1)
    curve = missing.at_random(query, gallery, PROTOCOL, matching, ratios=(0.0, 0.6), seeds=(1, 2))
    scores = []
    for seed in (1, 2):
        present = missing.draw(21, 3, 0.6, np.random.default_rng(seed))
        rows = [
            of_sample(query if i < 6 else gallery, i % 6 if i < 6 else i - 6, had, matching)
            for i, had in enumerate([np.array(NAMES)[row].tolist() for row in present])
        ]
        identities = query[NAMES].identity, gallery[NAMES].identity
        scores.append(mean_average_precision(rows[:6], rows[6:], *identities))
    np.testing.assert_allclose(curve[1]["mAP"], np.mean(scores), rtol=1e-6)
    np.testing.assert_allclose(curve[1]["deviation"]["mAP"], np.std(scores), atol=1e-7)
    assert curve[0]["deviation"]["mAP"] == 0
    if matching == "shared":  # nothing is missing, so this is the score of all
        whole = evaluate(query[NAMES], gallery[NAMES], PROTOCOL).metrics()
        assert curve[0]["mAP"] == whole["mAP"]


def test_as_many_samples_keep_one_modality_as_two():
    present = missing.draw(1000, 3, 0.6, np.random.default_rng(0))
    assert np.bincount(present.sum(axis=1)).tolist() == [0, 300, 300, 400]
    lacking = present[present.sum(axis=1) == 2]
    np.testing.assert_allclose(lacking.mean(axis=0), 2 / 3, atol=0.1)
    assert missing.draw(10, 3, 0.0, np.random.default_rng(0)).all()
    assert (missing.draw(10, 3, 1.0, np.random.default_rng(0)).sum(axis=1) < 3).all()


def test_a_sample_that_lacks_an_image_keeps_what_it_has():
    """Rows without a thermal image are those of the network that saw none."""
    query, gallery = side(6, 0), side(15, 1)
    present = np.ones((15, 3), bool)
    present[::2, 2] = False
    whole = gallery[NAMES]
    gallery[NAMES] = Embeddings(
        whole.embedding, whole.parts, whole.identity, whole.name, {"present": present}
    )
    table = missing.each_against_each(query, gallery, PROTOCOL, "shared")
    had = [np.array(NAMES)[row].tolist() for row in present]
    rows = [of_sample(gallery, i, names, "shared") for i, names in enumerate(had)]
    asked = [of_sample(query, i, NAMES, "shared") for i in range(6)]
    expected = mean_average_precision(asked, rows, query[NAMES].identity, whole.identity)
    cell = table["+".join(NAMES)]["+".join(NAMES)]
    np.testing.assert_allclose(cell["mAP"], expected, rtol=1e-6)


def test_parts_of_different_widths_have_no_mean():
    gallery = side(15, 1)
    whole = gallery[NAMES]
    spans = dict(zip(NAMES, ((0, 2), (2, 8), (8, 12)), strict=True))
    gallery[NAMES] = Embeddings(whole.embedding, spans, whole.identity, whole.name, {})
    with pytest.raises(UserError, match=r"\[2, 4, 6\] columns wide"):
        missing.joined(gallery, np.ones((15, 3), bool), "mean")


def test_the_tables_as_text():
    sides = side(6, 0, NAMES[:2]), side(15, 1, NAMES[:2])
    table = missing.each_against_each(*sides, PROTOCOL, "shared")
    curve = missing.at_random(*sides, PROTOCOL, "shared", ratios=(0.5,), seeds=(1,))
    lines = missing.text({"shared": table}, {"shared": curve}).splitlines()
    assert lines[1].split() == ["R", "N", "R+N"]
    assert lines[2].split()[:3] == ["R", f"{100 * table['visible']['visible']['mAP']:.1f}", "-"]
    assert f"{100 * curve[0]['mAP']:.1f}" in lines[-3]
    assert lines[-1] == "N: near_infrared, R: visible"
