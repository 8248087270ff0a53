"""One branch for each modality: stacked, unstacked and shared; a backbone of convolutions."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax.models import backbones, vit
from facenet_jax.models.backbones import Backbone, branches
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.options import Option, whole
from facenet_jax.runtime import fit
from facenet_jax.types import DataSpec
from facenet_jax.weights.merge import flatten
from tests.support import tiny_run as tiny
from tests.support.tiny_run import MODALITIES

HERE = f"tests.models.{pathlib.Path(__file__).stem}"
KEY = jax.random.key(0)
SPEC = DataSpec(MODALITIES, tiny.SIZE, 5)
STACKED = False
"""What the backbone below says of itself; tests change it."""


# A backbone as somebody else would write it, named by its import path.


class Tokens(nn.Module):
    """A strided convolution, a BatchNorm over all its pixels, and the mean as token 0."""

    width: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(self.width, (8, 8), strides=8, use_bias=False, name="conv")(images)
        pixels = x.reshape(-1, self.width)
        x = BatchNorm(name="norm")(pixels, train).reshape(len(x), -1, self.width)
        return jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)


class Head(nn.Module):
    """A Dense of the mean of the tokens."""

    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        return Dense(self.width, name="fc")(tokens.mean(1))


OPTIONS = {
    "width": Option(6, "of the tokens", whole(1)),
    "pretrained": Option("none", "a file, or 'none'", configs.text()),
}


def read(path, width):
    """Weights of a file .npz whose names are the paths of one backbone."""
    file = np.load(path)
    trees = {
        "params": {
            "tokens": {"conv": {"kernel": file["conv"]}, "norm": {"scale": file["scale"]}},
            "head": {"fc": {"kernel": file["fc"], "bias": file["fc_bias"]}},
        },
        "batch_stats": {"tokens": {"norm": {name: file[name] for name in ("mean", "var", "bias")}}},
    }
    return trees, ["classifier"], "a toy"


def backbone(config: ml_collections.ConfigDict, image_size: tuple[int, int]) -> Backbone:
    """The backbone of these options."""
    return Backbone(
        tokens=functools.partial(Tokens, config.width),
        head=functools.partial(Head, config.width),
        token_width=config.width,
        width=config.width,
        grid=(image_size[0] // 8, image_size[1] // 8),
        stacked=STACKED,
        pixel_mean=(0.485, 0.456, 0.406),
        pixel_std=(0.229, 0.224, 0.225),
        read=functools.partial(read, width=config.width),
        refuses=lambda backend, train: "It trains on no TPU." if backend == "tpu" and train else "",
    )


# The tests.


class Branches(nn.Module):
    """`branches` of the toy alone."""

    shared: bool
    stacked: bool
    modalities: tuple[str, ...] = MODALITIES

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        part = functools.partial(Tokens, 4)
        how = {"shared": self.shared, "stacked": self.stacked}
        return branches(part, "trunk", self.modalities, **how)(x, train)


def drawn(layer, *arguments):
    return tiny.draw(jax.eval_shape(lambda: layer.init(KEY, *arguments, False)))


def shapes(tree) -> Mapping:
    return {path: x.shape for path, x in flatten(tree).items()}


ONE = {
    "params/trunk/conv/kernel": (8, 8, 3, 4),
    "params/trunk/norm/scale": (4,),
    **{f"batch_stats/trunk/norm/{name}": (4,) for name in ("mean", "var", "bias")},
}
IMAGES = tiny.noise(3, 4, *tiny.SIZE, 3)


@pytest.mark.parametrize(
    ("shared", "stacked", "expected"),
    [
        (False, True, {path: (3, *shape) for path, shape in ONE.items()}),
        (
            False,
            False,
            {
                path.replace("trunk", f"trunk_{modality}"): shape
                for path, shape in ONE.items()
                for modality in MODALITIES
            },
        ),
        (True, True, ONE),
        (True, False, ONE),
    ],
)
def test_where_the_parameters_of_branches_lie(shared, stacked, expected):
    layer = Branches(shared, stacked)
    assert shapes(drawn(layer, IMAGES)) == expected


def own(variables, row, modality, shared, stacked):
    """One backbone's variables out of those of the branches."""
    name = "trunk" if shared or stacked else f"trunk_{modality}"
    trees = {kind: tree[name] for kind, tree in variables.items()}
    return jax.tree.map(lambda leaf: leaf[row], trees) if stacked and not shared else trees


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("stacked", [True, False])
def test_each_branch_is_the_backbone_on_its_own_modality(stacked, train):
    """Values and, in training, the BatchNorm statistics that it leaves."""
    layer = Branches(False, stacked)
    variables = drawn(layer, IMAGES)
    apply = jax.jit(functools.partial(layer.apply, train=train, mutable=["batch_stats"]))
    got, changed = apply(variables, IMAGES)
    alone = jax.jit(functools.partial(Tokens(4).apply, train=train, mutable=["batch_stats"]))
    for row, modality in enumerate(MODALITIES):
        mine = own(variables, row, modality, False, stacked)
        expected, statistics = alone(mine, IMAGES[row])
        np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-5)
        after = own(changed, row, modality, False, stacked)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after, statistics
        )
        moved = np.any(after["batch_stats"]["norm"]["mean"] != mine["batch_stats"]["norm"]["mean"])
        assert moved == train


