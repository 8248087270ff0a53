import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.models.layers import LayerNorm
from facenet_jax.models.trunk import Trunk
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.merge import (
    fill,
    flatten,
    trunk_parameters,
    vit_parts,
)
from facenet_jax.weights.names.vit import to_canonical
from facenet_jax.weights.positions import fit_position, resize_position
from tests.support import tiny_run as tiny
from tests.support import torch_files, vit_files

VIT = vit_files.canonical_vit()  # width 8, 3 blocks, patch 4, 3 x 3 positions, MLP 12


def facenet_tree(width=8, depth=3, patch=4, tokens=9, hidden=12, shared=False, baseline=False):
    """A FACENet's parameters, every one its own random array."""
    rng = np.random.default_rng(1)
    lead = () if shared else (3,)

    def leaf(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def block(*front):
        sizes = {"qkv": (width, 3 * width), "proj": (width, width)}
        sizes |= {"fc1": (width, hidden), "fc2": (hidden, width)}
        dense = {
            k: {"kernel": leaf(*front, *v), "bias": leaf(*front, v[1])} for k, v in sizes.items()
        }
        return dense | {"norm1": norm(*front), "norm2": norm(*front)}

    def norm(*front):
        return {"scale": leaf(*front, width), "bias": leaf(*front, width)}

    tree = {
        "trunk": {
            "patch": {
                "kernel": leaf(*lead, patch * patch * 3, width),
                "bias": leaf(*lead, width),
            },
            "class_token": leaf(*lead, 1, width),
            "position": leaf(*lead, 1 + tokens, width),
            "blocks": block(*lead, depth - 1),
        },
        "last": {"block": block(3), "norm": norm(3)},
        "neck": {"scale": leaf(3, width)},
        "classifier": {"kernel": leaf(3, width, 5)},
    }
    if not baseline:
        tree["mfmp"] = {"norm": norm(2), "query": {"kernel": leaf(2, width, width)}}
        tree["flare_head"] = {
            "block": block(2),
            "norm": norm(2),
            "neck": {"scale": leaf(2, width)},
            "classifier": {"kernel": leaf(2, width, 2)},
        }
    return tree


KEPT = ("neck/", "classifier/", "mfmp/", "flare_head/neck/", "flare_head/classifier/")
SIZES = {"depth": 3, "width": 8, "patch": 4}


def table(grid=(3, 3), vit=VIT, source="some.pth", **sizes):
    """What a FACENet fills from one ViT, and the note on its positions."""
    parts, note = vit_parts(vit, grid, source, **SIZES | sizes)
    head = parts["head"]
    return {"trunk": parts["tokens"], "last": head, "flare_head": head}, note


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("baseline", [False, True])
def test_one_vit_fills_every_branch(shared, baseline):
    params = facenet_tree(shared=shared, baseline=baseline)
    merged, report = fill(params, table()[0], KEPT, "a.pth", ["head.weight"])
    before, after = flatten(params), flatten(merged)
    assert list(after) == list(before)
    for path, array in after.items():
        assert array.shape == before[path].shape
        if path in report.kept:
            np.testing.assert_array_equal(array, before[path])
    trunk = [after["trunk/blocks/qkv/kernel"], after["trunk/patch/kernel"]]
    for blocks, kernel in [trunk] if shared else zip(*trunk, strict=True):
        for i in range(2):
            np.testing.assert_array_equal(blocks[i], VIT[f"blocks/{i}/qkv/kernel"])
        np.testing.assert_array_equal(kernel[(1 * 4 + 2) * 3 + 1], VIT["patch/kernel"][1, 2, 1])
    for head in ["last"] if baseline else ["last", "flare_head"]:
        for copy in after[f"{head}/block/fc2/kernel"]:
            np.testing.assert_array_equal(copy, VIT["blocks/2/fc2/kernel"])
        for copy in after[f"{head}/norm/bias"]:
            np.testing.assert_array_equal(copy, VIT["norm/bias"])
    kept = ["neck/scale", "classifier/kernel"]
    if not baseline:
        kept += ["mfmp/norm/scale", "mfmp/norm/bias", "mfmp/query/kernel"]
        kept += ["flare_head/neck/scale", "flare_head/classifier/kernel"]
    assert sorted(report.kept) == sorted(kept)
    assert len(report.loaded) + len(report.kept) == len(before)


def test_the_report_counts_and_names():
    parts, note = table((4, 2))
    ignored = ["head.weight", "head.bias"]
    _, report = fill(facenet_tree(tokens=8), parts, KEPT, "a", ignored, note)
    lines = str(report).splitlines()
    assert 3 <= len(lines) <= 6
    assert "resized from 3 x 3 to 4 x 2" in lines[0]
    assert [line.split(":")[0].split() for line in lines[1:]] == [
        ["loaded", "44"],
        ["kept", "7"],
        ["ignored", "2"],
    ]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"depth": 2}, ["depth 3", "model has 2"]),
        ({"depth": 4}, ["depth 3", "model has 4"]),
        ({"width": 12}, ["width 8", "model has 12"]),
        ({"patch": 8}, ["patch 4", "model has 8"]),
        ({"depth": 2, "width": 12}, ["depth 3", "model has 2", "width 8", "model has 12"]),
    ],
)
def test_other_sizes_are_errors_that_name_both(tmp_path, sizes, words):
    with pytest.raises(UserError) as error:
        vit_parts(VIT, (3, 3), "some.pth", **SIZES | sizes)
    assert all(word in str(error.value) for word in ["some.pth", *words])
    flat = vit_files.families(VIT, heads=2)["timm 2020"]
    path = torch_files.save(tmp_path / "some.pth", torch_files.zip_bytes(flat))
    built = model("three_stream", **sizes)
    with pytest.raises(UserError) as error:
        built.load(tiny.variables(built), str(path))
    assert all(word in str(error.value) for word in ["some.pth", *words])


