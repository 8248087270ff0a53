"""Files of DINOv2, DINOv3 and CLIP: whose they are, what is made of them, what is refused."""

import json
import pathlib

import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.parity.backbones import Twin, buffers, written
from facenet_jax.parity.rows import Golden
from facenet_jax.weights import published
from facenet_jax.weights.names.vit import recognised, to_canonical
from facenet_jax.weights.positions import cubic_weights, publishers_rule, resize_position
from tests.support import torch_files, vit_files

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "backbones"
SETS = {
    "dinov2_tiny": "dinov2",
    "dinov2_reg4_tiny": "dinov2",
    "dinov3_tiny": "dinov3",
    "clip_tiny": "clip",
}


@pytest.fixture(scope="module")
def files():
    """{set: {format: flat file}} of the weights of the golden sets, "own" being the publisher's."""
    found = {}
    for name in SETS:
        twin = Twin(Golden(GOLDEN / name))
        own = {twin.names[key]: array for key, array in twin.state.items()}
        own |= buffers(twin.meta) if SETS[name] == "dinov3" else {}
        tables = json.loads((GOLDEN / name / "names.json").read_text())
        found[name] = {"own": own} | {
            kind: {theirs: written(twin, *entry) for theirs, entry in table.items()}
            for kind, table in tables.items()
        }
    return found


@pytest.mark.parametrize("name", SETS)
def test_every_publishers_names_give_the_same_arrays(name, files):
    expected = recognised(files[name]["own"], "own", SETS[name]).canonical
    for kind, flat in files[name].items():
        found = recognised(flat, kind, SETS[name])
        assert set(found.canonical) == set(expected)
        for path, array in expected.items():
            ours = found.canonical[path]
            if kind == "timm" and path in ("class_token", "position") and "reg4" in name:
                continue  # the position of the class token is in the class token there
            if kind == "timm" and name == "dinov3_tiny" and path.endswith("qkv/bias"):
                assert not ours.any()
                assert "no bias" in found.note
                continue
            np.testing.assert_array_equal(ours, array, err_msg=f"{kind} {path}")


def test_the_position_of_the_class_token_is_kept_in_it_by_timm(files):
    own, timm = (
        recognised(files["dinov2_reg4_tiny"][kind], kind, "dinov2").canonical
        for kind in ("own", "timm")
    )
    assert not timm["position"][0].any()
    np.testing.assert_array_equal(timm["position"][1:], own["position"][1:])
    np.testing.assert_allclose(timm["class_token"], own["class_token"] + own["position"][:1])


def test_keys_have_no_bias_in_dinov3(files):
    found = recognised(files["dinov3_tiny"]["own"], "own", "dinov3").canonical
    query, key, value = np.split(found["blocks/1/qkv/bias"], 3)
    assert query.any()
    assert value.any()
    assert not key.any()


def test_publishers_resize_by_their_own_rules(files):
    rules = {
        (name, kind): publishers_rule(recognised(flat, kind, "dinov2"))
        for name in ("dinov2_tiny", "dinov2_reg4_tiny")
        for kind, flat in files[name].items()
    }
    with_registers = {rule for (name, _), rule in rules.items() if "reg4" in name}
    assert with_registers == {"size_antialias"}
    ours = [rules["dinov2_tiny", kind] for kind in ("own", "timm", "hugging_face")]
    assert ours == ["meta", "size_antialias", "size"]


def test_cubic_weights_sum_to_one_and_keep_the_same_grid():
    np.testing.assert_array_equal(cubic_weights(5, 5, 0.0), np.eye(5))
    np.testing.assert_allclose(cubic_weights(37, 18, 0.1).sum(axis=1), 1, atol=1e-12)
    position = np.random.default_rng(0).normal(size=(26, 3)).astype(np.float32)
    assert resize_position(position, (5, 5), (5, 5), "meta") is position


