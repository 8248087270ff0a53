import dataclasses

import jax
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import run
from tests.support import tiny_run as tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny.tree(folder / "tree")
    return folder


@pytest.fixture
def config(place):
    c = tiny.get_config()
    c.data.root, c.data.prepared = str(place / "tree"), str(place / "prepared")
    return c


def test_a_run_is_put_together(config):
    opened = run.open_run(config)
    assert config.model.identities == tiny.IDENTITIES
    assert opened.mesh.size == 8
    assert opened.plan.rows.shape[1] == 8
    assert opened.dataset.protocol.name == "wmveid863/official"
    shapes = jax.eval_shape(run.untrained_state(opened))
    assert shapes.params["classifier"]["kernel"].shape == (3, 16, tiny.IDENTITIES)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train.samples_per_identity": 3}, "= 12 does not divide by the 8 devices; choose a mult"),
        ({"evaluate.batch": 12}, "evaluate.batch = 12 does not divide by the 8 devices"),
        (
            {"train.identities_per_batch": 16},
            "has 8 identities, but a batch takes .* = 16 distinct",
        ),
        ({"train.samples_per_identity": 0}, "samples_per_identity is 0; it must be 1 or more"),
        ({"train.steps_per_dispatch": 0}, "steps_per_dispatch is 0"),
        ({"train.epochs": 0}, "at least one epoch"),
        ({"train.steps": -1}, "no fewer than 0 steps"),
        ({"evaluate.export": "newest"}, "export is 'newest'; it must be one of 'last', 'best'"),
        ({"model.identities": 7}, "identities is 7 but the training split .* has 8"),
        ({"optim.name": "lion"}, "optim.name is 'lion'"),
        ({"optim.schedule": "step"}, "optim.schedule is 'step'"),
        ({"augment.draw": "both"}, "augment.draw is 'both'"),
        ({"loss_options.kl_reduction": "sum"}, "kl_reduction is 'sum'"),
        ({"data.flare_rule": "none"}, "flare_rule is 'none'"),
        ({"model.attention": "cudnn"}, "devices are of the kind 'cpu' and .*dtype is float32"),
    ],
)
def test_what_does_not_fit_together_is_named(config, changes, text):
    """Before anything is compiled or written."""
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=text):
        run.open_run(config)


def test_the_sorted_identities_are_numbered(config):
    opened = run.open_run(config)
    split, names = opened.dataset.train, np.array([900, -3, 17, 40])
    split = dataclasses.replace(split, identity=names[split.identity % 4])
    resident = run.on_devices(opened, split)
    expected = np.searchsorted(np.sort(names), split.identity)
    np.testing.assert_array_equal(resident.identity, expected)
    np.testing.assert_array_equal(resident.images[2], split.images[2])
    assert resident.flare.any()
    assert not resident.flare.all()
    assert {x.sharding.is_fully_replicated for x in jax.tree.leaves(resident)} == {True}


def test_splits_follow_one_another(config):
    opened = run.open_run(config)
    both = run.on_devices(opened, opened.dataset.query, opened.dataset.gallery)
    first = len(opened.dataset.query)
    np.testing.assert_array_equal(both.images[1][:first], opened.dataset.query.images[1])
    np.testing.assert_array_equal(both.images[1][first:], opened.dataset.gallery.images[1])
    np.testing.assert_array_equal(both.camera[first:], opened.dataset.gallery.camera)


def test_the_flare_options_reach_the_labels(config):
    opened = run.open_run(config)
    split = opened.dataset.train
    config.data.flare_threshold = 1.0
    assert not run.on_devices(opened, split).flare.any()
    config.data.flare_threshold = 0.05
    config.data.flare_rule = "either"
    flare = np.asarray(run.on_devices(opened, split).flare)
    np.testing.assert_array_equal(flare[:, 0], flare[:, 1])


def test_cudnn_trains_on_an_even_number_of_tokens():
    c = tiny.config(model__attention="cudnn", model__dtype="bfloat16")
    run.check_attention(c.model, "gpu")
    run.check_attention(c.model, "gpu", 130)
    with pytest.raises(UserError, match="an image has 129"):
        run.check_attention(c.model, "gpu", 129)
