"""The ResNet against NumPy, its shapes, and the files it starts from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models
from facenet_jax.models import convolution, resnet
from facenet_jax.models.layers import BatchNorm, statistics
from facenet_jax.weights.merge import flatten, nest
from facenet_jax.weights.torch_writer import write_state_dict
from tests.support import tiny_run as tiny
from tests.support import vit_files

KEY = jax.random.key(0)


def config(model="three_stream", **changes):
    c = common.get_config(model, backbone="resnet")
    c.data.image_size = tiny.SIZE
    c.model.variant, c.model.width, c.model.depths = "", 2, (1, 1, 1, 1)
    c.model.pretrained = "none"
    c.update_from_flattened_dict({name.replace("__", "."): x for name, x in changes.items()})
    return c


def convolve(x, kernel, stride):
    """[B, H, W, C] with [k, k, C, D] and a border of k // 2 zeros."""
    k = len(kernel)
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    return np.einsum("bhwckl,klcd->bhwd", windows[:, ::stride, ::stride], kernel)


def pool(x, side, border):
    x = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    return windows[:, ::2, ::2].max((-1, -2))


class NumpyResnet:
    """Evaluation in float64, one block for each layer."""

    def __init__(self, variables, c):
        tree = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        self.params, self.stats = (flatten(tree[k]) for k in ("params", "batch_stats"))
        self.config = c

    def norm(self, x, name):
        p, s = self.params, self.stats
        scaled = (x - s[f"{name}/mean"]) / np.sqrt(s[f"{name}/var"] + 1e-5)
        return scaled * p[f"{name}/scale"] + p[f"{name}/bias"]

    def conv(self, x, name, stride=1):
        return convolve(x, self.params[f"{name}/kernel"], stride)

    def stem(self, x):
        x = self.norm(self.conv(x, "conv1", 2), "bn1")
        x = np.maximum(x, 0) if self.config.stem_relu else x
        return pool(x, 3, 1) if self.config.stem_pool == "3x3" else pool(x, 2, 0)

    def block(self, x, name, stride):
        y = np.maximum(self.norm(self.conv(x, f"{name}/conv1"), f"{name}/bn1"), 0)
        y = np.maximum(self.norm(self.conv(y, f"{name}/conv2", stride), f"{name}/bn2"), 0)
        y = self.norm(self.conv(y, f"{name}/conv3"), f"{name}/bn3")
        x = self.norm(self.conv(x, f"{name}/shortcut_conv", stride), f"{name}/shortcut_bn")
        return np.maximum(x + y, 0)

    def __call__(self, x):
        """{stage: map}."""
        maps = {"stem": self.stem(np.asarray(x, np.float64))}
        strides = (1, 2, 2, self.config.last_stride)
        for i, stride in enumerate(strides, start=1):
            maps[f"layer{i}"] = self.block(list(maps.values())[-1], f"layer{i}_0", stride)
        return maps


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((37, 22), {"split_after": "layer2", "last_stride": 2, "stem_relu": True}),
        ((26, 31), {"stem_pool": "2x2", "split_after": "layer3"}),
    ],
)
def test_the_flags_mean_what_numpy_computes(size, changes):
    """Odd sizes, where paddings differ most."""
    c = config(**{f"model__{name}": value for name, value in changes.items()}).model
    found = resnet.backbone(c, size)
    images = tiny.noise(2, *size, 3)
    tokens, head = found.tokens(), found.head()
    first = tiny.draw(jax.eval_shape(lambda: tokens.init(KEY, images, False)))
    made = jax.jit(tokens.apply, static_argnums=2)(first, images, False)
    second = tiny.draw(jax.eval_shape(lambda: head.init(KEY, made, False)), seed=1)
    merged = {k: {**first[k], **second[k]} for k in ("params", "batch_stats")}
    maps = NumpyResnet(merged, c)(images)
    expected = maps[c.split_after]
    assert (*found.grid, found.token_width) == expected.shape[1:]
    expected = expected.reshape(2, -1, expected.shape[-1])
    np.testing.assert_allclose(made[:, 1:], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(made[:, 0], expected.mean(1), rtol=1e-3, atol=1e-4)
    feature = jax.jit(head.apply, static_argnums=2)(second, made, False)
    np.testing.assert_allclose(feature, maps["layer4"].mean((1, 2)), rtol=1e-3, atol=1e-3)
    assert feature.shape[-1] == found.width


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_both_ways_to_convolve_agree(side, stride):
    """Also in their gradients; a CPU takes the product."""
    x, kernel = tiny.noise(2, 9, 6, 3), tiny.noise(side, side, 3, 4, seed=1)

    def values(function):
        y = function(x, kernel, stride)
        slopes = jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a, stride))), (0, 1))(x, kernel)
        return [y, *slopes]

    both = jax.jit(
        lambda: [values(f) for f in (convolution.as_convolution, convolution.convolution)]
    )()
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_resnet_50_has_the_sizes_of_the_papers():
    """25.6 million parameters less the 2 048 000 + 1000 of the ImageNet classifier."""
    c = config().model
    c.variant = "50"
    found = resnet.backbone(c, (256, 128))
    assert (found.grid, found.token_width, found.width) == ((16, 8), 1024, 2048)
    images, tokens = jnp.zeros((1, 256, 128, 3)), jnp.zeros((1, 129, 1024))
    shapes = [
        jax.eval_shape(functools.partial(part().init, KEY, train=False), x)["params"]
        for part, x in ((found.tokens, images), (found.head, tokens))
    ]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 25_557_032 - 2_049_000