def test_all_mismatches_are_named_together_with_both_sides():
    params = facenet_tree(hidden=32)
    params["last"]["block"]["extra"] = {"scale": np.ones((3, 8), np.float32)}
    params["adapter"] = {"kernel": np.ones((3, 8), np.float32)}
    parts = table()[0] | {"trunk/registers": np.ones((4, 8), np.float32)}
    del params["last"]["norm"]["scale"]
    with pytest.raises(UserError) as error:
        fill(params, parts, KEPT, "some.pth")
    for part in (
        "some.pth",
        "trunk/blocks/fc1/kernel is [3, 2, 8, 32], the file has [2, 8, 12]",
        "nothing in it fills last/block/extra/scale",
        "nothing in it fills adapter/kernel",
        "the model has no place for last/norm/scale",
    ):
        assert part in str(error.value)


def test_a_table_names_single_arrays_too_and_fills_what_might_be_kept():
    params = {"a": {"b": np.zeros((2, 3), np.float32), "c": np.zeros(3, np.float32)}}
    params["d"] = np.zeros(2, np.float32)
    filled, report = fill(params, {"a/b": np.arange(3.0), "a": {"c": np.ones(3)}}, ("a/c", "d"))
    assert filled["a"]["b"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert filled["a"]["b"].dtype == np.float32
    assert filled["a"]["c"].tolist() == [1, 1, 1]
    assert (report.loaded, report.kept) == (("a/b", "a/c"), ("d",))
    assert not params["a"]["b"].any()


@pytest.mark.parametrize("value", [np.ones((1, 2, 3)), np.ones(2), np.ones((2, 1)), np.ones(())])
def test_only_missing_leading_axes_are_filled_in(value):
    params = {"a": np.zeros((2, 3), np.float32)}
    if value.ndim == 0:
        assert fill(params, {"a": value})[0]["a"].all()
        return
    with pytest.raises(UserError, match=r"a is \[2, 3\], the file has"):
        fill(params, {"a": value})


def test_an_entry_for_a_part_that_the_model_lacks_is_left_out():
    params = {"a": np.zeros(3, np.float32)}
    filled, report = fill(params, {"a": np.ones(3), "b": {"c": np.full(3, np.nan)}})
    assert (list(filled), report.loaded) == (["a"], ("a",))


def test_arrays_that_can_be_no_weights_are_named_before_training_finds_out():
    params = {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"some\.pth.*a has type int64; b holds NaN"):
        fill(params, {"a": np.arange(3), "b": np.array([0, np.nan, 1])}, source="some.pth")


def test_positions_of_no_square_are_an_error_unless_the_count_fits():
    vit = vit_files.canonical_vit(positions=10)
    fill(facenet_tree(tokens=10), table((5, 2), vit)[0], KEPT)
    with pytest.raises(UserError, match="10 positions"):
        table((4, 2), vit)


def model(name, depth=3, width=8, patch=4, shared=False):
    """A model for images of 12 x 12 pixels."""
    sizes = {"model__width": width, "model__depth": depth, "model__patch": patch}
    c = tiny.config(name, model__shared_trunk=shared, **sizes)
    # The MLP of the files is 12 wide; a model's is four times its tokens.
    return tiny.build(c, dataclasses.replace(tiny.SPEC, image_size=(12, 12)))


@pytest.mark.parametrize("name", ["three_stream", "facenet"])
@pytest.mark.parametrize(
    ("family", "depth", "shared"),
    [("timm 2020", 3, False), ("timm 2020", 1, True), ("HF 5 classifier", 3, True)],
)
def test_a_file_becomes_variables(tmp_path, name, family, depth, shared):
    vit = vit_files.canonical_vit(depth=depth, hidden=32)
    flat = vit_files.families(vit, heads=2)[family]
    path = torch_files.save(tmp_path / "vit.pth", torch_files.zip_bytes({"model": flat}))
    built = model(name, depth, shared=shared)
    before = jax.tree.map(np.asarray, tiny.variables(built))
    after, report = built.load(before, str(path))
    params = after["params"]
    for position in [params["trunk"]["position"]] if shared else params["trunk"]["position"]:
        np.testing.assert_array_equal(position, vit["position"])
    for head in ["last"] if name == "three_stream" else ["last", "flare_head"]:
        for kernel in params[head]["block"]["fc1"]["kernel"]:
            np.testing.assert_array_equal(kernel, vit[f"blocks/{depth - 1}/fc1/kernel"])
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], before["batch_stats"])
    np.testing.assert_array_equal(params["neck"]["scale"], before["params"]["neck"]["scale"])
    assert len(report.loaded) + len(report.kept) == len(flatten(params))
    assert len(report.ignored) == len(flat) - len(report_names(flat))
    assert str(path) in str(report)