@pytest.mark.parametrize(
    ("name", "family", "words"),
    [
        ("dinov3_tiny", "dinov2", ["DINOv3 in Meta names", "backbone=dinov3"]),
        ("dinov2_tiny", "clip", ["DINOv2 in Meta names", "backbone=dinov2"]),
        ("clip_tiny", "vit", ["CLIP in OpenAI names", "backbone=clip"]),
        ("dinov2_tiny", "vit", ["LayerScale", "dinov2"]),
    ],
)
def test_another_family_is_refused_with_its_backbone(name, family, words, files):
    with pytest.raises(UserError) as error:
        recognised(files[name]["own"], "a.pth", family)
    assert all(word in str(error.value) for word in ["a.pth", *words])


def test_no_family_at_all_is_said():
    with pytest.raises(UserError, match="holds no CLIP in Hugging Face, OpenAI or timm names"):
        recognised({"conv1.weight": np.ones(3)}, "a.pth", "clip")
    plain = vit_files.families(vit_files.canonical_vit(), heads=2)["timm 2020"]
    with pytest.raises(UserError, match=r"a ViT in timm names.*backbone=vit"):
        recognised(plain, "a.pth", "dinov3")


@pytest.mark.parametrize("name", SETS)
def test_unknown_and_missing_names_are_refused_together(name, files):
    flat = dict(files[name]["own"])
    lost = next(key for key in flat if key.endswith((".mlp.fc1.weight", ".mlp.c_fc.weight")))
    flat["surprise"] = flat.pop(lost)
    with pytest.raises(UserError) as error:
        recognised(flat, "a.pth", SETS[name])
    assert "surprise" in str(error.value)
    assert "lacks blocks/0/fc1/kernel" in str(error.value)


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_mask_of_another_bias_is_refused(value, files):
    flat = dict(files["dinov3_tiny"]["own"])
    name = "blocks.1.attn.qkv.bias_mask"
    flat[name] = np.full_like(flat[name], value)
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv\.bias_mask is not 1, 0 and 1"):
        recognised(flat, "a.pth", "dinov3")


def test_other_rotary_periods_are_refused(files):
    flat = files["dinov3_tiny"]["own"] | {"rope_embed.periods": np.float32([1, 2, 3, 4])}
    with pytest.raises(UserError, match="not those of base 100"):
        recognised(flat, "a.pth", "dinov3")


def test_a_training_checkpoint_has_one_prefix(files):
    flat = {f"teacher.backbone.{key}": x for key, x in files["dinov2_tiny"]["own"].items()}
    assert recognised(flat, "a.pth", "dinov2").publisher == "Meta"


def test_half_precision_of_clip_becomes_float32(files):
    flat = {key: x.astype(np.float16) for key, x in files["clip_tiny"]["own"].items()}
    text = {"positional_embedding": np.ones((77, 4)), "logit_scale": np.ones(()), "vocab_size": 3}
    found = recognised(flat | text, "a.pt", "clip")
    assert {x.dtype for x in found.canonical.values()} == {np.dtype(np.float32)}
    assert set(found.ignored) == set(text)


def test_a_classifier_of_timm_is_no_projection(files):
    flat = files["clip_tiny"]["timm"] | {"head.bias": np.ones(32, np.float32)}
    found = recognised(flat, "a.pth", "clip")
    assert "projection/kernel" not in found.canonical
    assert "classifier" in found.note


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 2, 2, 2)], ids=str)
def test_any_wrong_shape_is_a_sentence(name, shape, files):
    kinds = files[name]
    for kind, flat in kinds.items():
        ignored = recognised(flat, kind, SETS[name]).ignored
        for key in [key for key in flat if key not in ignored and key != "head.bias"][:24]:
            with pytest.raises(UserError):
                recognised(flat | {key: np.zeros(shape, np.float32)}, kind, SETS[name])


def test_sums_of_published_files(tmp_path):
    other = torch_files.save(tmp_path / "other.pth", b"abc")
    assert published.checked(other).startswith("SHA-256 ba7816bf8f01cfea414140de5dae2223")
    assert "WARNING" not in published.checked(other)
    taken = torch_files.save(tmp_path / "ViT-B-16.pt", b"abc")
    assert "WARNING: the published file of that name has 5806e77c" in published.checked(taken)


def test_plain_vits_are_still_found():
    plain = vit_files.families(vit_files.canonical_vit(), heads=2)
    assert all(len(to_canonical(flat)[0]) == 42 for flat in plain.values())
