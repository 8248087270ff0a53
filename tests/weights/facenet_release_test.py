import pathlib

import ml_dtypes
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.weights import facenet_release
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.merge import flatten, nest, to_canonical
from facenet_jax.weights.torch_writer import write_state_dict

TINY = pathlib.Path(__file__).parents[1] / "golden" / "tiny" / "facenet_official_small.pth"


@pytest.fixture(scope="module")
def release():
    return read_checkpoint(TINY)


def test_sizes_come_from_the_shapes(release):
    _, sizes = facenet_release.import_release(release)
    assert sizes == facenet_release.Sizes(
        width=16,
        depth=2,
        patch=16,
        tokens=8,
        hidden=64,
        identities=6,
        mfmp_heads=2,
        mfmp_head_width=16,
        threshold=0.0,
    )


def test_import_then_export_is_bit_equal_on_every_used_tensor(release, tmp_path):
    variables, sizes = facenet_release.import_release(release)
    write_state_dict(
        tmp_path / "out.pth", facenet_release.export_release(variables, sizes.threshold)
    )
    written = read_checkpoint(tmp_path / "out.pth")
    used = {row[0] for row in facenet_release.used_rows(sizes.depth)} | {"threshold"}
    assert set(written) == set(release)
    for name, array in release.items():
        assert written[name].shape == array.shape
        assert written[name].dtype == array.dtype
        if name in used:
            assert written[name].tobytes() == array.tobytes(), name


def test_what_the_release_never_uses_is_filled_from_what_it_does(release):
    state = facenet_release.export_release(facenet_release.import_release(release)[0])
    for base, own in (("base", "b1"), ("base1", "b1N"), ("base2", "b1T")):
        for name in [name for name in release if name.startswith(f"{own}.0.")]:
            tail = name.removeprefix(f"{own}.0.")
            np.testing.assert_array_equal(state[f"{base}.blocks.1.{tail}"], release[name])
            np.testing.assert_array_equal(state[f"{own.replace('1', '2')}.0.{tail}"], release[name])
        np.testing.assert_array_equal(state[f"{base}.norm.bias"], release[f"{own}.1.bias"])
        assert not state[f"{base}.fc.weight"].any()
    assert not any(array.any() for name, array in state.items() if ".to_out.0." in name)
    assert state["bottleneck.num_batches_tracked"].dtype == np.int64


def test_layouts_by_hand(release):
    variables, _ = facenet_release.import_release(release)
    params, stats = variables["params"], variables["batch_stats"]
    kernel = release["base1.patch_embed.proj.weight"]
    assert params["trunk"]["patch"]["kernel"][1, (3 * 16 + 5) * 3 + 2, 7] == kernel[7, 2, 3, 5]
    qkv = release["base2.blocks.0.attn.qkv.weight"]
    assert params["trunk"]["blocks"]["qkv"]["kernel"][2, 0, 4, 33] == qkv[33, 4]
    last = release["b1N.0.mlp.fc1.weight"]
    assert params["last"]["block"]["fc1"]["kernel"][1, 3, 60] == last[60, 3]
    first_norm = release["cross_att.cross_att1.fn.norm.weight"]
    np.testing.assert_array_equal(params["mfmp"]["norm"]["scale"][1], first_norm)
    second_norm = release["cross_att.cross_att.fn.fn.norm.bias"]
    np.testing.assert_array_equal(params["mfmp"]["norm2"]["bias"][0], second_norm)
    np.testing.assert_array_equal(stats["neck"]["var"][2], release["bottleneckT.running_var"])
    np.testing.assert_array_equal(
        stats["flare_head"]["neck"]["mean"][1], release["bottleneck_N_label.running_mean"]
    )


def test_prefixes_half_precision_and_the_threshold(release):
    state = {f"module.{k}": v for k, v in release.items()}
    state["module.threshold"] = np.full(1, 0.25, np.float32)
    state["module.b1.1.bias"] = release["b1.1.bias"].astype(ml_dtypes.bfloat16)
    variables, sizes = facenet_release.import_release(state)
    assert sizes.threshold == 0.25
    assert variables["params"]["last"]["norm"]["bias"].dtype == np.float32
    assert facenet_release.export_release(variables, sizes.threshold)["threshold"] == [0.25]


def test_mismatches_are_named_from_both_sides(release):
    state = dict(release)
    state["sie_embed"] = np.ones(3, np.float32)
    del state["b2N.0.mlp.fc1.bias"]
    state["classifierN.weight"] = np.ones((7, 16), np.float32)
    with pytest.raises(UserError) as error:
        facenet_release.import_release(state, "some.pth")
    for part in ("some.pth", "sie_embed", "b2N.0.mlp.fc1.bias", "classifierN.weight is [7, 16]"):
        assert part in str(error.value)
    del state["b1T.1.bias"]
    with pytest.raises(UserError, match=r"lacks b1T\.1\.bias"):
        facenet_release.import_release(state)


def test_any_wrong_shape_is_a_sentence(release):
    _, sizes = facenet_release.import_release(release)
    for name in [row[0] for row in facenet_release.used_rows(sizes.depth)] + ["threshold"]:
        for shape in ((), (0,), (5,), (3, 2), (1, 1, 3), (2, 2, 2, 2)):
            with pytest.raises(UserError):
                facenet_release.import_release({**release, name: np.ones(shape, np.float32)})


@pytest.mark.parametrize("name", ["b1N.1.bias", "bottleneckT.running_var", "threshold"])
def test_values_that_are_not_finite_are_named(release, name):
    spoilt = {**release, name: np.full_like(release[name], np.nan)}
    with pytest.raises(UserError, match=rf"{name} holds NaN"):
        facenet_release.import_release(spoilt)


def test_another_kind_of_checkpoint_is_told_apart(release):
    assert facenet_release.is_release(release)
    assert not facenet_release.is_release({"cls_token": 0, "blocks.0.norm1.weight": 0})
    with pytest.raises(UserError, match="no FACENet"):
        facenet_release.import_release({"cls_token": np.ones((1, 1, 3))})


def test_other_trees_are_not_exported(release):
    variables, _ = facenet_release.import_release(release)
    paper = {**variables, "params": dict(variables["params"])}
    paper["params"]["mfmp"] = {k: v for k, v in paper["params"]["mfmp"].items() if k != "norm2"}
    with pytest.raises(UserError, match=r"official preset.*no params/mfmp/norm2/bias"):
        facenet_release.export_release(paper)
    extra = {**variables, "params": {**variables["params"], "adapter": np.ones(3)}}
    with pytest.raises(UserError, match=r"the release has no params/adapter"):
        facenet_release.export_release(extra)
    flat = flatten(variables)
    shared = {k: v[0] if k.startswith("params/trunk/") else v for k, v in flat.items()}
    with pytest.raises(UserError, match="share one trunk"):
        facenet_release.export_release(nest(shared))


def test_a_whole_facenet_is_no_pretrained_vit(release):
    with pytest.raises(UserError, match=r"facenet convert"):
        to_canonical(release)


def test_torch_loads_the_export_and_finds_every_tensor(release, tmp_path):
    torch = pytest.importorskip("torch")
    write_state_dict(
        tmp_path / "out.pth",
        facenet_release.export_release(facenet_release.import_release(release)[0]),
    )
    ours = torch.load(tmp_path / "out.pth", weights_only=True)
    theirs = torch.load(TINY, weights_only=True)
    assert set(ours) == set(theirs)
    assert all(ours[k].shape == theirs[k].shape for k in theirs)
    assert torch.equal(ours["b1.0.attn.qkv.weight"], theirs["b1.0.attn.qkv.weight"])
