import ml_dtypes
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.weights.names.vit import to_canonical
from tests.support import vit_files

VIT = vit_files.canonical_vit()
FAMILIES = vit_files.families(VIT, heads=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_arrays(family):
    flat = FAMILIES[family]
    canonical, ignored = to_canonical(flat)
    assert set(canonical) == set(VIT)
    for name, array in VIT.items():
        np.testing.assert_array_equal(canonical[name], array, strict=True)
    per_block = 12 if family.startswith(("timm", "DINO")) else 16
    assert len(flat) - len(ignored) == 6 + 3 * per_block
    assert all(flat[name].shape == (2, 2) for name in ignored)


def test_half_precision_becomes_float32():
    flat = {k: v.astype(ml_dtypes.bfloat16) for k, v in FAMILIES["HF encoder"].items()}
    canonical, _ = to_canonical(flat)
    assert {array.dtype for array in canonical.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_mismatches_are_named_together(family):
    flat = dict(FAMILIES[family])
    lost = next(
        name
        for name in flat
        if "1" in name and ("fc1" in name or "Dense_0" in name or "intermediate" in name)
    )
    norm = next(name for name, array in flat.items() if array.shape == (8,))
    flat["surprise"] = flat.pop(lost)
    flat[norm] = np.zeros(9, np.float32)
    with pytest.raises(UserError) as error:
        to_canonical(flat, "some/file.pth")
    for part in ("some/file.pth", "surprise", "blocks/", "fc1", "[9]", "[8]"):
        assert part in str(error.value)


@pytest.mark.parametrize("part", ["query", "value"])
@pytest.mark.parametrize("family", ["HF encoder", "HF 5 encoder", "Google 21k"])
def test_a_lone_query_or_value_is_a_mismatch(family, part):
    marks = {"query": ("query", "q_proj"), "value": ("value", "v_proj")}[part]
    flat = dict(FAMILIES[family])
    del flat[next(name for name in flat if any(mark in name for mark in marks))]
    with pytest.raises(UserError, match="qkv"):
        to_canonical(flat)


@pytest.mark.parametrize("name", list(FAMILIES["timm 2020"])[:24])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 2, 2, 2)], ids=str)
def test_any_wrong_shape_is_a_sentence(name, shape):
    flat = FAMILIES["timm 2020"] | {name: np.zeros(shape, np.float32)}
    with pytest.raises(UserError):
        to_canonical(flat)


@pytest.mark.parametrize(
    ("names", "reasons"),
    [
        (["blocks.0.ls1.gamma"], ["DINOv2", "LayerScale"]),
        (["blocks.0.ls1.gamma", "register_tokens"], ["LayerScale", "register tokens"]),
        (["encoder.layer.0.layer_scale1.lambda1"], ["DINOv2", "LayerScale"]),
        (["storage_tokens", "rope_embed.periods", "blocks.0.ls1.gamma"], ["DINOv3", "rotary"]),
        (["blocks.0.ls2.gamma", "reg_token"], ["register tokens (reg_token)"]),
    ],
)
def test_newer_dinos_are_refused_with_the_reason(names, reasons):
    flat = FAMILIES["DINO backbone"] | {name: np.ones(8, np.float32) for name in names}
    with pytest.raises(UserError) as error:
        to_canonical(flat)
    assert all(reason in str(error.value) for reason in reasons)


def test_foreign_and_release_files_are_told_apart():
    with pytest.raises(UserError, match=r"conv1\.weight"):
        to_canonical({"conv1.weight": np.ones(3), "layer1.0.conv1.weight": np.ones(3)})
    with pytest.raises(UserError, match=r"facenet convert"):
        to_canonical({"base.cls_token": np.ones(3), "b1.1.weight": np.ones(3)})
    with pytest.raises(UserError, match="no ViT"):
        to_canonical({})


def test_arrays_that_can_be_no_weights_are_named_as_in_the_file():
    flat = dict(FAMILIES["timm 2020"])
    flat["blocks.1.norm1.bias"] = np.full(8, np.nan, np.float32)
    flat["blocks.0.attn.qkv.weight"] = flat["blocks.0.attn.qkv.weight"].astype(np.complex64)
    flat["head.weight"] = np.full((2, 2), np.nan)  # not needed, so not looked at
    with pytest.raises(UserError) as error:
        to_canonical(flat, "a.pth")
    for part in ("a.pth", "blocks.1.norm1.bias holds NaN", "attn.qkv.weight has type complex64"):
        assert part in str(error.value)
    assert "head" not in str(error.value)


def test_names_of_a_file_cannot_make_a_message_long_or_coloured():
    flat = dict(FAMILIES["timm 2020"]) | {"\x1b" + "x" * 10**6: np.ones(1, np.float32)}
    flat |= {f"more.{i}": np.ones(1, np.float32) for i in range(1000)}
    flat["blocks.999.norm1.weight"] = flat["norm.weight"]
    with pytest.raises(UserError, match=r"and \d+ more") as error:
        to_canonical(flat)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 10_000
