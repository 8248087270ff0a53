"""From the trees of visible-infrared sets to scores: training, all trials, both directions."""

import dataclasses

import numpy as np
import pytest

from facenet_jax import embed, evaluate, retrieval
from facenet_jax.inputs import dataset as data
from facenet_jax.retrieval import Embeddings
from facenet_jax.retrieval.protocols import by_name
from tests.support import small_datasets as trees
from tests.support import tiny_run as tiny


def trainer(dataset):
    config = tiny.config(
        "three_stream",
        sampler__name="cross_modal",
        augment__channels="adapt_grey",
        augment__erase=0.5,
        augment__per_modality=True,
        train__identities_per_batch=2,
        train__samples_per_identity=2,
    )
    return tiny.Trainer(config, steps=2, data=dataset)


@pytest.mark.slow
def test_regdb_trains_and_is_scored_both_ways(tmp_path):
    """The tiny model embeds either modality in columns of the same width."""
    root, size = trees.regdb(tmp_path / "RegDB"), tiny.SIZE
    names = ("regdb/visible_to_thermal_1", "regdb/thermal_to_visible_1")
    one, other = (
        data.load(trees.section(name, root, tmp_path / "prepared", image_size=size))
        for name in names
    )
    made = trainer(one)
    assert not made.data.missing
    state, scalars = made.run(2)
    assert np.isfinite(scalars["loss"][:2]).all()
    embedded = {}
    for name, dataset in zip(names, (one, other), strict=True):
        run = dataclasses.replace(made.run_, dataset=dataset)
        test = embed.test_set(run)
        embedded[name] = embed.embed(run, state, test)
        scores = evaluate.score(run, state, test, embedded[name])
        assert scores["valid_queries"] == scores["gallery"] == 4
        assert "trials" not in scores
    for a, b in zip(embedded[names[0]], embedded[names[1]][::-1], strict=True):
        np.testing.assert_array_equal(a.embedding, b.embedding)


def planted(split, rng):
    """Embeddings that tell identities apart, but for noise."""
    centre = np.random.default_rng(1).normal(size=(600, 16))[split.identity]
    embedding = (centre + rng.normal(size=centre.shape)).astype(np.float32)
    labels = {"camera": split.labels["camera"]}
    return Embeddings(embedding, {}, split.identity, split.name, labels)


def test_sysu_is_scored_over_ten_trials(tmp_path):
    root = trees.sysu_mm01(tmp_path / "SYSU")
    dataset = data.load(trees.section("sysu_mm01", root, tmp_path / "prepared"))
    protocol, rng = dataset.protocol, np.random.default_rng(0)
    query, gallery = (
        planted(embed.side(dataset, side), rng) for side in (protocol.query, protocol.gallery)
    )
    result = retrieval.evaluate(query, gallery, protocol)
    scores = result.metrics()
    assert (scores["trials"], scores["queries"], scores["gallery"]) == (10, 5, 5)
    assert scores["deviation"]["mAP"] > 0
    # Indoors, identity 155 has no image, and camera 3 leaves 0026 of camera 1 alone.
    indoor = retrieval.evaluate(query, gallery, by_name("sysu_mm01/indoor_single")).metrics()
    assert (indoor["valid_queries"], indoor["gallery"]) == (3, 2)
    several = retrieval.evaluate(query, gallery, by_name("sysu_mm01/all_multi")).metrics()
    assert several["gallery"] == 9
    assert several["deviation"]["mAP"] == pytest.approx(0, abs=1e-12)  # all images in every trial