def test_a_shared_backbone_of_convolutions_sees_all_modalities_as_one_batch():
    layer = Branches(True, False)
    variables = drawn(layer, IMAGES)
    got, changed = layer.apply(variables, IMAGES, True, mutable=["batch_stats"])
    mine = own(variables, 0, "", True, False)
    together = IMAGES.reshape(-1, *IMAGES.shape[2:])
    expected, statistics = Tokens(4).apply(mine, together, True, mutable=["batch_stats"])
    np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        own(changed, 0, "", True, False),
        statistics,
    )


def test_branches_of_a_subset_are_those_of_its_modalities():
    variables = drawn(Branches(False, False), IMAGES)
    whole_set = Branches(False, False).apply(variables, IMAGES, False)
    subset = MODALITIES[::2]
    part = Branches(False, False, subset).apply(variables, IMAGES[::2], False)
    np.testing.assert_allclose(part, whole_set[::2], rtol=1e-5, atol=1e-6)


@pytest.fixture
def stacked(request, monkeypatch):
    """Whether the toy says that it can be stacked."""
    module = backbones.find(f"{HERE}")
    monkeypatch.setattr(module, "STACKED", request.param)
    return request.param


def build(name, spec=SPEC, **changes):
    c = configs.default_config(name, backbone=HERE)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return tiny.build(c, spec)


BOTH = pytest.mark.parametrize("stacked", [True, False], indirect=True)
MODELS = pytest.mark.parametrize("name", ["three_stream", "facenet"])


@BOTH
@MODELS
def test_a_backbone_of_ones_own_serves_both_models(name, stacked):
    """Names, normalisation, statistics of a training step, a subset of modalities."""
    model = build(name)
    assert model.pixel_mean == (0.485, 0.456, 0.406)
    assert model.pixel_std == (0.229, 0.224, 0.225)
    assert model.refuses("tpu", True) == "It trains on no TPU."
    variables = tiny.variables(model)
    tops = {f"{part}_{modality}" for part in ("trunk", "last") for modality in MODALITIES}
    tops = {"trunk", "last"} if stacked else tops
    extra = {"mfmp", "flare_head"} if name == "facenet" else set()
    assert set(variables["params"]) == tops | {"neck", "classifier"} | extra

    batch = tiny.batch(4)
    apply = jax.jit(model.apply, static_argnames=("train", "modalities"))
    out, changed = apply(variables, batch, train=True, key=KEY)
    assert list(out.parts.items()) == [(m, (6 * i, 6 * i + 6)) for i, m in enumerate(MODALITIES)]
    assert jax.tree.structure(dict(changed)) == jax.tree.structure(
        {kind: tree for kind, tree in variables.items() if kind != "params"}
    )
    subset = MODALITIES[1:]
    labels = {key: label[1:] for key, label in batch.labels.items()}
    part = dataclasses.replace(batch, images=batch.images[1:], labels=labels)
    calm = {**batch.labels, "flare": jnp.zeros((3, 4), bool)}
    full, _ = apply(variables, dataclasses.replace(batch, labels=calm), train=False)
    some, unchanged = apply(variables, part, train=False, modalities=subset)
    assert unchanged == {}
    assert tuple(some.features) == subset
    for modality in subset:
        np.testing.assert_allclose(
            some.features[modality], full.features[modality], rtol=1e-4, atol=1e-5
        )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of one backbone, as `read` wants it."""
    rng = np.random.default_rng(0)
    sizes = {
        "conv": (8, 8, 3, 6),
        "fc": (6, 6),
        **dict.fromkeys(("fc_bias", "scale", "mean", "var", "bias"), (6,)),
    }
    arrays = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    path = tmp_path_factory.mktemp("weights") / "toy.npz"
    np.savez(path, **arrays)
    return str(path), arrays


def host(variables):
    return jax.tree.map(np.asarray, variables)


@BOTH
@MODELS
@pytest.mark.parametrize("shared", [False, True])
def test_one_file_fills_every_branch(name, stacked, shared, weights):
    """Parameters and statistics; FACENet's flare heads too; the rest stays as it is."""
    path, arrays = weights
    model = build(name, model__shared_trunk=shared)
    before = host(tiny.variables(model))
    after, report = model.load(before, path)
    before, after = flatten(before), flatten(after)
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}

    def part(name, once=False):
        return [name] if stacked or once else [f"{name}_{modality}" for modality in MODALITIES]

    expected = {}
    for trunk in part("trunk", once=shared):
        expected[f"params/{trunk}/conv/kernel"] = arrays["conv"]
        expected[f"params/{trunk}/norm/scale"] = arrays["scale"]
        for statistic in ("mean", "var", "bias"):
            expected[f"batch_stats/{trunk}/norm/{statistic}"] = arrays[statistic]
    for last in [*part("last"), *(["flare_head"] if name == "facenet" else [])]:
        expected[f"params/{last}/fc/kernel"] = arrays["fc"]
        expected[f"params/{last}/fc/bias"] = arrays["fc_bias"]
    for place, array in after.items():
        want = expected.get(place, before[place])
        np.testing.assert_array_equal(array, np.broadcast_to(want, array.shape))
    loaded = {path if "batch_stats" in path else f"params/{path}" for path in report.loaded}
    assert loaded == set(expected)
    assert report.ignored == ("classifier",)
    assert "a toy" in str(report)


