"""MUN: its generator by the equations, the prototypes, every row of its tables."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mun import ablations
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models, objective
from facenet_jax.models import generators, mun
from tests.models.ffdml_test import norm
from tests.support import tiny_pairs as pairs
from tests.support import tiny_run as tiny

KEY = jax.random.key(0)
FLOAT32 = jnp.dtype("float32")


def depthwise(x, kernel):
    """Each channel of x [B, H, W, C] with its own kernel [k, k, C], zeros around, in NumPy."""
    border = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
    return np.einsum("bhwcij,ijc->bhwc", windows, kernel)


def drawn(layer, *arguments):
    variables = tiny.draw(jax.eval_shape(lambda: layer.init(KEY, *arguments)))
    return layer.apply(variables, *arguments), jax.tree.map(np.asarray, variables)


def test_iml_equals_numpy():
    x = tiny.noise(2, 8, 6, 4)
    found, variables = drawn(generators.IntraModality("channel", FLOAT32), x, False)
    p, x = variables["params"], np.asarray(x)
    y = np.concatenate(
        [
            depthwise(x[..., :2], p["depthwise5"]["kernel"]),
            depthwise(x[..., 2:], p["depthwise7"]["kernel"]),
        ],
        axis=-1,
    )
    y = norm(y, variables, "norm1") @ p["wider"]["kernel"] + p["wider"]["bias"]
    y = depthwise(np.maximum(y, 0), p["depthwise3"]["kernel"]) + y
    y = norm(y, variables, "norm2") @ p["narrower"]["kernel"] + p["narrower"]["bias"]
    y = y * np.clip(p["scale"]["scale"], 1e-6, 1)
    np.testing.assert_allclose(found, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("unpool", ["dense", "depthwise"])
def test_cml_equals_numpy(unpool):
    maps = [tiny.noise(2, 8, 4, 3, seed=i) for i in range(2)]
    layer = generators.CrossModality((2, 4), unpool, "scalar", FLOAT32)
    found, variables = drawn(layer, maps, False)
    p, each = variables["params"], []
    for x in map(np.asarray, maps):
        for size in (2, 4):
            squares = x.reshape(2, 8 // size, size, 4 // size, size, 3).mean((2, 4))
            back = np.zeros_like(x)
            for row in range(8):
                for column in range(4):
                    at = squares[:, row // size, column // size]
                    i, j = row % size, column % size
                    if unpool == "dense":
                        kernel = p[f"unpool{size}"]["squares"]["kernel"].reshape(3, size, size, 3)
                        back[:, row, column] = at @ kernel[:, i, j]
                    else:
                        back[:, row, column] = at * p[f"unpool{size}"]["kernel"][i, j]
            each.append(back)
    y = norm(np.concatenate(each, -1), variables, "norm") @ p["mix"]["kernel"] + p["mix"]["bias"]
    y = y * np.clip(p["scale"]["scale"], 1e-6, 1)
    np.testing.assert_allclose(found, y, rtol=1e-3, atol=1e-4)


def test_a_scale_stays_below_one_and_still_learns():
    layer = generators.Scale("channel")
    x, scale = jnp.ones((1, 3)), jnp.array([0.5, 1.0, 2.0])
    function = lambda s: layer.apply({"params": {"scale": s}}, x)  # noqa: E731
    np.testing.assert_allclose(function(scale)[0], [0.5, 1.0, 1.0])
    np.testing.assert_allclose(jax.grad(lambda s: function(s).sum())(scale), 1.0)
    np.testing.assert_allclose(function(-scale)[0], 1e-6, rtol=1e-5)


@functools.cache
def build(row="mun"):
    c = pairs.config("mun", row)
    model = models.build(c.model, pairs.SPEC)
    return model, tiny.variables(model), pairs.jitted(model)


def test_the_auxiliary_modality_is_there_in_training_alone():
    _, variables, apply = build()
    batch = pairs.batch()
    out, changed = apply(variables, batch, train=True, key=KEY)
    assert set(out.features) >= {"image_visible", "image_infrared", "auxiliary"}
    assert set(out.logits) == {
        *("image_visible", "image_infrared"),
        *("auxiliary_visible", "auxiliary_infrared"),
    }
    assert changed["prototypes"]["iteration"] == 1
    found, unchanged = apply(variables, batch, train=False)
    assert set(found.features) == set(found.logits) == {"image_visible", "image_infrared"}
    assert unchanged == {}
    # Nothing of the generator reaches what is matched.
    other = dict(variables, params=dict(variables["params"]))
    for name in variables["params"]:
        if name.startswith(("generator", "prototype", "classifier")):
            other["params"][name] = jax.tree.map(jnp.zeros_like, variables["params"][name])
    again, _ = apply(other, batch, train=False)
    np.testing.assert_array_equal(again.embedding, found.embedding)


def test_prototypes_follow_their_equation():
    """T_0 = W Z; then T = b W Z + (1 - b) T_before, with b the progress of the run."""
    _, variables, apply = build()
    batches = pairs.batch(seed=1), pairs.batch(seed=2)
    state, before = dict(variables), None
    for number, batch in enumerate(batches):
        progress = 0.25 * number
        out, changed = apply(state, batch, train=True, progress=progress, key=KEY)
        for name in ("visible", "infrared", "auxiliary"):
            z = out.features[name if name == "auxiliary" else f"image_{name}"]
            new = np.asarray(z) @ np.asarray(variables["params"][f"prototype_{name}"]["kernel"])
            share = 1e-8 + (1 - 1e-8) * progress
            if before is not None:
                new = share * new + (1 - share) * np.asarray(before[name])
            kept = changed["prototypes"][name]
            np.testing.assert_allclose(kept, new, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(kept, out.features[f"prototype_{name}"])
        before = changed["prototypes"]
        state |= changed
    assert before["iteration"] == 2


def test_the_prototypes_of_before_get_no_gradient():
    model, variables, _ = build()
    batch = pairs.batch()

    @jax.jit
    @jax.grad
    def slope(table):
        state = {**variables, "prototypes": {**variables["prototypes"], **table}}
        out, _ = model.apply(state, batch, train=True, progress=0.5, key=KEY)
        return out.features["prototype_visible"].sum()

    table = {"visible": variables["prototypes"]["visible"] + 1.0}
    np.testing.assert_array_equal(slope(table)["visible"], 0.0)


@pytest.mark.parametrize("name", ablations.ROWS)
def test_every_row_of_the_tables_fits_together(name):
    """The losses of a row find what they act on, and neighbours are compared in the right order."""
    configs.check(ablations.get_config(name))
    c = pairs.config("mun", name)
    model = models.build(c.model, pairs.SPEC)
    batch, terms = pairs.batch(), objective.terms(c)

    def loss(key):
        out, _ = model.apply(model.init(key), batch, train=True, key=key)
        return objective.total(terms, out, batch, jnp.float32(0))[1]

    assert set(jax.eval_shape(loss, KEY)) == set(terms)


def test_what_the_images_of_table_2_are_made_of():
    images = pairs.batch(2).images
    mixed, _ = drawn(generators.MixedModality(), images)
    share = (mixed - images[1]) / (images[0] - images[1])
    assert np.ptp(share) < 1e-3
    for kind in generators.IMAGES.values():
        made, _ = drawn(kind(), images)
        assert made.shape == images.shape[1:]


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"pool_sizes is \(2, 3\), but the maps of .* are 8 x 4"):
        configs.check(pairs.config("mun", model__pool_sizes=(2, 3)))
    with pytest.raises(UserError, match="prototype_rows is 6, but a batch has 8 images"):
        configs.check(pairs.config("mun", model__prototype_rows=6))
    with pytest.raises(UserError, match=r"losses.ma acts on prototype_visible, which"):
        configs.check(pairs.config("mun", model__prototypes=False))
    with pytest.raises(UserError, match="two modalities, and the data set has visible, near_"):
        models.build(pairs.config("mun").model, tiny.SPEC)
    model, variables, _ = build()
    there = dataclasses.replace(pairs.batch(), present=jnp.ones((2, 8), bool))
    with pytest.raises(UserError, match=r"and some are missing; set config.sampler.name"):
        jax.eval_shape(lambda: model.apply(variables, there, train=True, key=KEY))
    with pytest.raises(UserError, match="The batch has 4 images of each modality"):
        jax.eval_shape(lambda: model.apply(variables, pairs.batch(4), train=True, key=KEY))


@pytest.mark.parametrize("statistics", ["joint", "apart"])
def test_statistics_are_of_all_modalities_or_of_each(statistics):
    c = pairs.config("mun", model__statistics=statistics, model__auxiliary_residual=True)
    model = models.build(c.model, pairs.SPEC)
    shapes = jax.eval_shape(model.init, KEY)
    assert {"stem_visible", "generator", "shared"} <= set(shapes["params"])
    assert mun.AUXILIARY not in shapes["params"]


@pytest.mark.slow
def test_statistics_apart_move_once_for_each_modality():
    found = {}
    for statistics in ("joint", "apart"):
        c = pairs.config("mun", model__statistics=statistics)
        model = models.build(c.model, pairs.SPEC)
        variables = tiny.variables(model)
        apply = jax.jit(lambda v, m=model: m.apply(v, pairs.batch(), train=True, key=KEY)[1])
        found[statistics] = apply(variables)["batch_stats"]["shared"]["layer2_0"]["bn1"]["mean"]
        start = variables["batch_stats"]["shared"]["layer2_0"]["bn1"]["mean"]
    share = [np.abs(found[k] - start).max() for k in ("joint", "apart")]
    assert share[1] > 1.5 * share[0]