def report_names(flat):
    return [name for name, array in flat.items() if array.shape != (2, 2)]


@pytest.mark.parametrize("to", [(2, 7), (9, 1), (1, 1), (4, 5), (5, 5)])
def test_resize_is_linear_between_the_centres_of_patches(to):
    """Against a loop in float64: half-pixel centres, borders clamped, no antialiasing."""
    rng = np.random.default_rng(0)
    position = rng.normal(size=(1 + 4 * 6, 6)).astype(np.float32)
    resized = resize_position(position, (4, 6), to)
    source = position[1:].reshape(4, 6, 6).astype(np.float64)
    expected = np.empty((*to, 6))
    for row, column in np.ndindex(*to):
        y = np.clip((row + 0.5) * 4 / to[0] - 0.5, 0, 3)
        x = np.clip((column + 0.5) * 6 / to[1] - 0.5, 0, 5)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, 3), min(left + 1, 5)
        upper = source[top, left] * (1 - x + left) + source[top, right] * (x - left)
        lower = source[bottom, left] * (1 - x + left) + source[bottom, right] * (x - left)
        expected[row, column] = upper * (1 - y + top) + lower * (y - top)
    np.testing.assert_array_equal(resized[0], position[0])
    np.testing.assert_allclose(resized[1:], expected.reshape(-1, 6), rtol=0, atol=2e-6)


