import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.samples import BANDS
from facenet_jax import models
from facenet_jax.models import vit
from tests.support import tiny_run as tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
BASELINE = {
    "model__mfmp__enabled": False,
    "model__fce__enabled": False,
    "model__flare_heads": False,
}


@functools.cache
def build(**changes):
    """(a model, its random variables, its jitted apply)."""
    c = tiny.config(**changes)
    model = models.build(c.model, c.data.image_size, 5)
    apply = jax.jit(model.apply, static_argnames=("train", "bands"))
    return model, tiny.variables(model), apply


def outputs(batch, bands=BANDS, variables=None, **changes):
    _, own, apply = build(**changes)
    return apply(variables or own, batch, train=False, bands=bands)[0]


def joined(features):
    """The features in the order R, N, T; a dict that left jit is sorted by name."""
    return np.concatenate([features[band] for band in BANDS if band in features], axis=1)


def test_outputs_have_their_names_shapes_and_types():
    batch = tiny.batch(6)
    out = outputs(batch)
    assert set(out.features) == set(out.logits) == set(BANDS)
    assert {x.shape for x in out.features.values()} == {(6, 16)}
    assert {x.shape for x in out.logits.values()} == {(6, 5)}
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(out.embedding, joined(out.features))
    assert "flare_logits" not in out.extras  # the flare heads are for training only
    model, variables, apply = build()
    out, changed = apply(variables, batch, train=True, key=KEY)
    assert out.extras["flare_logits"].shape == (2, 6, 2)
    assert list(changed) == ["batch_stats"]
    assert jax.tree.structure(changed["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )
    assert (model.part_width, model.patch_grid, model.image_size) == (16, (4, 2), (32, 16))


def test_neck_feature_after_matches_what_the_classifier_sees():
    batch = tiny.batch(6)
    out = outputs(batch, model__neck_feature="after")
    _, variables, _ = build()
    neck, stats = variables["params"]["neck"]["scale"], variables["batch_stats"]["neck"]
    before = np.stack([out.features[band] for band in BANDS])
    columns = (stats["mean"], stats["var"], stats["bias"], neck)
    mean, var, bias, scale = (np.asarray(x)[:, None] for x in columns)
    after = (before - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(out.embedding, np.concatenate(list(after), 1), rtol=1e-4, atol=1e-5)
    kernel = np.asarray(variables["params"]["classifier"]["kernel"])
    logits = np.stack([out.logits[band] for band in BANDS])
    np.testing.assert_allclose(logits, after @ kernel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bands", [BANDS[:1], BANDS[2:], BANDS[:2], BANDS[::2]])
def test_a_subset_of_bands_is_what_each_branch_alone_gives(bands, shared):
    """Against a single ViT, run on the band's own slice of the parameters."""
    batch = tiny.batch(4)
    rows = [BANDS.index(band) for band in bands]
    part = dataclasses.replace(batch, images=batch.images[jnp.asarray(rows)])
    out = outputs(part, bands, model__shared_trunk=shared)
    assert set(out.features) == set(bands)
    _, variables, _ = build(model__shared_trunk=shared)
    for row in rows:
        np.testing.assert_allclose(
            out.features[BANDS[row]],
            single_branch(variables["params"], batch.images[row], row, shared),
            rtol=1e-4,
            atol=1e-5,
        )
    np.testing.assert_array_equal(out.embedding, joined(out.features))


@functools.cache
def single_vit():
    common = {"heads": 2, "dtype": jnp.float32, "attention": "xla"}
    trunk = vit.Trunk(
        width=16, depth=1, patch=8, stride=8, drop_rates=(0.0,), remat="none", unroll=1, **common
    )
    last = vit.LastBlock(drop_rate=0.1, **common)

    @jax.jit
    def feature(trunk_params, last_params, images):
        tokens = trunk.apply({"params": trunk_params}, images, False)
        return last.apply({"params": last_params}, tokens, False)

    return feature


def single_branch(params, images, row, shared):
    def take(tree):
        return jax.tree.map(lambda leaf: leaf[row], tree)

    trunk = params["trunk"] if shared else take(params["trunk"])
    return single_vit()(trunk, take(params["last"]), images)


def test_a_sample_does_not_see_the_others_of_its_batch():
    """Other companions of one batch size: bit-equal, for the rows of a product are independent."""
    batch, others = tiny.batch(6), tiny.batch(6, seed=1)

    def mixed(at):
        def merge(x, y):
            axis = 1 if x.ndim == 5 else 0
            mine = (np.arange(6) == at).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
            return jnp.where(mine, x, y)

        return jax.tree.map(merge, batch, others)

    flipped = dataclasses.replace(others, flare=~others.flare)
    for other in (others, flipped):
        others = other
        for at in range(6):
            np.testing.assert_array_equal(
                outputs(mixed(at)).embedding[at], outputs(batch).embedding[at]
            )


def test_a_sample_alone_has_the_embedding_it_has_in_a_batch():
    """1e-5: a product of another number of rows may sum in another order."""
    batch = tiny.batch(6)
    whole = outputs(batch).embedding
    for at in range(3):
        alone = dataclasses.replace(
            batch, images=batch.images[:, at : at + 1], flare=batch.flare[at : at + 1]
        )
        np.testing.assert_allclose(outputs(alone).embedding[0], whole[at], rtol=1e-5, atol=1e-5)


def test_the_batch_gate_of_the_release_does_look_at_the_others():
    batch = tiny.batch(6, flare=np.eye(6, 2, dtype=bool))
    calm = dataclasses.replace(batch, flare=jnp.zeros((6, 2), bool))
    for gate, changed in (("sample", np.arange(6) < 2), ("batch", np.full(6, True))):
        with_flare, without = (outputs(x, model__fce__gate=gate).embedding for x in (batch, calm))
        np.testing.assert_array_equal(np.any(with_flare != without, axis=1), changed)


@pytest.mark.parametrize("mask", ["soft", "hard"])
def test_without_flare_the_embedding_is_the_baselines(mask):
    flare = np.array([[False, False], [True, True]] * 3)
    batch = tiny.batch(6, flare=flare)
    _, variables, _ = build(model__fce__mask=mask)
    baseline = {
        collection: {name: tree for name, tree in trees.items() if name in kept}
        for collection, trees in variables.items()
        for kept in [build(**BASELINE)[1][collection]]
    }
    full = outputs(batch, model__fce__mask=mask).embedding
    plain = outputs(batch, variables=baseline, **BASELINE).embedding
    np.testing.assert_array_equal(full[::2], plain[::2])
    assert (np.abs(full[1::2, :32] - plain[1::2, :32]).max(axis=1) > 1e-3).all()  # R and N
    np.testing.assert_array_equal(full[:, 32:], plain[:, 32:])  # T


@functools.cache
def visible_gradient():
    model, variables, _ = build()

    def objective(params, batch):
        out, _ = model.apply({**variables, "params": params}, batch, train=False)
        return jnp.sum(jnp.sin(out.features["visible"]))

    return functools.partial(jax.jit(jax.grad(objective)), variables["params"])


def reached_by_visible(flare):
    """{part: which rows of its parameters a function of the visible feature depends on}."""
    gradients = visible_gradient()(tiny.batch(4, flare=np.broadcast_to(flare, (4, 2))))
    return {
        part: np.any([np.any(x != 0, axis=tuple(range(1, x.ndim))) for x in leaves], axis=0)
        for part, tree in gradients.items()
        for leaves in [jax.tree.leaves(tree)]
    }


def test_without_flare_a_loss_of_one_branch_touches_no_other():
    reached = reached_by_visible([False, False])
    np.testing.assert_array_equal(reached["trunk"], [True, False, False])
    np.testing.assert_array_equal(reached["last"], [True, False, False])
    assert not reached["mfmp"].any()


def test_with_flare_a_loss_of_one_branch_teaches_its_helpers():
    """Thermal lends tokens and near infrared shapes the mask; their own last blocks stay out."""
    reached = reached_by_visible([True, False])
    np.testing.assert_array_equal(reached["trunk"], [True, True, True])
    np.testing.assert_array_equal(reached["last"], [True, False, False])
    np.testing.assert_array_equal(reached["mfmp"], [True, False])
    assert not reached["flare_head"].any()


def test_a_shared_trunk_is_one_trunk_for_all_bands():
    _, shared, _ = build(model__shared_trunk=True)
    params = dict(shared["params"])
    params["trunk"] = jax.tree.map(lambda x: jnp.stack([x] * 3), params["trunk"])
    batch = tiny.batch(4)
    np.testing.assert_allclose(
        outputs(batch, model__shared_trunk=True).embedding,
        outputs(batch, variables={**shared, "params": params}).embedding,
        rtol=1e-5,
        atol=1e-5,
    )


def test_bfloat16_is_finite_and_close_and_keeps_float32_parameters():
    batch = tiny.batch(4)
    with jax.numpy_dtype_promotion("standard"):  # which jax.nn.dot_product_attention needs
        out = outputs(batch, model__dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(build(model__dtype="bfloat16")[1])} == {
        jnp.dtype("float32")
    }
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    exact = outputs(batch)
    error = np.abs(out.embedding - exact.embedding)
    assert 0 < error.max() < 0.1
    assert error.mean() < 0.02


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model__name": "resnet"}, "config.model.name"),
        ({"model__variant": "XL"}, "config.model.variant"),
        ({"model__heads": 3}, "3 heads"),
        ({"model__depth": 0}, "depth 0"),
        ({"model__heads": 0}, "0 heads"),
        ({"model__patch": 64}, "config.model.patch"),
        ({"model__remat": "some"}, "config.model.remat"),
        ({"model__dtype": "float16"}, "config.model.dtype"),
        ({"model__mfmp__split": "window"}, "config.model.mfmp.split"),
        ({"model__fce__mask": "softer"}, "config.model.fce.mask"),
        ({"model__fce__gate": "both"}, "config.model.fce.gate"),
    ],
)
def test_a_value_that_no_model_has_is_named(changes, named):
    c = tiny.config(**changes)
    with pytest.raises(UserError, match=named):
        models.build(c.model, c.data.image_size, 5)