def test_batch_norm_of_maps_keeps_the_unbiased_variance_over_rows_and_places():
    x = tiny.noise(3, 4, 5, 2) * 3 + 1
    layer = BatchNorm(frozen_bias=False)
    variables = layer.init(KEY, x, True)
    assert set(variables["params"]) == {"scale", "bias"}
    y, changed = layer.apply(variables, x, True, mutable=["batch_stats"])
    values = np.asarray(x, np.float64).reshape(-1, 2)
    kept = changed["batch_stats"]
    np.testing.assert_allclose(kept["mean"], 0.1 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(kept["var"], 0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-5)
    expected = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 2), expected, rtol=1e-4, atol=1e-5)
    some = jnp.array([True, False, True])
    np.testing.assert_allclose(
        jnp.stack(statistics(x, some)), jnp.stack(statistics(x[some], None)), rtol=1e-5
    )


# What a file of torchvision or timm holds.


def torch_file(width=2, depths=(1, 1, 1, 1), prefix="", seed=0):
    """Random tensors of a ResNet with an ImageNet classifier, in torch's names and layouts."""
    rng, state = np.random.default_rng(seed), {}

    def conv(name, out, into, k):
        state[f"{prefix}{name}.weight"] = rng.normal(size=(out, into, k, k)).astype(np.float32)

    def norm(name, features):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{prefix}{name}.{leaf}"] = rng.uniform(1, 2, features).astype(np.float32)
        state[f"{prefix}{name}.num_batches_tracked"] = np.zeros((), np.int64)

    conv("conv1", width, 3, 7)
    norm("bn1", width)
    into = width
    for stage, depth in enumerate(depths):
        inside = width * 2**stage
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            conv(f"{name}.conv1", inside, into, 1)
            conv(f"{name}.conv2", inside, inside, 3)
            conv(f"{name}.conv3", 4 * inside, inside, 1)
            for i, features in ((1, inside), (2, inside), (3, 4 * inside)):
                norm(f"{name}.bn{i}", features)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * inside, into, 1)
                norm(f"{name}.downsample.1", 4 * inside)
            into = 4 * inside
    state[f"{prefix}fc.weight"] = np.zeros((10, into), np.float32)
    state[f"{prefix}fc.bias"] = np.zeros(10, np.float32)
    return state


