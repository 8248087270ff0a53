import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.samples import Protocol, Side
from facenet_jax import embed, evaluate, run
from facenet_jax.commands import modalities
from facenet_jax.commands import score as evaluate_embeddings
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.retrieval import missing, sanity_baselines
from facenet_jax.retrieval.report import report
from facenet_jax.runtime.checkpoint import open_checkpoints
from facenet_jax.runtime.mesh import replicate
from facenet_jax.step import State
from tests.support import tiny_run as tiny

CAMERA = Protocol("tiny/camera", junk="camera")
EVERY = slice(0, None, 3)


def data(protocol=CAMERA, **splits) -> Dataset:
    """Four identities of three samples under three cameras; those of the first camera query."""
    images, flare = tiny.pictures(4, 3, seed=101)
    images, flare = dict(zip(tiny.MODALITIES, images, strict=True)), np.pad(flare, ((0, 0), (0, 1)))
    flare[EVERY, 0] = True  # all queries are flared
    camera = np.tile(np.arange(1, 4, dtype=np.int32), 4)
    gallery = tiny.split(images, 101 + np.arange(12) // 3, camera=camera, flare=flare)
    found = tiny.dataset(query=gallery[EVERY], gallery=gallery, **splits)
    return dataclasses.replace(found, protocol=protocol)


@functools.cache
def baseline():
    """A run of three_stream, whose compiled programs serve most tests."""
    return run.assemble(tiny.config("three_stream"), data(), mesh=tiny.make_mesh(2))


def open_run(dataset=None, **changes):
    """The run with another data set or other options that are not the model's."""
    return dataclasses.replace(
        baseline(),
        config=tiny.config("three_stream", **changes),
        dataset=dataset or data(),
        streams=changes.get("data__resident") == "never",
    )


@pytest.fixture(scope="module")
def opened():
    """FACENet, for which neighbours and modalities in a batch could matter."""
    return run.assemble(tiny.config(model__depth=1), data(), mesh=tiny.make_mesh(2))


@pytest.fixture(scope="module")
def test_set(opened):
    return embed.test_set(opened)


def state(opened, step=5, seed=0):
    """A state of random parameters that claims to have done some steps."""
    collections = tiny.variables(opened.model, seed)
    params = collections.pop("params")
    optimizer = opened.optimizer.init(params)
    return replicate(State(jnp.int32(step), params, collections, optimizer), opened.mesh)


@pytest.fixture(scope="module")
def embedded(opened, test_set):
    return embed.embed(opened, state(opened), test_set)


def brute_force(of, query, gallery):
    """mAP query by query: unit length, Euclidean, no gallery image of the query's own camera."""
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    ours, theirs, precisions = of.query.split, of.gallery.split, []
    for i, x in enumerate(query):
        match = theirs.identity == ours.identity[i]
        junk = match & (theirs.labels["camera"] == ours.labels["camera"][i])
        order = np.argsort(((gallery - x) ** 2).sum(axis=1), kind="stable")
        hits = match[order][~junk[order]]
        precisions.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return np.mean(precisions)


def arrays(embedded):
    return tuple(side.embedding for side in embedded)


def test_embeddings_do_not_depend_on_the_batch(opened, test_set, embedded):
    """16 rows in batches of 8, and of 24 with 8 rows of padding."""
    query, gallery = arrays(embedded)
    assert (query.shape, gallery.shape) == ((4, 48), (12, 48))
    assert query.dtype == np.float32
    wide = dataclasses.replace(opened, config=tiny.config(evaluate__batch=24))
    again = arrays(embed.embed(wide, state(opened), test_set))
    for ours, theirs in zip(again, (query, gallery), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gallery[EVERY], query, rtol=1e-5, atol=1e-5)


def test_a_network_that_diverged_is_an_error(opened, test_set):
    broken = state(opened)
    params = jax.tree.map(lambda x: x * jnp.nan, broken.params)
    with pytest.raises(UserError, match="not finite; its training diverged"):
        embed.embed(opened, dataclasses.replace(broken, params=params), test_set)


def test_the_score_is_that_of_the_protocol(opened, test_set, embedded):
    score = evaluate.score(opened, state(opened), test_set)
    np.testing.assert_allclose(score["mAP"], brute_force(test_set, *arrays(embedded)), rtol=1e-6)
    assert 0 < score["mAP"] < 1
    assert (score["queries"], score["gallery"]) == (4, 12)
    assert (score["step"], score["epoch"]) == (5, opened.plan.epoch[4])


def test_baselines_are_the_untrained_network_and_no_network(opened, test_set):
    found = evaluate.baselines(opened, test_set)
    assert list(found) == ["untrained", "raw_pixels", "colour_histogram"]
    assert {(entry["step"], entry["epoch"]) for entry in found.values()} == {(0, 0)}
    untrained = evaluate.score(opened, run.untrained_state(opened)(), test_set)
    assert found["untrained"] == untrained
    pixels = (
        sanity_baselines.raw_pixel_features(
            [images[rows] for images, rows in zip(split.images.values(), split.rows, strict=True)]
        )
        for split in (test_set.query.split, test_set.gallery.split)
    )
    np.testing.assert_allclose(found["raw_pixels"]["mAP"], brute_force(test_set, *pixels))


def test_modalities_and_flare_are_scored_apart(opened, test_set, embedded):
    """All queries of this set are flared, so the clean ones have no score."""
    table = evaluate.per_modality(opened, state(opened), test_set)
    assert list(table) == [
        "visible",
        "near_infrared",
        "thermal",
        "visible+near_infrared",
        "visible+thermal",
        "near_infrared+thermal",
        "visible+near_infrared+thermal",
    ]
    assert {row["clean"] for row in table.values()} == {None}
    assert all(row["flared"] == row["all"] for row in table.values())
    np.testing.assert_allclose(
        table["visible+near_infrared+thermal"]["all"],
        brute_force(test_set, *arrays(embedded)),
        rtol=1e-6,
    )
    thermal = (x[:, 32:] for x in arrays(embedded))  # no other modality has a part in it
    np.testing.assert_allclose(table["thermal"]["all"], brute_force(test_set, *thermal), rtol=1e-6)
    assert table["visible"]["all"] != table["thermal"]["all"]

    entry = evaluate.score(opened, state(opened), test_set)
    lines = report({"protocol": "p", "last": entry}, table).splitlines()
    assert lines[1].split()[:2] == ["last", f"{100 * entry['mAP']:.1f}"]
    assert lines[-5].split()[0] == "thermal"
    assert lines[-5].split()[2] == "-"


def test_each_subset_of_modalities_is_scored_against_each(opened, test_set, embedded):
    found = modalities.tables(opened, state(opened), test_set)
    table = evaluate.per_modality(opened, state(opened), test_set)
    same = {name: row[name]["mAP"] for name, row in found["subsets"]["shared"].items()}
    assert same == pytest.approx({name: row["all"] for name, row in table.items()})
    assert found["subsets"]["shared"]["visible"]["thermal"] is None
    assert found["subsets"]["mean"]["visible"]["thermal"]["mAP"] > 0
    assert [point["ratio"] for point in found["at_random"]["mean"]] == list(missing.RATIOS)
    assert found["at_random"]["shared"][0]["mAP"] == pytest.approx(
        evaluate.score(opened, state(opened), test_set, embedded)["mAP"]
    )


def test_subsets_need_both_sides_to_have_them():
    across = cross_modal()
    with pytest.raises(UserError, match=r"compares thermal with visible; this command needs"):
        modalities.tables(across, state(across), embed.test_set(across))


def finished(opened, folder, sets, last, own=True):
    """What `finish` makes of checkpoints that were scored on these sets, None: not at all."""
    folder.mkdir()
    checkpoints = open_checkpoints(folder)
    for step, by in sets.items():
        trained = state(opened, step, seed=step)
        checkpoints.save(step, trained, by and evaluate.score(opened, trained, by))
    checkpoints.wait()
    of = embed.test_set(opened)
    last = state(opened, last, seed=last)
    result = evaluate.finish(opened, last, checkpoints, folder, of, own=own)
    checkpoints.close()
    assert json.loads((folder / "result.json").read_text()) == result
    return result


def exported(folder):
    with np.load(folder / "embeddings" / "query.npz") as file:
        return file["embedding"]


def test_the_best_may_be_exported(tmp_path):
    """Of two evaluated checkpoints and a last one, with another seed each."""
    opened = open_run(evaluate__export="best")
    of = embed.test_set(opened)
    result = finished(opened, tmp_path / "run", {1: of, 2: of, 3: None}, last=3)
    scores = {seed: evaluate.score(opened, state(opened, seed, seed), of) for seed in (1, 2, 3)}
    best = 1 if scores[1]["mAP"] >= scores[2]["mAP"] else 2
    assert result["best_on_test"] == scores[best]
    assert result["last"] == scores[3]
    query, _ = embed.embed(opened, state(opened, best, seed=best), of)
    np.testing.assert_array_equal(exported(tmp_path / "run"), query.embedding)


def test_on_other_data_the_best_in_training_is_scored_again(tmp_path):
    opened = open_run()
    of = embed.test_set(opened)
    result = finished(opened, tmp_path / "run", {1: of, 2: of}, last=2, own=False)
    assert result.keys() == {"protocol", "last", "best_in_training"}
    step = result["best_in_training"]["step"]
    assert result["best_in_training"] == evaluate.score(opened, state(opened, step, step), of)


def test_scores_from_the_exported_files_are_those_of_training(tmp_path):
    """Every number of result.json, to the last bit, by scripts/evaluate_embeddings.py."""
    opened = open_run(evaluate__expand=(2, 1.0), evaluate__rerank=(3, 2, 0.3))
    result = finished(opened, tmp_path / "run", {1: embed.test_set(opened)}, last=1)
    files = [str(tmp_path / "run" / "embeddings" / f"{name}.npz") for name in ("query", "gallery")]
    options = ["--query", files[0], "--gallery", files[1], "--protocol", "camera"]
    assert evaluate_embeddings.main([*options, "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    kept = {name: value for name, value in result["last"].items() if name not in ("step", "epoch")}
    assert kept.keys() >= {"mAP", "mINP", "cmc", "queries", "valid_queries", "gallery"}
    assert {name: scores[name] for name in kept} == kept
    refined = ["--expand", "2,1", "--rerank", "3,2,0.3", "--details"]
    assert (
        evaluate_embeddings.main([*options, *refined, "--json", str(tmp_path / "scores.json")]) == 0
    )
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {name: scores[name] for name in kept} == {name: result["refined"][name] for name in kept}
    assert result["refined"]["rerank"] == [3, 2, 0.3]
    written = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert written["verification"] == scores["verification"]  # of plain cosines in both
    assert written["step"] == 1


def held_out(protocol=CAMERA):
    """The data set with three more identities, which left the training split."""
    validation = tiny.training_split(3, seed=9)
    order = np.argsort(validation.identity, kind="stable")
    camera = np.tile(np.arange(1, 5, dtype=np.int32), 3)
    validation = validation.take(order)
    labels = {**validation.labels, "camera": camera}
    return data(protocol, validation=dataclasses.replace(validation, labels=labels))


def test_a_validation_split_chooses_the_best(tmp_path):
    """The name of the entry says who chose."""
    opened = open_run(held_out(), data__validation_identities=3)
    of = embed.validation_set(opened)
    assert of.query.split is of.gallery.split
    result = finished(opened, tmp_path / "run", {1: of, 2: of}, last=2)
    assert "best_on_test" not in result
    entry = result["best_on_validation"]
    on_validation = {s: evaluate.score(opened, state(opened, s, s), of)["mAP"] for s in (1, 2)}
    assert entry["validation_mAP"] == max(on_validation.values())
    assert entry["step"] == max(on_validation, key=on_validation.get)
    assert entry["queries"] == 4  # scored on the test set


def test_without_a_validation_split_there_is_no_set_of_it(opened):
    assert embed.validation_set(opened) is None


def test_the_export_keeps_labels_beside_embeddings(embedded, test_set, tmp_path):
    evaluate.export(tmp_path / "out", embedded, 3, test_set.protocol)
    halves = (test_set.query, test_set.gallery)
    for name, half, side in zip(("query", "gallery"), halves, embedded, strict=True):
        with np.load(tmp_path / "out" / f"{name}.npz") as file:
            np.testing.assert_array_equal(file["embedding"], side.embedding)
            np.testing.assert_array_equal(file["identity"], half.split.identity)
            np.testing.assert_array_equal(file["name"], half.split.name)
            for label in ("camera", "scene", "flare"):
                np.testing.assert_array_equal(file[label], half.split.labels[label])
            assert tuple(file["modalities"]) == tiny.MODALITIES
            assert "present" not in file  # no image is missing
    assert not list((tmp_path / "out").glob("*.part"))


def cross_modal(dataset=None, **changes):
    """A run whose queries are thermal and whose gallery is visible."""
    protocol = Protocol(
        "tiny/thermal_to_visible",
        query=Side("query", ("thermal",)),
        gallery=Side("gallery", ("visible",)),
    )
    dataset = dataset or data()
    return open_run(dataclasses.replace(dataset, protocol=protocol), **changes)


def test_the_sides_of_a_protocol_may_have_different_modalities():
    """Each is embedded by its own branch, from its own images alone."""
    opened = cross_modal()
    of = embed.test_set(opened)
    assert of.query.split.modalities == ("thermal",)
    assert of.gallery.split.modalities == ("visible",)
    trained = state(opened)
    query, gallery = embed.embed(opened, trained, of)
    assert (query.parts, gallery.parts) == ({"thermal": (0, 16)}, {"visible": (0, 16)})
    whole = embed.embed(opened, trained, embed.test_set(open_run()))
    np.testing.assert_allclose(query.embedding, whole[0].embedding[:, 32:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gallery.embedding, whole[1].embedding[:, :16], rtol=1e-5, atol=1e-5)
    score = evaluate.score(opened, trained, of)
    assert (score["queries"], score["gallery"]) == (4, 12)
    assert evaluate.per_modality(opened, trained, of) is None  # there is but one on each side
    assert list(evaluate.baselines(opened, of)) == ["untrained", "raw_pixels", "colour_histogram"]


def test_sides_with_different_modalities_may_stream():
    resident, streamed = (
        embed.embed(opened, state(opened), embed.test_set(opened))
        for opened in (cross_modal(), cross_modal(data__resident="never"))
    )
    for ours, theirs in zip(arrays(resident), arrays(streamed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_side_has_the_samples_that_have_its_modalities():
    """As in visible-infrared sets, each sample of which is one image."""
    dataset = data()
    gallery = dataset.splits["gallery"]
    rows = gallery.rows.copy()
    rows[0, :6] = -1  # the first half has no visible image, the second no thermal one
    rows[2, 6:] = -1
    mixed = dataclasses.replace(gallery, rows=rows)
    splits = {**dataset.splits, "query": mixed, "gallery": mixed}
    opened = cross_modal(dataclasses.replace(dataset, splits=splits))
    of = embed.test_set(opened)
    np.testing.assert_array_equal(of.query.split.identity, gallery.identity[:6])
    np.testing.assert_array_equal(of.gallery.split.identity, gallery.identity[6:])
    query, gallery = embed.embed(opened, state(opened), of)
    assert np.linalg.norm(query.embedding, axis=1).min() > 0
    assert np.linalg.norm(gallery.embedding, axis=1).min() > 0


def test_a_validation_split_has_the_modalities_of_the_sides():
    opened = cross_modal(held_out(), data__validation_identities=3)
    of = embed.validation_set(opened)
    assert of.query.split.modalities == ("thermal",)
    assert of.gallery.split.modalities == ("visible",)
    assert len(of.query.split) == len(of.gallery.split) == 12


def test_a_modality_that_the_split_lacks_is_named():
    protocol = Protocol("tiny/uv", query=Side("query", ("ultraviolet",)))
    with pytest.raises(UserError, match="compares ultraviolet of the split query, which has vis"):
        embed.test_set(open_run(data(protocol)))
    protocol = Protocol("tiny/probe", query=Side("probe"))
    with pytest.raises(UserError, match='has no split "probe"'):
        embed.test_set(open_run(data(protocol)))


def test_a_gallery_that_queries_itself_is_embedded_once():
    """Both sides are one split and share their images on the devices."""
    dataset = data()
    splits = {**dataset.splits, "query": dataset.splits["gallery"]}
    of = embed.test_set(open_run(dataclasses.replace(dataset, splits=splits)))
    assert of.query.split is of.gallery.split
    assert of.query.data is of.gallery.data


def test_trials_score_parts_of_the_gallery():
    def halves(labels):
        return [np.arange(0, 12, 2), np.arange(1, 12, 2)]

    opened = open_run(data(Protocol("tiny/halves", trials=halves)))
    score = evaluate.score(opened, state(opened), embed.test_set(opened))
    assert (score["trials"], score["gallery"]) == (2, 6)
    assert score["deviation"].keys() == {"mAP", "mINP", "cmc"}
