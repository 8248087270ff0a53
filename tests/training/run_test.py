import dataclasses

import jax
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import run, step
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny


def opened(**changes):
    return run.open_run(tiny.config(**changes), load=lambda data, training: tiny.dataset())


def test_a_run_is_put_together():
    config = tiny.config()
    before = config.to_dict()
    found = run.open_run(config, load=lambda data, training: tiny.dataset())
    assert config.to_dict() == before  # what follows from the data is not written into it
    assert found.model.spec == DataSpec(
        tiny.MODALITIES, tiny.SIZE, tiny.IDENTITIES, {"camera": 1, "scene": 0}
    )
    assert found.mesh.size == 8
    assert found.plan.rows.shape[1:] == (3, 8)
    assert found.rates.shape == (len(found.plan.epoch), 2)
    np.testing.assert_array_equal(found.schedule.rates[: len(found.rates)], found.rates)
    shapes = run.state_shapes(found)
    assert shapes.params["classifier"]["kernel"].shape == (3, 16, tiny.IDENTITIES)
    assert found.when(0) == {"step": 0, "epoch": 0}
    assert found.when(5) == {"step": 5, "epoch": int(found.plan.epoch[4])}


def test_a_run_of_another_length_has_a_schedule_of_the_same_shapes():
    """So that the training step is not compiled anew because train.steps is another."""

    def of(steps):
        plan, rates = np.ones((steps, 3, 8), np.int32), np.ones((steps, 2), np.float32)
        return step.schedule(plan, rates)

    few, many, more = (of(steps) for steps in (1, step.SHORTEST, step.SHORTEST + 1))
    assert [len(x) for x in (few.rows, few.rates)] == [step.SHORTEST, step.SHORTEST]
    assert jax.tree.map(np.shape, few) == jax.tree.map(np.shape, many)
    assert len(more.rows) == 2 * step.SHORTEST
    assert [float(x.steps) for x in (few, many, more)] == [1, step.SHORTEST, step.SHORTEST + 1]
    assert few.rows[0].all()
    assert not few.rows[1:].any()


def test_the_data_set_of_the_config_is_loaded(tmp_path):
    config = tiny.config("three_stream")
    config.data.root, config.data.prepared = str(tiny.tree(tmp_path / "tree")), str(tmp_path)
    found = run.open_run(config)
    assert found.dataset.protocol.name == "wmveid863/official"
    assert found.model.spec.identities == tiny.IDENTITIES
    assert found.model.spec.labels["camera"] == 4  # views 1 to 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train__identities_per_batch": 16}, "has 8 identities, but a batch .* = 16 distinct"),
        ({"model__attention": "cudnn"}, "devices are of the kind 'cpu' and .*dtype is float32"),
    ],
)
def test_what_does_not_fit_the_data_or_the_devices_is_named(changes, text):
    """Before anything is compiled or written; options have their tests in config_test.py."""
    with pytest.raises(UserError, match=text):
        opened(**changes)


def test_cudnn_trains_on_an_even_number_of_tokens():
    """128 patches and the class token are odd; evaluation may have any number."""
    c = tiny.config(model__attention="cudnn", model__dtype="bfloat16")
    size = (8 * 16, 8 * 8)
    model = tiny.build(c, dataclasses.replace(tiny.SPEC, image_size=size))
    assert model.refuses("gpu", False) == ""
    assert "an image has 129" in model.refuses("gpu", True)
    even = tiny.build(c, dataclasses.replace(tiny.SPEC, image_size=(8 * 43, 8 * 3)))
    assert even.refuses("gpu", True) == ""


def test_a_model_trained_on_other_modalities_is_refused():
    spec = dataclasses.replace(tiny.SPEC, modalities=("visible", "thermal"))
    with pytest.raises(UserError, match=r"tiny has the modalities visible, near_.*on visible, th"):
        run.assemble(tiny.config("three_stream"), tiny.dataset(), spec=spec, training=False)


def test_facenet_says_what_modalities_it_needs():
    train = tiny.training_split().subset(("visible", "thermal"))
    data = tiny.dataset(train=train, gallery=train)
    sentence = r"has the modalities visible, thermal, but FACENet needs visible, near_infrared, the"
    with pytest.raises(UserError, match=f"{sentence}.*config.model.name = 'three_stream'"):
        run.assemble(tiny.config(), data)


def test_evaluation_needs_no_training_split_but_the_facts_about_it():
    data = tiny.dataset()
    data = dataclasses.replace(data, splits={"query": data.splits["query"]})
    found = run.assemble(tiny.config("three_stream"), data, spec=tiny.SPEC, training=False)
    assert found.plan is None
    assert found.when(7) == {"step": 7}  # nobody knows the epoch
    assert dataclasses.replace(found, epochs={7: 2}).when(7) == {"step": 7, "epoch": 2}
    with pytest.raises(UserError, match='has no split "train"'):
        run.assemble(tiny.config("three_stream"), data)


def test_the_sorted_identities_are_numbered():
    found, names = opened(), np.array([900, -3, 17, 40])
    split = found.dataset.split("train")
    split = dataclasses.replace(split, identity=names[split.identity % 4])
    resident, rows = run.on_devices(found, split)
    expected = np.searchsorted(np.sort(names), split.identity)
    np.testing.assert_array_equal(rows, split.rows)
    np.testing.assert_array_equal(resident.identity, [expected] * 3)
    np.testing.assert_array_equal(resident.images[2], split.images["thermal"])
    np.testing.assert_array_equal(np.stack(resident.labels["flare"], axis=1), split.labels["flare"])
    assert {x.sharding.is_fully_replicated for x in jax.tree.leaves(resident)} == {True}


def test_labels_that_not_all_splits_have_stay_behind():
    found = opened()
    first, second = tiny.training_split(2), tiny.training_split(2)
    view = np.arange(len(first), dtype=np.int32)
    first = dataclasses.replace(first, labels={**first.labels, "view": view, "blur": 0.5 * view})
    alone, _ = run.on_devices(found, first)
    assert set(alone.labels) == {"camera", "scene", "flare", "view"}  # whole numbers and truths
    both, _ = run.on_devices(found, first, second)
    assert set(both.labels) == {"camera", "scene", "flare"}
