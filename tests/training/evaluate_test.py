import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.samples import BANDS
from facenet_jax import evaluate, run
from facenet_jax.retrieval import baselines
from facenet_jax.runtime.mesh import replicate
from facenet_jax.step import State
from scripts import evaluate_embeddings
from tests.support import tiny_run as tiny

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    tiny.tree(folder / "tree")
    return folder


def open_run(place, **changes):
    c = tiny.config(**changes)
    c.data.root, c.data.prepared = str(place / "tree"), str(place / "prepared")
    return run.open_run(c)


@pytest.fixture(scope="module")
def opened(place):
    return open_run(place)


@pytest.fixture(scope="module")
def probe(opened):
    return evaluate.test_probe(opened)


def state(opened, step=5, seed=0):
    """A state of random parameters that claims to have done some steps."""
    collections = tiny.variables(opened.model, seed)
    params = collections.pop("params")
    optimizer = opened.optimizer.init(params)
    return replicate(State(jnp.int32(step), params, collections, optimizer), opened.mesh)


@pytest.fixture(scope="module")
def embedded(opened, probe):
    return evaluate.embed(opened, state(opened), probe)


def brute_force(probe, query, gallery):
    """mAP query by query: unit length, Euclidean, no gallery image of the query's own camera."""
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    precisions = []
    for i, x in enumerate(query):
        match = probe.gallery.identity == probe.query.identity[i]
        junk = match & (probe.gallery.camera == probe.query.camera[i])
        order = np.argsort(((gallery - x) ** 2).sum(axis=1), kind="stable")
        hits = match[order][~junk[order]]
        precisions.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return np.mean(precisions)