def load(path, model="three_stream"):
    made = models.build(config(model).model, tiny.SPEC)
    return made.load(jax.tree.map(np.asarray, tiny.variables(made)), str(path))


@pytest.mark.parametrize("model", ["three_stream", "facenet"])
def test_a_file_fills_every_branch_and_its_statistics(tmp_path, model):
    state = torch_file()
    write_state_dict(tmp_path / "resnet.pth", state)
    filled, report = load(tmp_path / "resnet.pth", model)
    params, stats = filled["params"], filled["batch_stats"]
    for modality in tiny.MODALITIES:
        kernel = params[f"trunk_{modality}"]["layer2_0"]["conv2"]["kernel"]
        expected = state["layer2.0.conv2.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(kernel, expected)
        last = stats[f"last_{modality}"]["layer4_0"]["shortcut_bn"]["var"]
        np.testing.assert_array_equal(last, state["layer4.0.downsample.1.running_var"])
    if model == "facenet":
        copies = stats["flare_head"]["layer4_0"]["bn3"]["mean"]
        np.testing.assert_array_equal(copies, [state["layer4.0.bn3.running_mean"]] * 2)
    assert {"fc.weight", "bn1.num_batches_tracked"} <= set(report.ignored)
    assert not any("layer" in name for name in report.kept)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: vit_timm(), "holds a ViT and no ResNet.*backbone = 'vit'"),
        (lambda s: {"features.0.weight": np.ones(3, np.float32)}, "something else and no ResNet"),
        (lambda s: torch_file(depths=(1, 1, 2, 1)), r"\(1, 1, 2, 1\) blocks where the model has 2"),
        (lambda s: torch_file(width=4), "stem of 4 channels"),
        (lambda s: {k: v for k, v in s.items() if k != "bn1.running_var"}, "lacks bn1/var"),
        (lambda s: {**s, "layer1.0.se.weight": s["bn1.bias"]}, "no place for layer1.0.se.weight"),
        (lambda s: {**s, "bn1.bias": s["bn1.bias"] * np.nan}, "bn1.bias holds NaN"),
    ],
)
def test_other_files_are_one_sentence(tmp_path, change, words):
    write_state_dict(tmp_path / "file.pth", change(torch_file()))
    with pytest.raises(UserError, match=words):
        load(tmp_path / "file.pth")


def vit_timm():
    return vit_files.families(vit_files.canonical_vit(), 2)["timm today"]


def test_a_ddp_prefix_is_no_other_family(tmp_path):
    write_state_dict(tmp_path / "file.pth", torch_file(prefix="module.backbone."))
    assert load(tmp_path / "file.pth")[1].loaded


def test_a_resnet_needs_weights_of_its_own_kind():
    c = config()
    c.model.pretrained = ""
    with pytest.raises(UserError, match="resnet50-19c8e357"):
        models.check_start(c)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__width": 0}, "width 0 and depths"),
        ({"data__image_size": (2, 64), "model__stem_pool": "2x2"}, "too small for the stem"),
    ],
)
def test_options_that_do_not_fit_together(changes, words):
    with pytest.raises(UserError, match=words):
        configs.check(config(**changes))


@pytest.mark.parametrize("model", ["three_stream", "facenet"])
def test_table_8_has_a_gradient_everywhere(model):
    """ResNet-50 under the baseline and under FACENet: shapes of a training step, no numbers."""
    c = config(model)
    configs.check(c)
    made = models.build(c.model, tiny.SPEC)
    assert made.pixel_mean == resnet.IMAGENET_MEAN
    variables = tiny.variables(made)

    def step(params, batch):
        outputs, changed = made.apply({**variables, "params": params}, batch, train=True, key=KEY)
        return outputs.embedding.sum(), changed

    batch = tiny.batch(4)
    _, changed = jax.eval_shape(step, variables["params"], batch)
    assert jax.tree.structure(changed["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )
    assert nest(flatten(changed)).keys() == {"batch_stats"}
