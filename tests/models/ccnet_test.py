"""CCNet: ALNU by its formula, the centres, the subsets, and one run of the trainer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.ccnet import demo
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models, objective
from facenet_jax.losses import centres
from facenet_jax.models import ccnet
from facenet_jax.weights.torch_writer import write_state_dict
from tests.models.resnet_test import torch_file
from tests.support import tiny_run as tiny

KEY = jax.random.key(0)


def config(name="ccnet", **changes):
    c = demo.get_config(name)
    c.data.image_size = tiny.SIZE
    c.model.variant, c.model.width, c.model.depths = "", 2, (1, 1, 1, 1)
    c.augment.pad = 2
    c.train.identities_per_batch, c.train.samples_per_identity = 4, 2
    c.train.steps_per_dispatch = 3
    c.update_from_flattened_dict({name.replace("__", "."): x for name, x in changes.items()})
    return c


@functools.cache
def build(name="ccnet"):
    """(a model, its random variables, its jitted apply)."""
    c = config(name)
    model = tiny.build(c)
    apply = jax.jit(model.apply, static_argnames=("train", "modalities"))
    return model, tiny.variables(model), apply


def sines(n, d, shift):
    """G of docs/fidelity.md: numbers that any language computes alike."""
    i, j = np.arange(n)[:, None], np.arange(d)[None]
    return np.sin(0.7 * i + 1.3 * j + 0.11 * i * j + shift)


def norm(kind, maps, seed=0):
    layer = ccnet.MapNorm(kind, jnp.dtype("float32"))
    variables = tiny.draw(jax.eval_shape(lambda: layer.init(KEY, maps, False)), seed)
    return layer.apply(variables, maps, False, mutable=["intermediates"])


def test_alnu_normalises_over_the_whole_image():
    maps = sines(24, 5, 0).reshape(2, 3, 4, 5).transpose(0, 2, 3, 1)  # B, C, H, W there
    y, _ = norm("ln", jnp.asarray(maps, jnp.float32))
    expected = [-0.0129837995, 1.3539493991, 0.7183222594, -0.9886699698, -1.2662796736]
    np.testing.assert_allclose(y[0, 0, :, 0], expected, rtol=2e-5)


def test_alnu_scales_and_shifts_by_two_numbers_of_each_image():
    maps = tiny.noise(3, 4, 5, 32) * 2 + 1
    y, kept = norm("alnu", maps)
    found = kept["intermediates"]["alnu"][0]
    assert found["gamma"].shape == found["beta"].shape == (3,)
    for name in ("gamma", "beta"):
        assert ((found[name] > 0) & (found[name] < 1)).all()
        assert len(np.unique(found[name])) == 3
    plain, _ = norm("ln", maps)
    gamma, beta = (np.asarray(found[k])[:, None, None, None] for k in ("gamma", "beta"))
    np.testing.assert_allclose(y, gamma * plain + beta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["mean"], np.asarray(maps).mean((1, 2, 3)), rtol=1e-4)


def test_the_largest_has_one_place_for_its_gradient():
    maps = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(3.0)
    assert ccnet.largest(maps).tolist() == [[3.0]]
    slope = jax.grad(lambda x: ccnet.largest(x).sum())
    assert slope(maps).ravel().tolist() == [0, 0, 1, 0]
    assert slope(jnp.zeros((1, 2, 2, 1))).sum() == 1


def test_instance_norm_is_of_each_channel():
    y = np.asarray(norm("in", tiny.noise(2, 4, 5, 8) * 3 + 1)[0])
    np.testing.assert_allclose(y.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((1, 2)), 1, atol=1e-4)


def test_branches_share_nothing_and_what_is_matched_lies_behind_the_neck():
    _, variables, apply = build()
    batch = tiny.batch(4)
    out, changed = apply(variables, batch, train=False)
    assert changed == {}
    assert list(out.parts) == list(tiny.MODALITIES)
    width = out.embedding.shape[1] // 3
    assert [out.features[m].shape[1] for m in out.parts] == [width] * 3
    stats = jax.tree.map(np.asarray, variables["batch_stats"]["neck"])
    scale = np.asarray(variables["params"]["neck"]["scale"])
    for i, modality in enumerate(out.parts):
        after = (np.asarray(out.features[modality]) - stats["mean"][i]) / np.sqrt(
            stats["var"][i] + 1e-5
        )
        after = after * scale[i] + stats["bias"][i]
        part = out.embedding[:, slice(*out.parts[modality])]
        np.testing.assert_allclose(part, after, rtol=1e-4, atol=1e-5)
        assert f"trunk_{modality}" in variables["params"]
        assert "norm" in variables["params"][f"trunk_{modality}"]
    some = tiny.MODALITIES[::2]
    part = dataclasses.replace(batch, images=batch.images[::2])
    alone, _ = apply(variables, part, train=False, modalities=some)
    for modality in some:
        np.testing.assert_allclose(
            alone.features[modality], out.features[modality], rtol=1e-5, atol=1e-6
        )


def test_the_norm_has_its_place_and_can_be_left_out():
    for name, after, there in (("none", "layer2", False), ("alnu", "layer4", True)):
        c = config(model__norm=name, model__norm_after=after)
        params = jax.eval_shape(tiny.build(c).init, KEY)["params"]
        assert "norm" not in params["trunk_visible"]
        assert ("norm" in params["last_visible"]) is there


def test_centres_move_as_descent_on_the_centre_loss_would():
    features = [tiny.noise(6, 4, seed=i) for i in range(3)]
    labels, table = jnp.array([0, 0, 2, 2, 2, 1]), tiny.noise(5, 4, seed=9)

    def loss(table):
        own = table[labels]
        return sum(jnp.mean(jnp.sum(jnp.square(x - own), axis=1)) for x in features)

    moved = centres.moved_centres(features, labels, table, 0.5)
    np.testing.assert_allclose(moved, table - 0.5 * jax.grad(loss)(table), rtol=1e-5, atol=1e-6)
    total = sum(centres.center(x, labels, table) for x in features)
    np.testing.assert_allclose(total, loss(table), rtol=1e-6)
    assert np.isnan(centres.center(features[0], labels + 5, table))


def test_the_centre_loss_has_centres_in_the_state_of_training():
    _, variables, apply = build("center")
    assert variables["centres"]["table"].shape == (tiny.IDENTITIES, 64)
    batch = tiny.batch(4)
    out, changed = apply(variables, batch, train=True, key=KEY)
    before, after = (np.asarray(v["centres"]["table"]) for v in (variables, changed))
    np.testing.assert_array_equal(out.extras["centres"], before)
    moved = np.abs(after - before).max(1) > 0
    assert moved.tolist() == [row in (0, 1) for row in range(tiny.IDENTITIES)]
    terms = objective.terms(config("center"))
    assert list(terms) == ["id", "center"]
    assert np.isfinite(objective.total(terms, out, batch, jnp.float32(0))[0])
    evaluated, _ = apply(variables, batch, train=False)
    assert "centres" not in evaluated.extras


def test_a_centre_loss_without_centres_is_refused():
    with pytest.raises(UserError, match="centre_rate is 0, so there are no centres"):
        configs.check(config("center", model__centre_rate=0.0))
    _, variables, apply = build()
    out, _ = apply(variables, tiny.batch(4), train=False)
    with pytest.raises(UserError, match="needs centres, and the model keeps none"):
        objective.total(objective.terms(config("center")), out, tiny.batch(4), jnp.float32(0))


@pytest.mark.slow
def test_every_parameter_learns():
    """A step of the trainer: finite, and nothing but biases in front of a BatchNorm stays."""
    with jax.numpy_dtype_promotion("standard"):  # which optax.scale_by_adam needs
        trainer = tiny.Trainer(config("ccnet", augment__erase=1.0), steps=6)
        state, logs = trainer.run(3)
    assert np.isfinite(logs["loss"]).all()
    assert set(logs) >= {"loss_id", "loss_cdc"}
    before = tiny.variables(trainer.model)["params"]
    still = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(state.params), strict=True
        )
        if np.array_equal(a, b)
    ]
    assert still == []


@pytest.mark.parametrize("name", ["ccnet", "center"])
def test_a_file_leaves_the_norms_as_they_start(name, tmp_path):
    write_state_dict(tmp_path / "resnet.pth", torch_file())
    model, variables, _ = build(name)
    filled, report = model.load(jax.tree.map(np.asarray, variables), str(tmp_path / "resnet.pth"))
    assert models.contract.check_loaded(variables, filled) is None
    kept = {path.replace("batch_stats/", "").split("/")[0] for path in report.kept}
    trunks = {f"trunk_{m}" for m in tiny.MODALITIES} if name == "ccnet" else set()
    assert kept == {"neck", "classifier", *trunks}
