"""FFDML: the fusion by its formula, the branches, every row of its tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.ffdml import ablations
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models, objective
from facenet_jax.models import ffdml
from tests.support import tiny_pairs as pairs
from tests.support import tiny_run as tiny

KEY = jax.random.key(0)
MAPS = [tiny.noise(2, 8 // 2**i, 4 // 2**i, 6 + i, seed=i) for i in range(3)]


def fused(join="concat", weights="adaptive", resize="nearest", maps=MAPS):
    layer = ffdml.Fusion(4, join, weights, resize, jnp.dtype("float32"))
    variables = tiny.draw(jax.eval_shape(lambda: layer.init(KEY, maps, False)))
    return np.asarray(layer.apply(variables, maps, False)), jax.tree.map(np.asarray, variables)


def norm(x, variables, name):
    p, s = variables["params"][name], variables["batch_stats"][name]
    return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]


def twin(variables, join="concat", weights="adaptive"):
    """The fusion in NumPy, with maps of any level repeated to the size of the first."""
    p, each, small = variables["params"], [], []
    for i, maps in enumerate(MAPS):
        x = norm(np.asarray(maps) @ p[f"reduce{i}"]["kernel"][0, 0], variables, f"reduce_bn{i}")
        each.append(np.maximum(x, 0).repeat(2**i, axis=1).repeat(2**i, axis=2))
    if weights == "adaptive":
        for i, x in enumerate(each):
            x = norm(x @ p[f"compress{i}"]["kernel"][0, 0], variables, f"compress_bn{i}")
            small.append(np.where(x > 0, x, 0.1 * x))
        scores = np.concatenate(small, -1) @ p["weights"]["kernel"] + p["weights"]["bias"]
    else:
        scores = p["weights"]
    power = np.exp(scores - scores.max(-1, keepdims=True))
    share = power / power.sum(-1, keepdims=True)
    weighted = [share[..., i : i + 1] * x for i, x in enumerate(each)]
    return np.concatenate(weighted, -1) if join == "concat" else sum(weighted)


@pytest.mark.parametrize(
    ("join", "weights"), [("concat", "adaptive"), ("sum", "adaptive"), ("concat", "static")]
)
def test_fusion_equals_numpy(join, weights):
    found, variables = fused(join, weights)
    assert found.shape[-1] == (12 if join == "concat" else 4)
    np.testing.assert_allclose(found, twin(variables, join, weights), rtol=1e-3, atol=1e-4)


def test_maps_come_to_the_size_of_the_largest():
    x = jnp.arange(6.0).reshape(1, 3, 2, 1)
    y = ffdml.resized(x, (5, 4), "nearest")[0, :, :, 0]
    assert y.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3], [4, 4, 5, 5]]
    assert ffdml.resized(x, (12, 8), "nearest").shape == (1, 12, 8, 1)
    line = ffdml.resized(jnp.arange(4.0).reshape(1, 4, 1, 1), (8, 1), "bilinear").ravel()
    np.testing.assert_allclose(line, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)


@functools.cache
def build(row="ffdml"):
    model = models.build(pairs.config("ffdml", row).model, pairs.SPEC)
    return model, tiny.variables(model), pairs.jitted(model)


def test_three_branches_of_which_the_joint_one_is_matched():
    _, variables, apply = build()
    batch = pairs.batch(4)
    out, _ = apply(variables, batch, train=True, key=KEY)
    assert list(out.logits) == [
        f"{branch}_{modality}"
        for branch in ("global", "fusion", "joint")
        for modality in pairs.MODALITIES
    ]
    assert list(out.features) == list(pairs.MODALITIES)
    joint = 2 * 32 + 3 * 4
    assert out.features["visible"].shape == out.embedding.shape == (4, joint)
    terms = objective.terms(pairs.config("ffdml"))
    assert list(terms) == ["id_global", "id_fusion", "id_joint", "kd_global", "kd_fusion", "wrt"]
    total, each = objective.total(terms, out, batch, jnp.float32(0))
    assert np.isfinite(total)
    # Untrained classifiers hardly differ: the cross-entropy of 8 identities, over all images once.
    assert each["id_joint"] == pytest.approx(
        np.mean(
            [
                -jax.nn.log_softmax(out.logits[f"joint_{m}"])[np.arange(4), batch.identity].mean()
                for m in pairs.MODALITIES
            ]
        ),
        rel=1e-5,
    )


@pytest.mark.parametrize("name", ablations.ROWS)
def test_every_row_of_the_tables_fits_together(name):
    """The losses of a row find what they act on."""
    c = ablations.get_config(name)
    configs.check(c)
    tiny_config = pairs.config("ffdml", name)
    model = models.build(tiny_config.model, pairs.SPEC)
    batch, terms = pairs.batch(4), objective.terms(tiny_config)

    def loss(key):
        out, _ = model.apply(model.init(key), batch, train=True, key=key)
        return objective.total(terms, out, batch, jnp.float32(0))[0]

    assert jax.eval_shape(loss, KEY).shape == ()


def test_rows_change_what_they_say():
    c = ablations.get_config("global_to_fusion")
    assert (c.losses.kd_fusion.detach, c.losses.kd_global.weight) == ("first", 0.0)
    assert ablations.get_config("kd").losses.kd_fusion.weight == 1.0
    assert list(objective.terms(ablations.get_config("baseline"))) == ["id_global", "wrt"]
    assert ablations.ROWS["levels_23"][1][3] == 68.10
    with pytest.raises(UserError, match="ablation is 'x'; it must be one of baseline, fusion"):
        ablations.get_config("x")


def test_losses_of_a_branch_that_is_not_there_are_refused():
    with pytest.raises(UserError, match=r"id_fusion acts on fusion_.*, which .* takes away"):
        configs.check(pairs.config("ffdml", model__fusion_levels=()))
    with pytest.raises(UserError, match="only the maps of shared layers can be fused, from 2 on"):
        configs.check(pairs.config("ffdml", model__split_after="layer1"))
