"""HAMNet, PFNet, IEEE, TOP-ReID and EDITOR: formulas by NumPy, names, and what they refuse."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.hosts import demo, wmveid863
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models, objective
from facenet_jax.lab import tables
from facenet_jax.losses import terms
from facenet_jax.models import editor, hamnet, map_streams, pfnet, vit
from facenet_jax.models.layers import plain_attention, plain_block
from facenet_jax.models.trunk import plain_tokens
from facenet_jax.types import DataSpec, Outputs
from tests.support import tiny_run as tiny

HOSTS = ("hamnet", "pfnet", "ieee", "topreid", "editor")


def config(name):
    """The demo of a host on the tiny tree."""
    c = tiny.small_demo(demo.get_config(name))
    if c.model.name in ("topreid", "editor"):
        c.model.update(width=16, depth=2, heads=2)
        if c.model.name == "editor":
            c.model.update(depth=3, kept_per_head=1, kept_bright=2)
    else:
        c.model.update(width=2, depths=(1, 1, 1, 1))
    for width in ("reduced_width", "part_width"):
        if width in c.model:
            c.model[width] = 12
    return c


@functools.cache
def evaluated(name):
    """(outputs, variables, batch) of a tiny host in evaluation."""
    c = config(name)
    model = tiny.build(c)
    variables, batch = tiny.variables(model), tiny.batch(4)
    return jax.jit(functools.partial(model.apply, train=False))(variables, batch)[0], model, batch


def some(batch, rows):
    labels = {name: x[jnp.array(rows)] for name, x in batch.labels.items()}
    return dataclasses.replace(batch, images=batch.images[jnp.array(rows)], labels=labels)


@pytest.mark.parametrize("name", [*wmveid863.ROWS, *(f"{host}_mc" for host in wmveid863.ROWS)])
def test_recipes_fit_together_and_ask_for_weights(name):
    for recipe in (wmveid863, demo):
        c = recipe.get_config(name)
        configs.check(c)
        assert ("mc" in objective.terms(c)) == name.endswith("_mc")
    with pytest.raises(UserError, match="pretrained is not set"):
        models.check_start(wmveid863.get_config(name))
    with pytest.raises(UserError, match="host is 'x'; it must be one of hamnet, pfnet"):
        demo.get_config("x")


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Of the releases, less the frozen biases of necks; HAMNet's also without three classifiers that
    # take no part, IEEE's without the queries and values of its relation.
    [
        ("hamnet", 70_823_124 - 3 * 2048 - 3 * 20 * 2048),
        ("pfnet", 80_472_476),
        ("ieee", 109_148_715 - 3 * 2 * (768 * 768 + 768)),
    ],
)
def test_the_parameters_are_those_of_the_releases(name, parameters):
    model = models.build(
        wmveid863.get_config(name).model, DataSpec(tiny.MODALITIES, (256, 128), 20)
    )
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters


def test_the_weights_of_classes_by_loops():
    maps = np.random.default_rng(0).uniform(0.1, 0.9, (3, 2, 4, 5, 6))
    weights, sums = hamnet.class_weights(jnp.asarray(maps, jnp.float32))
    for b in range(2):
        largest = maps[:, b].max(0).sum((0, 1))
        for m in range(3):
            for c in range(6):
                total = maps[m, b, :, :, c].sum()
                share = total / sum(maps[k, b, :, :, c].sum() for k in range(3))
                np.testing.assert_allclose(sums[m, b, c], total, rtol=1e-5)
                expected = share * largest[c] / largest.sum()
                np.testing.assert_allclose(weights[m, b, c], expected, rtol=1e-5)
    np.testing.assert_allclose(weights.sum((0, 2)), 1, rtol=1e-5)


def test_similar_scores_cost_less():
    def loss(*scores):
        logits = {f"score_{i}": jnp.asarray(x, jnp.float32) for i, x in enumerate(scores)}
        return float(hamnet.similarity(Outputs({}, {**logits, "fused": 0}, 0), None))

    one = np.eye(4)[:2] * 3
    assert loss(one, one, one) == pytest.approx(0, abs=1e-6)
    assert loss(one, one, one[::-1]) == pytest.approx(2)


def test_stripes_share_a_row_where_they_do_not_divide():
    maps = np.arange(16.0)[None, :, None, None] * np.ones((1, 16, 2, 1))
    found = map_streams.stripes(jnp.asarray(maps), 6)[0, :, 0]
    np.testing.assert_allclose(found, [1, 3.5, 6, 9, 11.5, 14])  # rows 0-2, 2-5, 5-7, 8-10, ...
    np.testing.assert_allclose(map_streams.stripes(jnp.asarray(maps), 2)[0, :, 0], [3.5, 11.5])


def test_the_streams_of_pfnet():
    r, n, t = tiny.MODALITIES
    assert list(pfnet.streams((r, n, t), (r, n, t))) == [t, f"{r}_{t}", r, f"{r}_{n}", n]
    assert list(pfnet.streams((r, n, t), (n, t))) == [t, n]
    assert list(pfnet.streams((r, t), (r, t))) == [t, f"{r}_{t}", r]
    assert list(pfnet.streams((r,), (r,))) == [r]
    out, *_ = evaluated("pfnet")
    assert out.embedding.shape == (4, 5 * 2 * 12)
    assert list(out.logits)[-1] == "all"
    joined = np.concatenate([out.features[name] for name in pfnet.streams((r, n, t), (r, n, t))], 1)
    np.testing.assert_array_equal(out.embedding, joined)


def test_mc_of_stripes_is_the_mean_over_them():
    out, _, batch = evaluated("ieee")
    each = [float(terms.mc(out, batch, on=(f"part{i}_*",))) for i in range(1, 7)]
    assert float(map_streams.mc_of_parts(out, batch)) == pytest.approx(np.mean(each), rel=1e-5)
    out, *_ = evaluated("pfnet")  # of each modality's own stripes, not of those of pairs
    assert {name for name in out.logits if name.startswith("part1_")} == {
        f"part1_{modality}" for modality in tiny.MODALITIES
    }


def test_editor_keeps_the_patches_that_attention_reaches_or_that_are_bright():
    values = jnp.array([[0.1, 0.5, 0.5, 0.2], [3.0, 1.0, 2.0, 0.0]])
    assert editor.most(values, 1).tolist() == [[False, True, False, False], [True] + [False] * 3]
    assert editor.most(values, 2).sum(-1).tolist() == [2, 2]
    images = -np.ones((3, 1, 32, 16, 3), np.float32)
    images[:, 0, 8:16, :8] = 1.0  # the third patch of 8 x 8, whole
    images[0, 0, 0, 8:11] = 9.0  # three pixels of the second, above 0 in the mean
    assert editor.bright_pixels(jnp.asarray(images), 8)[0].tolist() == [0, 3, 64, 0, 0, 0, 0, 0]
    large = editor.bright_pixels(jnp.ones((3, 1, 32, 32, 3)), 32)
    assert large.tolist() == [[256.0]]


def test_the_rollout_is_the_product_of_the_attention_of_all_blocks():
    _, model, batch = evaluated("editor")
    params = tiny.variables(model)["params"]
    trunk = jax.tree.map(lambda x: x, params["trunk"])
    rolled = np.broadcast_to(np.eye(9), (4, 2, 9, 9))
    alone = dict(trunk)
    blocks = alone.pop("blocks")
    x = jax.jit(lambda p, x: plain_tokens(p, x, 2))(alone, batch.images[0])
    both = jax.jit(lambda p, x: (plain_attention(p, x, 2), plain_block(p, x, 2)))
    for i in range(2):
        weights, x = both(jax.tree.map(lambda leaf, i=i: leaf[i], blocks), x)
        rolled = np.asarray(weights) @ rolled
    c = config("editor")
    backbone = vit.backbone(c.model, tiny.SIZE)
    keywords = {**backbone.tokens.keywords, "rollout": editor.RolloutBlock}
    rolling = backbone.tokens.func(**keywords)
    tokens, found = jax.jit(lambda p, x: rolling.apply({"params": p}, x, False))(
        trunk, batch.images[0]
    )
    np.testing.assert_allclose(tokens, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, rolled, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-4)


def test_a_masked_block_sees_the_kept_tokens_alone():
    block = editor.MaskedBlock(2, jnp.dtype("float32"))
    x = tiny.noise(2, 5, 16)
    keep = jnp.array([[True, False, True, True, False]] * 2)
    variables = tiny.draw(jax.eval_shape(lambda: block.init(jax.random.key(0), x, keep)))
    apply = jax.jit(block.apply)
    y = apply(variables, x, keep)
    moved = apply(variables, x.at[:, 1].add(7.0), keep)
    np.testing.assert_array_equal(y[:, jnp.array([0, 2, 3, 4])], moved[:, jnp.array([0, 2, 3, 4])])
    whole = apply(variables, x, jnp.ones_like(keep))
    np.testing.assert_allclose(whole, plain_block(variables["params"], x, 2), rtol=1e-4, atol=1e-5)


def test_editor_moves_centres_and_compares_backgrounds():
    model = tiny.build(config("editor"))
    variables, batch = tiny.variables(model), tiny.batch(4)  # identities 0 and 1
    out, changed = jax.jit(functools.partial(model.apply, train=True))(
        variables, batch, key=jax.random.key(1)
    )
    for modality in tiny.MODALITIES:
        before = np.asarray(variables["centres"][modality])
        after = np.asarray(changed["centres"][modality])
        assert (before == after).all(1).tolist() == [False] * 2 + [True] * (len(before) - 2)
    tokens = np.random.default_rng(0).normal(size=(3, 2, 4, 5)).astype(np.float32)
    where = np.array([[True, False, False, True], [False, True, False, False]])
    expected = sum(
        np.mean(np.square(tokens[a][where] - tokens[b][where])) for a, b in ((0, 1), (0, 2), (1, 2))
    )
    found = editor.differences(jnp.asarray(tokens), jnp.asarray(where))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(editor.background(out, batch)) > 0
    assert float(editor.to_centres(out, batch)) > 0
    with pytest.raises(UserError, match="needs the model editor"):
        editor.background(Outputs({}, {}, 0), batch)


@pytest.mark.parametrize("name", HOSTS)
def test_any_subset_of_the_modalities_has_an_embedding(name):
    out, model, batch = evaluated(name)
    variables = tiny.variables(model)
    apply = jax.jit(model.apply, static_argnames=("train", "modalities"))
    alone, _ = apply(variables, some(batch, [0, 2]), train=False, modalities=tiny.MODALITIES[::2])
    assert np.isfinite(alone.embedding).all()
    if name == "topreid":  # complete: what is missing is made of the others
        assert alone.parts == out.parts
        assert not np.allclose(alone.embedding, out.embedding)
    elif name == "editor":
        assert list(alone.parts) == list(tiny.MODALITIES[::2])
    elif name == "hamnet":
        assert alone.embedding.shape == out.embedding.shape
    else:
        assert alone.embedding.shape[1] < out.embedding.shape[1]
    # Tables of modalities put the parts of a subset where the whole embedding has them.
    assert set(alone.parts) <= set(out.parts)
    for part, (start, stop) in alone.parts.items():
        assert stop - start == out.parts[part][1] - out.parts[part][0]


@pytest.mark.parametrize("name", HOSTS)
def test_samples_that_lack_images_are_refused(name):
    _, model, batch = evaluated(name)
    missing = dataclasses.replace(batch, present=jnp.ones((3, 4), bool))
    with pytest.raises(UserError, match="incomplete = 'skip'"):
        jax.eval_shape(functools.partial(model.apply, train=False), tiny.variables(model), missing)


def test_the_table_of_the_paper_has_a_row_for_each_host_and_mc():
    table = tables.find("facenet/7")
    assert [row.name for row in table.rows[:2]] == ["HAMNet", "HAMNet and MC"]
    assert all(row.against for row in table.rows)
    options = ("--config.train.steps=7",)
    start = tables.Start(config="configs/hosts/demo.py", options=options)
    c = tables.config_of(table, table.rows[3], 0, start)
    assert (c.model.name, c.losses.mc.weight, c.data.name) == ("pfnet", 1.0, "rendered")
    assert c.train.steps == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HOSTS, "ieee_mc", "editor_mc"])
def test_a_run_is_resumed_and_exports(name, place, tmp_path):
    """A run that was stopped after a chunk goes on to the very state of one that was not."""
    tiny.resumed_and_exported(config(name), place, tmp_path)
