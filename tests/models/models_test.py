"""FACENet and the baseline as wholes: outputs, subsets of modalities, ablations, missing images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax.models import vit
from facenet_jax.types import DataSpec
from facenet_jax.weights.merge import flatten
from tests.support import tiny_run as tiny
from tests.support.tiny_run import MODALITIES

KEY = jax.random.key(0)
SPEC = DataSpec(MODALITIES, tiny.SIZE, 5)
PLAIN = {
    "model__mfmp__enabled": False,
    "model__fce__enabled": False,
    "model__flare_heads": False,
}
"""Changes that leave of FACENet the baseline."""


@functools.cache
def build(model="facenet", **changes):
    """(a model, its random variables, its jitted apply)."""
    model = tiny.build(tiny.config(model, **changes), SPEC)
    apply = jax.jit(model.apply, static_argnames=("train", "modalities"))
    return model, tiny.variables(model), apply


def outputs(batch, modalities=MODALITIES, variables=None, **changes):
    _, own, apply = build(**changes)
    return apply(variables or own, batch, train=False, modalities=modalities)[0]


def take(batch, modalities):
    """The batch with only these modalities."""
    rows = jnp.asarray([MODALITIES.index(modality) for modality in modalities])
    labels = {name: label[rows] for name, label in batch.labels.items()}
    present = None if batch.present is None else batch.present[rows]
    return dataclasses.replace(batch, images=batch.images[rows], labels=labels, present=present)


def with_flare(batch, flare):
    """The batch with the flare labels [B, 2] of R and N."""
    flare = jnp.pad(jnp.asarray(flare, bool), ((0, 0), (0, 1))).T
    return dataclasses.replace(batch, labels={**batch.labels, "flare": flare})


def joined(named):
    return np.concatenate(list(named.values()), axis=1)


def test_outputs_have_their_names_shapes_and_types():
    batch = tiny.batch(6)
    out = outputs(batch)
    assert list(out.features) == list(out.logits) == list(MODALITIES)  # in order, after jit too
    assert out.parts == {m: (16 * i, 16 * i + 16) for i, m in enumerate(MODALITIES)}
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
    assert model.spec == SPEC


def test_neck_feature_after_matches_what_the_classifier_sees():
    batch = tiny.batch(6)
    out = outputs(batch, model__neck_feature="after")
    _, variables, _ = build()
    neck, stats = variables["params"]["neck"]["scale"], variables["batch_stats"]["neck"]
    before = np.stack(list(out.features.values()))
    columns = (stats["mean"], stats["var"], stats["bias"], neck)
    mean, var, bias, scale = (np.asarray(x)[:, None] for x in columns)
    after = (before - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(out.embedding, np.concatenate(list(after), 1), rtol=1e-4, atol=1e-5)
    kernel = np.asarray(variables["params"]["classifier"]["kernel"])
    logits = np.stack(list(out.logits.values()))
    np.testing.assert_allclose(logits, after @ kernel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "subset", [MODALITIES[:1], MODALITIES[2:], MODALITIES[:2], MODALITIES[::2]]
)
def test_a_subset_of_modalities_is_what_each_branch_alone_gives(subset, shared):
    """Against a single ViT, run on the modality's own slice of the parameters."""
    batch = tiny.batch(4)
    out = outputs(take(batch, subset), subset, model__shared_trunk=shared)
    assert tuple(out.features) == tuple(out.parts) == subset
    _, variables, _ = build(model__shared_trunk=shared)
    for modality in subset:
        row = MODALITIES.index(modality)
        np.testing.assert_allclose(
            out.features[modality],
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
            axis = 0 if x.ndim == 1 else 1
            mine = (np.arange(6) == at).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
            return jnp.where(mine, x, y)

        return jax.tree.map(merge, batch, others)

    flipped = with_flare(others, ~others.labels["flare"][:2].T)
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
        alone = jax.tree.map(
            lambda x, at=at: x[at : at + 1] if x.ndim == 1 else x[:, at : at + 1], batch
        )
        np.testing.assert_allclose(outputs(alone).embedding[0], whole[at], rtol=1e-5, atol=1e-5)


def test_the_batch_gate_of_the_release_does_look_at_the_others():
    batch = tiny.batch(6, flare=np.eye(6, 2, dtype=bool))
    calm = with_flare(batch, np.zeros((6, 2)))
    for gate, changed in (("sample", np.arange(6) < 2), ("batch", np.full(6, True))):
        flared, clean = (outputs(x, model__fce__gate=gate).embedding for x in (batch, calm))
        np.testing.assert_array_equal(np.any(flared != clean, axis=1), changed)


def test_the_gate_that_is_always_open_enhances_clean_samples_as_if_flared():
    batch = tiny.batch(4, flare=np.ones((4, 2), bool))
    calm = with_flare(batch, np.zeros((4, 2)))
    clean = outputs(calm, model__fce__gate="always").embedding
    np.testing.assert_array_equal(clean, outputs(batch).embedding)
    assert np.all(np.any(clean != outputs(calm).embedding, axis=1))


def of_baseline(variables):
    """The part of FACENet's variables that the baseline has under the same names."""
    names = {kind: set(trees) for kind, trees in build(model="three_stream")[1].items()}
    return {
        kind: {name: tree for name, tree in trees.items() if name in names[kind]}
        for kind, trees in variables.items()
    }


def paths(variables):
    return {path: x.shape for path, x in flatten(variables).items()}


@pytest.mark.parametrize("shared", [False, True])
def test_the_baselines_variables_are_facenets_without_its_own_parts(shared):
    facenet = build(model__shared_trunk=shared)[1]
    baseline = build(model="three_stream", model__shared_trunk=shared)[1]
    assert paths(of_baseline(facenet)) == paths(baseline)
    assert set(facenet["params"]) - set(baseline["params"]) == {"mfmp", "flare_head"}
    assert set(baseline["params"]) == {"trunk", "last", "neck", "classifier"}
    plain = build(model__shared_trunk=shared, **PLAIN)[1]
    assert paths(plain) == paths(baseline)


def test_facenet_without_its_parts_is_the_baseline_bit_by_bit():
    batch, variables = tiny.batch(4), build(model="three_stream")[1]
    one, other = (
        outputs(batch, variables=variables, **changes)
        for changes in (PLAIN, {"model": "three_stream"})
    )
    np.testing.assert_array_equal(one.embedding, other.embedding)
    jax.tree.map(np.testing.assert_array_equal, one.logits, other.logits)


def test_the_parameter_tree_of_facenet():
    """Names and shapes, which checkpoints and docs/architecture.md rely on."""
    found = paths(build()[1])
    norm = {"scale": (16,), "bias": (16,)}
    block = {
        **{f"norm1/{k}": v for k, v in norm.items()},
        **{f"norm2/{k}": v for k, v in norm.items()},
        "qkv/kernel": (16, 48),
        "qkv/bias": (48,),
        "proj/kernel": (16, 16),
        "proj/bias": (16,),
        "fc1/kernel": (16, 64),
        "fc1/bias": (64,),
        "fc2/kernel": (64, 16),
        "fc2/bias": (16,),
    }
    statistics = {"mean": (16,), "var": (16,), "bias": (16,)}
    expected = {
        "params/trunk/patch/kernel": (3, 192, 16),
        "params/trunk/patch/bias": (3, 16),
        "params/trunk/class_token": (3, 1, 16),
        "params/trunk/position": (3, 9, 16),
        **{f"params/trunk/blocks/{k}": (3, 1, *v) for k, v in block.items()},
        **{f"params/last/block/{k}": (3, *v) for k, v in block.items()},
        **{f"params/last/norm/{k}": (3, *v) for k, v in norm.items()},
        "params/neck/scale": (3, 16),
        "params/classifier/kernel": (3, 16, 5),
        **{f"params/mfmp/norm/{k}": (2, *v) for k, v in norm.items()},
        **{f"params/mfmp/{name}/kernel": (2, 16, 16) for name in ("query", "key", "value", "out")},
        "params/mfmp/out/bias": (2, 16),
        **{f"params/flare_head/block/{k}": (2, *v) for k, v in block.items()},
        **{f"params/flare_head/norm/{k}": (2, *v) for k, v in norm.items()},
        "params/flare_head/neck/scale": (2, 16),
        "params/flare_head/classifier/kernel": (2, 16, 2),
        **{f"batch_stats/neck/{k}": (3, *v) for k, v in statistics.items()},
        **{f"batch_stats/flare_head/neck/{k}": (2, *v) for k, v in statistics.items()},
    }
    assert found == expected


@pytest.mark.parametrize("mask", ["soft", "hard"])
def test_without_flare_the_embedding_is_the_baselines(mask):
    flare = np.array([[False, False], [True, True]] * 3)
    batch = tiny.batch(6, flare=flare)
    variables = build(model__fce__mask=mask)[1]
    full = outputs(batch, model__fce__mask=mask).embedding
    plain = outputs(batch, variables=of_baseline(variables), model="three_stream").embedding
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


def test_a_shared_trunk_is_one_trunk_for_all_modalities():
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
        configs.check(c)


@pytest.mark.parametrize(
    "modalities", [("visible", "infrared"), ("thermal",), ("a", "b", "c", "d")]
)
def test_the_baseline_takes_any_modalities(modalities):
    """Parts and parameters in the data set's order; each branch is that of its own parameters."""
    count = len(modalities)
    model = tiny.build(tiny.config("three_stream"), DataSpec(modalities, tiny.SIZE, 5))
    variables = tiny.variables(model)
    assert {x.shape[0] for x in jax.tree.leaves(variables)} == {count}
    images = tiny.noise(count, 4, *tiny.SIZE, 3)
    batch = dataclasses.replace(tiny.batch(4), images=images, labels={})
    out, changed = jax.jit(functools.partial(model.apply, train=False))(variables, batch)
    assert changed == {}
    assert list(out.parts.items()) == [(m, (16 * i, 16 * i + 16)) for i, m in enumerate(modalities)]
    for row, modality in enumerate(modalities):
        np.testing.assert_allclose(
            out.features[modality],
            single_branch(variables["params"], images[row], row, False),
            rtol=1e-4,
            atol=1e-5,
        )


def test_facenet_refuses_other_modalities_and_says_what_serves_them():
    spec = DataSpec(("visible", "thermal"), tiny.SIZE, 5)
    with pytest.raises(UserError, match=r"visible, thermal, but FACENet needs .*'three_stream'"):
        tiny.build(tiny.config(), spec)


@pytest.mark.parametrize("modalities", [(), ("visible", "visible")])
def test_a_data_set_without_modalities_or_with_one_twice_is_refused(modalities):
    with pytest.raises(UserError, match="each must stand once"):
        tiny.build(tiny.config("three_stream"), DataSpec(modalities, tiny.SIZE, 5))


PRESENT = np.array([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0]], bool)