@BOTH
def test_weights_of_another_width_are_refused_with_both_shapes(stacked, weights):
    model = build("three_stream", model__width=4)
    with pytest.raises(UserError, match=r"toy\.npz.*8, 8, 3, 4\], the file has \[8, 8, 3, 6\]"):
        model.load(host(tiny.variables(model)), weights[0])


@pytest.mark.parametrize("modalities", [("visible", "infrared"), ("infrared",)])
def test_other_modalities_have_branches_by_their_names(modalities, weights):
    model = build("three_stream", DataSpec(modalities, tiny.SIZE, 5))
    params = tiny.variables(model)["params"]
    assert set(params) == {
        *(f"{part}_{modality}" for part in ("trunk", "last") for modality in modalities),
        *("neck", "classifier"),
    }
    loaded, _ = model.load(host(tiny.variables(model)), weights[0])
    for modality in modalities:
        kernel = loaded["params"][f"last_{modality}"]["fc"]["kernel"]
        np.testing.assert_array_equal(kernel, weights[1]["fc"])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["facenet", "transreid"])
def test_modalities_in_turn_have_the_embedding_and_the_parameters_of_all_at_once(name, shared):
    """TransReID adds the vectors of its cameras to the tokens."""
    changes = {"model__sie__camera": True} if name == "transreid" else {}
    c = tiny.config(name, model__shared_trunk=shared, **changes)
    batch = tiny.batch(4)
    labels = {**batch.labels, "camera": jnp.asarray([[0, 1, 2, 0]] * 3)}
    batch = dataclasses.replace(batch, labels=labels)
    built = {}
    for how in ("", "loop", "unrolled"):
        with mock.patch.object(vit, "modalities_in_turn", lambda *_, how=how: how):
            built[how] = tiny.build(c, dataclasses.replace(SPEC, labels={"camera": 3}))
    variables = built[""].init(KEY)

    def embedding(how):
        def run(variables):
            return built[how].apply(variables, batch, train=False)[0].embedding

        products = (
            x.invars[0].aval.shape
            for x in fit.equations(jax.make_jaxpr(run)(variables).jaxpr)
            if x.primitive.name == "dot_general"
        )
        return np.asarray(jax.jit(run)(variables)), sum(x[:2] == (3, 4) for x in products)

    expected, together = embedding("")
    for how in ("loop", "unrolled"):
        jax.tree.map(np.testing.assert_array_equal, built[how].init(KEY), variables)
        found, rest = embedding(how)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert rest < together  # so that they are really apart
