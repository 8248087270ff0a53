"""facenet corruptions: what it corrupts, what it leaves, and what it says."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.samples import Protocol, Side
from facenet_jax import embed, evaluate, run
from facenet_jax.commands import corruptions
from facenet_jax.inputs import corruptions as images
from tests.support import tiny_run as tiny
from tests.training.evaluate_test import state


@functools.cache
def trained():
    """A run of three_stream, each modality by itself, and a random state of it."""
    opened = run.assemble(tiny.config("three_stream"), tiny.dataset(), mesh=tiny.make_mesh(1))
    return opened, state(opened)


def between(query, gallery):
    """That run, of queries of some modalities and a gallery of others."""
    opened, _ = trained()
    protocol = Protocol("tiny/x", query=Side("query", query), gallery=Side("gallery", gallery))
    return dataclasses.replace(
        opened, dataset=dataclasses.replace(opened.dataset, protocol=protocol)
    )


def seen(monkeypatch):
    """The list of all embeddings that are scored from now on."""
    found, score = [], evaluate.score
    monkeypatch.setattr(
        evaluate, "score", lambda *args: found.append(args[3]) or score(*args), raising=True
    )
    return found


def test_the_visible_side_is_corrupted_and_the_other_is_not(monkeypatch):
    """Thermal queries, visible gallery, as on SYSU-MM01; and the other way, as on RegDB."""
    for query, gallery, side in (
        ("thermal", "visible", "gallery"),
        ("visible", "thermal", "query"),
    ):
        opened = between((query,), (gallery,))
        of, trained_state = embed.test_set(opened), trained()[1]
        embedded = seen(monkeypatch)
        found = corruptions.scores(opened, trained_state, of, 3)
        monkeypatch.undo()
        assert (found["corrupted"], found["repetitions"], found["step"]) == ([side], 3, 5)
        assert found["clean"] == evaluate.score(opened, trained_state, of)
        assert found["mean"]["mAP"] == pytest.approx(np.mean([x["mAP"] for x in found["each"]]))
        assert found["deviation"]["cmc"]["1"] == np.std([x["cmc"]["1"] for x in found["each"]])
        assert sum(found["drawn"].values()) == 3 * 16
        assert "frost is a procedural texture" in found["note"]
        changed = 1 if side == "gallery" else 0
        *draws, clean = embedded
        for draw in draws:
            np.testing.assert_array_equal(draw[1 - changed].embedding, clean[1 - changed].embedding)
            assert (draw[changed].embedding != clean[changed].embedding).any(axis=1).all()
        assert (draws[0][changed].embedding != draws[1][changed].embedding).any()


def test_the_images_are_those_that_samples_have():
    """Of others, nothing is drawn; missing images stay missing."""
    split = tiny.dataset().splits["gallery"]
    rows = split.rows.copy()
    rows[0, :4] = -1
    new, types = corruptions.corrupted(dataclasses.replace(split, rows=rows), 2, first=5)
    expected, names, _ = images.corrupted(split.images["visible"][4:], 2, first=5)
    assert types == names.tolist()
    assert (new.rows[0, :4] == -1).all()
    np.testing.assert_array_equal(new.images["visible"][new.rows[0, 4:]], expected)
    assert new.images["thermal"] is split.images["thermal"]


def test_where_both_sides_have_visible_images_both_are_corrupted():
    opened, trained_state = trained()
    dataset = tiny.dataset(query=tiny.training_split(4, seed=6))
    opened = dataclasses.replace(opened, dataset=dataset)
    found = corruptions.scores(opened, trained_state, embed.test_set(opened), 1)
    assert found["corrupted"] == ["query", "gallery"]
    assert sum(found["drawn"].values()) == 2 * 16


def test_one_split_on_both_sides_is_corrupted_once(monkeypatch):
    opened, trained_state = trained()
    of = embed.test_set(opened)
    assert of.query.split is of.gallery.split
    embedded = seen(monkeypatch)
    found = corruptions.scores(opened, trained_state, of, 1)
    assert sum(found["drawn"].values()) == 16
    np.testing.assert_array_equal(*(side.embedding for side in embedded[0]))


def test_a_set_without_visible_images_is_refused():
    opened = between(("thermal",), ("near_infrared",))
    with pytest.raises(UserError, match=r"compares thermal with near_infrared, without a visible"):
        corruptions.scores(opened, trained()[1], embed.test_set(opened), 1)


def test_the_table():
    opened = between(("thermal",), ("visible",))
    found = corruptions.scores(opened, trained()[1], embed.test_set(opened), 2)
    lines = corruptions.text(json.loads(json.dumps(found))).splitlines()
    assert lines[0].split() == ["visible", "images", "mAP", "mINP", "R1"]
    assert lines[1].split()[1] == f"{100 * found['clean']['mAP']:.1f}"
    assert lines[2].split()[1:4] == [
        f"{100 * found['mean']['mAP']:.1f}",
        "+-",
        f"{100 * found['deviation']['mAP']:.1f}",
    ]
    assert lines[3].startswith("Corrupted: gallery; 2 repetitions")
    assert lines[4] == f"Note: {images.FROST_NOTE}."