def test_a_sample_with_missing_images_has_the_embedding_of_those_it_has():
    """Its part of a missing modality is 0, and its flare labels there change nothing."""
    batch = dataclasses.replace(tiny.batch(6, flare=np.ones((6, 2))), present=jnp.asarray(PRESENT))
    out = outputs(batch)
    assert {m: list(x) for m, x in out.present.items()} == {
        m: list(PRESENT[i]) for i, m in enumerate(MODALITIES)
    }
    for sample in range(6):
        has = tuple(m for m, there in zip(MODALITIES, PRESENT[:, sample], strict=True) if there)
        one = dataclasses.replace(batch, present=None)
        own = outputs(take(one, has), has)
        for modality, (start, stop) in out.parts.items():
            expected = np.zeros(16)
            if modality in has:
                first, last = own.parts[modality]
                expected = own.embedding[sample, first:last]
            np.testing.assert_allclose(
                out.embedding[sample, start:stop], expected, rtol=1e-4, atol=1e-5
            )


def test_a_mask_that_says_all_are_present_changes_nothing():
    """Bit by bit with the emitters a user has; without them rounding depends on what is fused."""
    batch, (model, variables, _) = tiny.batch(6), build()
    marked = dataclasses.replace(batch, present=jnp.ones((3, 6), bool))
    options = {"xla_cpu_use_fusion_emitters": True}
    apply = jax.jit(functools.partial(model.apply, train=False), compiler_options=options)
    whole, masked = (apply(variables, x)[0].embedding for x in (batch, marked))
    np.testing.assert_array_equal(masked, whole)


def test_what_devices_cannot_do_is_a_sentence():
    spec = DataSpec(MODALITIES, tiny.SIZE, 5)  # 8 patches, so 9 tokens
    cudnn = {"model__attention": "cudnn", "model__dtype": "bfloat16"}
    model = tiny.build(tiny.config(**cudnn), spec)
    assert model.refuses("gpu", False) == ""
    assert "an even number of tokens only, and an image has 9" in model.refuses("gpu", True)
    for train in (False, True):
        assert "of the kind 'cpu'" in model.refuses("cpu", train)
        assert "--config.model.attention=xla" in model.refuses("cpu", train)
    exact = tiny.build(tiny.config(model__attention="cudnn"), spec)
    assert "config.model.dtype is float32" in exact.refuses("gpu", False)
    assert build()[0].refuses("cpu", True) == ""
    even = tiny.build(tiny.config(**cudnn), dataclasses.replace(spec, image_size=(40, 24)))
    assert even.refuses("gpu", True) == ""  # 15 patches and the class token
    with pytest.raises(UserError, match="cudnn"):
        configs.check(tiny.config(**cudnn))
