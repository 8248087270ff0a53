import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.models.layers import LayerNorm
from facenet_jax.models.vit import Trunk
from facenet_jax.weights import merge as pretrained
from facenet_jax.weights.merge import load_pretrained, merge_vit, resize_position, to_canonical
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


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("baseline", [False, True])
def test_one_vit_fills_every_branch(shared, baseline):
    params = facenet_tree(shared=shared, baseline=baseline)
    merged, report = merge_vit(params, VIT, (3, 3), ["head.weight"], "a.pth")
    before, after = pretrained.flatten(params), pretrained.flatten(merged)
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
    _, report = merge_vit(facenet_tree(tokens=8), VIT, (4, 2), ["head.weight", "head.bias"], "a")
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
        ({"hidden": 32}, ["fc1/kernel", "[8, 12]", "32"]),
    ],
)
def test_other_sizes_are_errors_that_name_both(sizes, words):
    with pytest.raises(UserError) as error:
        merge_vit(facenet_tree(**sizes), VIT, (3, 3), source="some.pth")
    assert all(word in str(error.value) for word in ["some.pth", *words])


def test_a_parameter_that_nothing_fills_is_an_error():
    params = facenet_tree()
    params["last"]["block"]["extra"] = {"scale": np.ones((3, 8), np.float32)}
    params["adapter"] = {"kernel": np.ones((3, 8), np.float32)}
    with pytest.raises(UserError, match=r"last/block/extra/scale.*adapter/kernel"):
        merge_vit(params, VIT, (3, 3))


def test_positions_of_no_square_are_an_error_unless_the_count_fits():
    vit = vit_files.canonical_vit(positions=10)
    merge_vit(facenet_tree(tokens=10), vit, (5, 2))
    with pytest.raises(UserError, match="10 positions"):
        merge_vit(facenet_tree(tokens=8), vit, (4, 2))


@pytest.mark.parametrize("family", ["timm 2020", "HF 5 classifier"])
def test_a_file_becomes_parameters(tmp_path, family):
    flat = vit_files.families(VIT, heads=2)[family]
    path = torch_files.save(tmp_path / "vit.pth", torch_files.zip_bytes({"model": flat}))
    merged, report = load_pretrained(path, facenet_tree(), (3, 3))
    np.testing.assert_array_equal(merged["trunk"]["position"][1], VIT["position"])
    assert len(report.ignored) == len(flat) - len(report_names(flat))
    assert str(path) in str(report)


def report_names(flat):
    return [name for name, array in flat.items() if array.shape != (2, 2)]


@pytest.mark.parametrize("to", [(2, 7), (9, 1), (1, 1), (4, 5), (5, 5)])
def test_resize_agrees_with_jax_without_antialiasing(to):
    rng = np.random.default_rng(0)
    position = rng.normal(size=(1 + 16, 6)).astype(np.float32)
    resized = resize_position(position, (4, 4), to)
    grid = jnp.asarray(position[1:].reshape(4, 4, 6))
    expected = jax.image.resize(grid, (*to, 6), "bilinear", antialias=False)
    np.testing.assert_array_equal(resized[0], position[0])
    np.testing.assert_allclose(resized[1:], expected.reshape(-1, 6), rtol=0, atol=2e-6)


def test_an_equal_count_is_untouched_and_a_wrong_grid_is_refused():
    position = np.arange(17 * 2, dtype=np.float32).reshape(17, 2)
    assert resize_position(position, (4, 4), (8, 2)) is position
    with pytest.raises(ValueError, match="16 positions"):
        resize_position(position, (4, 5), (8, 3))


def close(actual, expected):
    worst = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert worst <= 1e-5, worst


@pytest.fixture(scope="module")
def tiny_vit():
    from conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("no folder ../shared with the reference data beside this checkout")
    path = SHARED / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.pth"
    canonical, ignored = to_canonical(pretrained.read_checkpoint(path), str(path))
    assert sorted(ignored) == ["head.bias", "head.weight"]
    golden = np.load(SHARED / "weights" / "golden_vit_tiny_timm1.0.31.npz")
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
    params = pretrained.trunk_parameters(canonical, depth)
    with jax.default_matmul_precision("highest"):
        return trunk.apply({"params": params}, jnp.asarray(pixels), train=False)


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