def test_an_equal_grid_is_untouched_an_equal_count_is_not_and_a_wrong_grid_is_refused():
    position = np.arange(17 * 2, dtype=np.float32).reshape(17, 2)
    assert resize_position(position, (4, 4), (4, 4)) is position
    assert np.any(resize_position(position, (4, 4), (8, 2)) != position)
    assert "resized from 4 x 4 to 8 x 2" in fit_position(position, (8, 2), "a.pth")[1]
    with pytest.raises(ValueError, match="16 positions"):
        resize_position(position, (4, 5), (8, 3))


def close(actual, expected):
    worst = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert worst <= 1e-5, worst


@pytest.fixture(scope="module")
def tiny_vit(shared):
    path = shared / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.pth"
    canonical, ignored = to_canonical(read_checkpoint(path), str(path))
    assert sorted(ignored) == ["head.bias", "head.weight"]
    golden = np.load(shared / "weights" / "golden_vit_tiny_timm1.0.31.npz")
    return canonical, golden


def tokens_of(canonical, image, depth, heads=3):
    """Tokens after `depth` blocks of our trunk."""
    trunk = Trunk(
        width=canonical["class_token"].shape[-1],
        depth=depth,
        heads=heads,
        patch=16,
        stride=16,
        drop_rates=(0.0,) * depth,
        dtype=jnp.float32,
        attention="xla",
        remat="none",
        unroll=1,
    )
    pixels = (image[None].astype(np.float32) / 255 - 0.5) / 0.5
    params = trunk_parameters(canonical, depth)
    with jax.default_matmul_precision("highest"):
        return trunk.apply({"params": params}, jnp.asarray(pixels), train=False)


@pytest.mark.slow
def test_timms_activations_of_the_real_vit(tiny_vit):
    canonical, golden = tiny_vit
    image = golden["input_uint8_224_hwc"]
    tokens = tokens_of(canonical, image, 0)[0]
    close(tokens, golden["after_pos_embed"])
    close(tokens_of(canonical, image, 1)[0], golden["block0_out"])
    close(tokens_of(canonical, image, 6)[0], golden["block5_out"])
    norm = {"scale": canonical["norm/scale"], "bias": canonical["norm/bias"]}
    final = LayerNorm().apply({"params": norm}, tokens_of(canonical, image, 12))[0]
    close(final, golden["final_norm_tokens"])


@pytest.mark.parametrize("grid", [(8, 16), (16, 8)])
def test_positions_of_the_real_vit(tiny_vit, grid):
    canonical, golden = tiny_vit
    resized = resize_position(canonical["position"], (14, 14), grid)
    close(resized, golden[f"pos_embed_{grid[0]}x{grid[1]}_bilinear"][0])


@pytest.mark.parametrize("family", ["timm", "Google fine-tuned", "HF classifier"])
def test_the_real_vit_in_any_names_gives_timms_tokens_of_a_rectangle(tiny_vit, family):
    canonical, golden = tiny_vit
    if family != "timm":
        canonical, _ = to_canonical(vit_files.families(canonical, heads=3)[family])
    position = resize_position(canonical["position"], (14, 14), (8, 16))
    tokens = tokens_of(canonical | {"position": position}, golden["input_uint8_128x256_hwc"], 12)
    norm = {"scale": canonical["norm/scale"], "bias": canonical["norm/bias"]}
    close(LayerNorm().apply({"params": norm}, tokens)[0], golden["tokens_128x256_final_norm"])
