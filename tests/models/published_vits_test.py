"""DINOv2, DINOv3 and CLIP as backbones of the systems: sizes, options, registers, files."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models
from facenet_jax.models import backbones, clip, facenet, vit
from facenet_jax.models.layers import Block, LayerNorm, apart, joined, quick_gelu
from facenet_jax.models.rope import Rope, rotated
from facenet_jax.parity.backbones import Twin
from facenet_jax.parity.rows import Golden
from facenet_jax.weights.merge import flatten, nest
from tests.support import tiny_run as tiny
from tests.support import torch_files

KEY = jax.random.key(0)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "backbones"
FAMILIES = ("dinov2", "dinov3", "clip")


def config(backbone, name="three_stream", **changes):
    """A model of width 16 and depth 2 on 32 x 16 pixels, on this backbone."""
    c = configs.default_config(name, backbone=backbone)
    c.data.image_size = tiny.SIZE
    sizes = {"variant": "", "width": 16, "depth": 2, "heads": 2, "patch": 8, "pretrained": "none"}
    c.model.update(sizes)
    if backbone == "dinov2":
        c.model.registers = 4
    c.update_from_flattened_dict({key.replace("__", "."): x for key, x in changes.items()})
    return c


def parameters(backbone, variant, size, **changes):
    """How many parameters the two halves of a backbone have together."""
    model = configs.default_config("three_stream", backbone=backbone).model
    model.variant = variant
    model.update(changes)
    built = backbones.find(backbone).backbone(model, size)

    def init(key):
        images = jnp.zeros((1, *size, 3))
        tokens, trunk = built.tokens().init_with_output(key, images, False)
        return trunk, built.head().init(key, tokens, False)

    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(init, KEY)))


@pytest.mark.parametrize(
    ("backbone", "variant", "size", "changes", "count"),
    [
        # Published counts; that of DINOv2 has the mask token, of DINOv3 too.
        ("dinov2", "S", (518, 518), {}, 22_056_576 - 384),
        ("dinov2", "B", (518, 518), {"registers": 4}, 86_583_552 - 768),
        ("dinov3", "S", (224, 224), {}, 21_601_152 - 384),
        ("clip", "B", (224, 224), {"feature": "projected"}, 86_192_640),
    ],
)
def test_parameters_are_those_of_the_published_networks(backbone, variant, size, changes, count):
    assert parameters(backbone, variant, size, **changes) == count


def built(backbone, **changes):
    """The backbone of the small config."""
    c = config(backbone, **changes)
    return backbones.find(backbone).backbone(c.model, tuple(c.data.image_size))


@pytest.mark.parametrize("backbone", FAMILIES)
def test_the_class_token_alone_is_that_of_the_whole_last_block(backbone):
    one = built(backbone)
    prefix, head = one.prefix, one.head()
    tokens = tiny.noise(2, prefix + 8, 16)
    variables = tiny.draw(jax.eval_shape(lambda: head.init(KEY, tokens, False)))
    params, kind = variables["params"], one.tokens.keywords["kind"]
    block = Block(2, False, jnp.float32, "xla", kind=kind)
    norm = LayerNorm(kind.epsilon)

    @jax.jit
    def both(variables, tokens):
        parts = apart(tokens, prefix)
        x = block.apply({"params": params["block"]}, parts, jnp.float32(0), False)
        whole = norm.apply({"params": params["norm"]}, joined(x))[:, 0]
        return head.apply(variables, tokens, False), whole

    np.testing.assert_allclose(*both(variables, tokens), atol=2e-5)


def test_rotation_keeps_lengths_and_depends_on_differences_alone():
    """Of patches a row apart, wherever on the grid: the scores are the same."""
    rope = Rope((5, 3))
    q, k = (jnp.broadcast_to(tiny.noise(1, 1, 1, 8, seed=i), (1, 1, 15, 8)) for i in (0, 1))
    turned, other = rotated(q, rope), rotated(k, rope)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(q, axis=-1))
    scores = jnp.einsum("bhtd,bhsd->ts", turned, other)
    below = [float(scores[i, i + 3]) for i in range(12)]
    np.testing.assert_allclose(below, below[0], rtol=2e-5)
    assert abs(float(scores[0, 1]) - below[0]) > 1e-3


def test_quick_gelu():
    x = tiny.noise(50)
    expected = np.asarray(x) / (1 + np.exp(-1.702 * np.asarray(x)))
    np.testing.assert_allclose(quick_gelu(x), expected, rtol=1e-5)
    assert quick_gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_bias_of_keys_is_not_trained_in_dinov3():
    one = built("dinov3")
    trunk, images = one.tokens(), tiny.noise(2, *tiny.SIZE, 3)
    variables = tiny.draw(jax.eval_shape(lambda: trunk.init(KEY, images, False)))
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(trunk.apply(v, images, False)))))
    gradient = gradient(variables)
    query, key, value = np.split(gradient["params"]["blocks"]["qkv"]["bias"][0], 3)
    assert np.abs(query).min() > 0
    assert np.abs(value).min() > 0
    np.testing.assert_array_equal(key, 0)


def test_pixels_are_normalised_as_in_the_pretraining_unless_said():
    assert built("clip").pixel_mean == clip.MEAN
    assert built("dinov3").pixel_std == vit.IMAGENET_STD
    assert built("clip", model__pixels="half").pixel_mean == (0.5, 0.5, 0.5)
    assert built("clip", model__feature="projected", model__projection=12).width == 12


def test_patches_that_do_not_fit_are_refused_with_the_nearest_sizes():
    c = configs.default_config("three_stream", backbone="dinov2")
    c.data.image_size = (256, 128)
    with pytest.raises(UserError, match=r"nearest sizes are \(252, 126\) and \(266, 140\)"):
        configs.check(c)
    c.data.image_size = (252, 126)
    configs.check(c)
    for backbone in ("dinov3", "clip"):
        with pytest.raises(UserError, match=r"nearest sizes are \(32, 16\) and \(40, 16\)"):
            configs.check(config(backbone, data__image_size=(36, 16)))
        configs.check(config(backbone, data__image_size=(36, 16), model__stride=4))
    with pytest.raises(UserError, match="a head width that 4 divides"):
        configs.check(config("dinov3", model__width=12))


def test_registers_are_neither_masked_nor_mixed_with_thermal_ones():
    own, thermal = tiny.noise(2, 3, 7, 4), tiny.noise(3, 7, 4, seed=1)
    fce = facenet.FCE("hard", 0.0, "own", "sample", prefix=3)
    everywhere, flared = jnp.ones((2, 3, 4, 4)), jnp.ones((3, 2), bool)
    mixed = fce.apply({}, own, thermal, everywhere, flared)
    np.testing.assert_array_equal(mixed[:, :, :3], own[:, :, :3])
    np.testing.assert_array_equal(mixed[:, :, 3:], jnp.stack([thermal[:, 3:]] * 2))


@pytest.mark.parametrize("backbone", FAMILIES)
def test_facenet_enhances_the_patches_of_any_backbone(backbone):
    """Shapes alone: masks are of the patches, and a flare head sees the registers."""
    model = tiny.build(config(backbone, "facenet"))
    variables = jax.eval_shape(model.init, KEY)
    batch = jax.eval_shape(lambda: tiny.batch(2))
    apply = functools.partial(model.apply, train=True, key=KEY)
    outputs, _ = jax.eval_shape(apply, variables, batch)
    prefix = built(backbone).prefix
    assert prefix == (1 if backbone == "clip" else 5)
    assert outputs.extras["trunk"].shape == (3, 2, prefix + 8, 16)
    assert outputs.extras["mfmp"].shape == (2, 2, 8, 16)
    assert outputs.extras["fce"].shape == (2, 2, prefix + 8, 16)
    assert ("position" in variables["params"]["trunk"]) == (backbone != "dinov3")


def test_transreid_has_local_features_of_dinov2_and_not_of_dinov3():
    model = tiny.build(config("dinov2", "transreid"))
    variables = jax.eval_shape(model.init, KEY)
    apply = functools.partial(model.apply, train=False)
    outputs, _ = jax.eval_shape(apply, variables, jax.eval_shape(lambda: tiny.batch(2)))
    assert outputs.embedding.shape == (2, 3 * 5 * 16)
    with pytest.raises(UserError, match=r"model\.backbone is 'dinov3'; it must be one of"):
        configs.check(config("dinov3", "transreid"))


def test_the_rate_of_the_backbone_is_its_own():
    model = tiny.build(config("clip", "facenet", model__backbone_lr_factor=0.1))
    (group,) = model.groups.values()
    params = flatten(jax.eval_shape(model.init, KEY)["params"])
    held = {path for path in params if group.holds(path)}
    others = {path.split("/")[0] for path in params if path not in held}
    assert others == {"neck", "classifier", "mfmp", "flare_head"}
    rest = {path for path in params if path not in held and path.startswith("flare_head")}
    assert rest == {"flare_head/neck/scale", "flare_head/classifier/kernel"}
    assert not tiny.build(config("clip")).groups


@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_file_fills_every_branch(backbone, tmp_path):
    """A golden set's weights as a file of its publisher (CLIP: TorchScript), to an embedding."""
    twin = Twin(Golden(GOLDEN / f"{backbone}_tiny"))
    flat = {twin.names[name]: array for name, array in twin.state.items()}
    data = torch_files.script_bytes(nested(flat)) if backbone == "clip" else None
    path = torch_files.save(tmp_path / "a.pt", data or torch_files.zip_bytes(flat))
    meta = twin.meta
    sizes = {key: meta[key] for key in ("width", "depth", "heads", "patch")}
    c = config(backbone, data__image_size=(meta["patch"] * 4, meta["patch"] * 2))
    c.model.update(sizes)
    if backbone == "dinov2":
        c.model.registers = 0
    spec = dataclasses.replace(tiny.SPEC, image_size=tuple(c.data.image_size))
    model = tiny.build(c, spec)
    before = jax.tree.map(np.asarray, tiny.variables(model))
    after, report = model.load(before, str(path))
    params = after["params"]
    for row in params["trunk"]["blocks"]["fc1"]["kernel"]:
        np.testing.assert_array_equal(row[1], twin.file.canonical["blocks/1/fc1/kernel"])
    assert {name.split("/")[0] for name in report.kept} == {"neck", "classifier"}
    words = str(report)
    assert "SHA-256" in words
    if backbone == "clip":
        assert "CLIP in OpenAI's names" in words
        assert "resized from 4 x 4 to 4 x 2 (bilinear)" in words
        assert "projection" in report.ignored
    if backbone == "dinov2":
        assert "resized from 5 x 5 to 4 x 2 (meta)" in words
        c.model.registers = 4
        with pytest.raises(UserError, match="registers 0 where the model has 4"):
            tiny.build(c, spec).load(before, str(path))


def test_a_card_says_what_the_licence_of_the_weights_asks():
    model = config("dinov3").model
    assert models.licence(model) == ""
    model.pretrained = "dinov3.pth"
    assert models.licence(model).startswith("licence: DINOv3")
    model = config("clip", model__pretrained="ViT-B-16.pt").model
    assert "surveillance" in models.licence(model)
    assert models.licence(config("dinov2", model__pretrained="a.pth").model) == ""


def nested(flat):
    """The modules of dotted names."""
    return nest({name.replace(".", "/"): array for name, array in flat.items()})
