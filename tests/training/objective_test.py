import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import objective
from facenet_jax.types import Outputs
from tests.support import tiny_run as tiny


def outputs(sort=list):
    """What a model says about six samples, its modalities in another order if sorted."""
    logits = {name: tiny.noise(6, 5, seed=i) for i, name in enumerate(tiny.MODALITIES)}
    features = {name: tiny.noise(6, 4, seed=9 + i) for i, name in enumerate(tiny.MODALITIES)}
    return Outputs(dict(sort(features.items())), dict(sort(logits.items())), None, {})


def test_the_losses_of_a_run_are_those_with_a_weight():
    assert list(objective.terms(tiny.config())) == ["id", "triplet", "mask_kl", "mc"]
    c = tiny.config(losses__mask_kl__weight=0.0, losses__mmm__weight=0.1, losses__id__weight=0.0)
    assert list(objective.terms(c)) == ["triplet", "mc", "mmm"]


def test_labels_stand_in_the_order_of_the_recipe_and_those_of_the_user_after_them():
    """The order of a sum decides its last digit, and a ConfigDict sorts by name."""
    c = tiny.config("three_stream")
    with c.losses.unlocked():
        for label in ("zebra", "a_second_id"):
            c.losses[label] = configs.loss("three_stream", "id", weight=0.5)
    assert sorted(c.losses) == ["a_second_id", "id", "triplet", "zebra"]
    assert list(objective.terms(c)) == ["id", "triplet", "a_second_id", "zebra"]
    with c.losses.unlocked():
        del c.losses.triplet
    assert list(objective.terms(c)) == ["id", "a_second_id", "zebra"]


def test_weighed_terms_add_up_to_the_total():
    c = tiny.config("three_stream", losses__triplet__weight=((0.0, 0.0), (0.5, 2.0)))
    with c.losses.unlocked():
        c.losses.smooth = configs.loss(
            "three_stream", "id", weight=0.25, on=("thermal",), label_smoothing=0.3
        )
    terms, out, batch = objective.terms(c), outputs(), tiny.batch(6)
    total, weighed = objective.total(terms, out, batch, jnp.float32(0.25))
    plain = {label: function(out, batch) for label, (_, function) in terms.items()}
    weights = {"id": 1.0, "triplet": 1.0, "smooth": 0.25}
    assert list(weighed) == list(weights)
    for label, weight in weights.items():
        np.testing.assert_allclose(weighed[label], weight * plain[label], rtol=1e-6)
    np.testing.assert_allclose(total, sum(float(x) for x in weighed.values()), rtol=1e-6)


def test_the_parameters_of_a_section_reach_its_term():
    """Two sections of one term each keep their own."""
    c = tiny.config("three_stream", losses__id__label_smoothing=0.4)
    with c.losses.unlocked():
        c.losses.thermal = configs.loss("three_stream", "id", on=("thermal",))
    terms, out, batch = objective.terms(c), outputs(), tiny.batch(6)
    log_probability = {
        name: x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        for name, x in ((name, np.asarray(x, np.float64)) for name, x in out.logits.items())
    }
    own = {name: -x[np.arange(6), np.arange(6) // 2] for name, x in log_probability.items()}
    np.testing.assert_allclose(terms["thermal"][1](out, batch), own["thermal"].mean(), rtol=1e-5)
    expected = sum(
        (0.6 * own[name] - 0.4 * x.mean(axis=1)).mean() for name, x in log_probability.items()
    )
    np.testing.assert_allclose(terms["id"][1](out, batch), expected, rtol=1e-5)


def test_losses_go_by_names_where_the_config_gives_them():
    """Whatever the order in which a model has its outputs: mc compares neighbours."""
    c = tiny.config(losses__mc__on=tiny.MODALITIES, losses__hc__on=tiny.MODALITIES[:2])
    for label in c.losses:
        c.losses[label].weight = float(label in ("mc", "hc"))
    ours, theirs = (
        objective.total(objective.terms(c), outputs(sort), tiny.batch(6), jnp.float32(0))[1]
        for sort in (list, sorted)
    )
    assert ours == theirs


def test_a_name_that_the_model_does_not_give_is_said():
    c = tiny.config("three_stream", losses__id__on=("ultraviolet",))
    with pytest.raises(UserError, match="acts on 'ultraviolet', but the model gives visible, near"):
        objective.total(objective.terms(c), outputs(), tiny.batch(6), jnp.float32(0))


def test_weights_are_numbers_or_piecewise_linear():
    progress = jnp.asarray([0.0, 0.25, 0.5, 0.9], jnp.float32)
    np.testing.assert_array_equal(objective.weight_at(2, progress), 2.0)
    table = ((0.0, 1.0), (0.5, 0.0))
    np.testing.assert_allclose(objective.weight_at(table, progress), [1.0, 0.5, 0.0, 0.0])


def test_nothing_to_learn_is_said():
    c = tiny.config(**{f"losses__{label}__weight": 0.0 for label in tiny.config().losses})
    with pytest.raises(UserError, match="nothing to learn"):
        objective.terms(c)