def test_embeddings_do_not_depend_on_the_batch(place, opened, probe, embedded):
    """16 rows in batches of 8, and of 24 with 8 rows of padding."""
    query, gallery = embedded
    assert (query.shape, gallery.shape) == ((4, 48), (12, 48))
    assert query.dtype == np.float32
    wide = open_run(place, evaluate__batch=24)
    for ours, theirs in zip(evaluate.embed(wide, state(wide), probe), embedded, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    same = np.flatnonzero(probe.gallery.camera == 1)  # the queries are in the gallery as well
    np.testing.assert_allclose(gallery[same], query, rtol=1e-5, atol=1e-5)


def test_a_network_that_diverged_is_an_error(opened, probe):
    broken = state(opened)
    params = jax.tree.map(lambda x: x * jnp.nan, broken.params)
    with pytest.raises(UserError, match="not finite; its training diverged"):
        evaluate.embed(opened, dataclasses.replace(broken, params=params), probe)


def test_the_score_is_that_of_the_protocol(opened, probe, embedded):
    score = evaluate.score(opened, state(opened), probe)
    np.testing.assert_allclose(score["mAP"], brute_force(probe, *embedded), rtol=1e-6)
    assert 0 < score["mAP"] < 1
    assert (score["queries"], score["gallery"]) == (4, 12)
    assert (score["step"], score["epoch"]) == (5, opened.plan.epoch[4])


def test_the_group_that_makes_junk_is_the_protocols(probe):
    split = probe.query
    assert evaluate.group(split, "camera") is split.camera
    assert evaluate.group(split, "scene") is split.scene
    assert evaluate.group(split, "none") is None


def test_floors_are_the_untrained_network_and_no_network(opened, probe):
    floors = evaluate.floors(opened, probe)
    assert list(floors) == ["untrained", "raw_pixels", "colour_histogram"]
    assert {(entry["step"], entry["epoch"]) for entry in floors.values()} == {(0, 0)}
    untrained = evaluate.score(opened, run.untrained_state(opened)(), probe)
    assert floors["untrained"] == untrained
    pixels = (baselines.raw_pixel_features(x.images) for x in (probe.query, probe.gallery))
    np.testing.assert_allclose(floors["raw_pixels"]["mAP"], brute_force(probe, *pixels))


def test_the_breakdown_scores_bands_and_flare_apart(opened, probe, embedded):
    """All queries of this set are flared, so the clean ones have no score."""
    table = evaluate.breakdown(opened, state(opened), probe)
    assert list(table) == [
        "visible",
        "near_infrared",
        "thermal",
        "visible+near_infrared",
        "visible+near_infrared+thermal",
    ]
    assert {row["clean"] for row in table.values()} == {None}
    assert all(row["flared"] == row["all"] for row in table.values())
    np.testing.assert_allclose(
        table["visible+near_infrared+thermal"]["all"], brute_force(probe, *embedded), rtol=1e-6
    )
    thermal = (x[:, 32:] for x in embedded)  # no other band has a part in it
    np.testing.assert_allclose(table["thermal"]["all"], brute_force(probe, *thermal), rtol=1e-6)
    assert table["visible"]["all"] != table["thermal"]["all"]

    entry = evaluate.score(opened, state(opened), probe)
    lines = evaluate.report({"protocol": "p", "last": entry}, table).splitlines()
    assert lines[1].split()[:2] == ["last", f"{100 * entry['mAP']:.1f}"]
    assert lines[-3].split()[0] == "thermal"
    assert lines[-3].split()[2] == "-"


def finished(opened, folder, probes, last):
    """What `finish` makes of checkpoints that were scored by these probes, None: not at all."""
    folder.mkdir()
    checkpoints = run.open_checkpoints(folder)
    for step, by in probes.items():
        trained = state(opened, step, seed=step)
        checkpoints.save(step, trained, by and evaluate.score(opened, trained, by))
    checkpoints.wait()
    probe = evaluate.test_probe(opened)
    result = evaluate.finish(opened, state(opened, last, seed=last), checkpoints, folder, probe)
    checkpoints.close()
    assert json.loads((folder / "result.json").read_text()) == result
    return result


def exported(folder):
    with np.load(folder / "embeddings" / "query.npz") as file:
        return file["embedding"]


def test_the_best_may_be_exported(place, probe, tmp_path):
    """Of two evaluated checkpoints and a last one, with another seed each."""
    opened = open_run(place, evaluate__export="best")
    result = finished(opened, tmp_path / "run", {1: probe, 2: probe, 3: None}, last=3)
    scores = {seed: evaluate.score(opened, state(opened, seed, seed), probe) for seed in (1, 2, 3)}
    best = 1 if scores[1]["mAP"] >= scores[2]["mAP"] else 2
    assert result["best_on_test"] == scores[best]
    assert result["last"] == scores[3]
    query, _ = evaluate.embed(opened, state(opened, best, seed=best), probe)
    np.testing.assert_array_equal(exported(tmp_path / "run"), query)


def test_scores_from_the_exported_files_are_those_of_training(opened, probe, tmp_path):
    """Every number of result.json, to the last bit, by scripts/evaluate_embeddings.py."""
    result = finished(opened, tmp_path / "run", {1: probe}, last=1)
    files = [str(tmp_path / "run" / "embeddings" / f"{name}.npz") for name in ("query", "gallery")]
    options = ["--query", files[0], "--gallery", files[1], "--protocol", "camera"]
    assert evaluate_embeddings.main([*options, "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    kept = {name: value for name, value in result["last"].items() if name not in ("step", "epoch")}
    assert kept.keys() >= {"mAP", "mINP", "cmc", "queries", "valid_queries", "gallery"}
    assert {name: scores[name] for name in kept} == kept


def test_a_validation_split_chooses_the_best(place, tmp_path):
    """Two identities leave the training split; the name of the entry says who chose."""
    opened = open_run(
        place, data__validation_identities=2, train__identities_per_batch=4, evaluate__batch=16
    )
    assert opened.config.model.identities == 6
    probe = evaluate.validation_probe(opened)
    assert set(probe.query.identity) == {7, 8}
    result = finished(opened, tmp_path / "run", {1: probe, 2: probe}, last=2)
    assert "best_on_test" not in result
    entry = result["best_on_validation"]
    on_validation = {s: evaluate.score(opened, state(opened, s, s), probe)["mAP"] for s in (1, 2)}
    assert entry["validation_mAP"] == max(on_validation.values())
    assert entry["step"] == max(on_validation, key=on_validation.get)
    assert entry["queries"] == 4  # scored on the test set


def test_without_a_validation_split_there_is_no_probe(opened):
    assert evaluate.validation_probe(opened) is None


def test_the_export_keeps_labels_beside_embeddings(opened, probe, embedded, tmp_path):
    evaluate.export(opened, probe, tmp_path / "out", *embedded)
    for name, split, embedding in zip(
        ("query", "gallery"), (probe.query, probe.gallery), embedded, strict=True
    ):
        with np.load(tmp_path / "out" / f"{name}.npz") as file:
            np.testing.assert_array_equal(file["embedding"], embedding)
            for label in ("identity", "camera", "scene", "name"):
                np.testing.assert_array_equal(file[label], getattr(split, label))
            np.testing.assert_array_equal(file["flare"], split.flare_fraction > 0.05)
            assert tuple(file["modalities"]) == BANDS
    assert not list((tmp_path / "out").glob("*.part"))
