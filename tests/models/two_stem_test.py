"""The two-stem network: pooling and non-local blocks by formula, stems, one space, its weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models
from facenet_jax.models import non_local, two_stem
from facenet_jax.weights.torch_writer import write_state_dict
from tests.models.ccnet_test import sines
from tests.models.resnet_test import torch_file
from tests.support import tiny_pairs as pairs
from tests.support import tiny_run as tiny

KEY = jax.random.key(0)


@functools.cache
def build(**changes):
    """(a model, its random variables, its jitted apply)."""
    model = models.build(pairs.config("two_stem", **changes).model, pairs.SPEC)
    return model, tiny.variables(model), pairs.jitted(model)


def test_generalised_mean_of_known_numbers():
    """Of |G| over its 8 columns: one channel, 8 places."""
    maps = jnp.asarray(np.abs(sines(4, 8, 0)), jnp.float32)[:, None, :, None]
    expected = [0.7278360354, 0.7690054768, 0.7662500336, 0.7330709605]
    for power in (3.0, jnp.float32(3.0)):
        np.testing.assert_allclose(two_stem.gem(maps, power)[:, 0], expected, rtol=2e-6)


def test_generalised_mean_takes_no_power_of_negative_numbers():
    maps = -jnp.ones((1, 2, 2, 1))
    value, slope = jax.value_and_grad(lambda x: two_stem.gem(x, 3.0).sum())(maps)
    assert value == pytest.approx(1e-4, rel=1e-5)
    np.testing.assert_array_equal(slope, 0.0)


def test_a_non_local_block_weighs_all_places():
    """Against the table of all pairs of places that the block does without."""
    x = tiny.noise(2, 3, 4, 6)
    block = non_local.NonLocal(5, jnp.dtype("float32"))
    variables = tiny.draw(jax.eval_shape(lambda: block.init(KEY, x, False)))
    p = jax.tree.map(np.asarray, variables["params"])
    rows = np.asarray(x).reshape(2, 12, 6)
    theta, phi, g = (rows @ p[n]["kernel"] + p[n]["bias"] for n in ("theta", "phi", "g"))
    y = (theta @ phi.transpose(0, 2, 1) / 12) @ g @ p["out"]["kernel"] + p["out"]["bias"]
    stats = jax.tree.map(np.asarray, variables["batch_stats"]["norm"])
    y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    expected = np.asarray(x) + y.reshape(x.shape)
    np.testing.assert_allclose(block.apply(variables, x, False), expected, rtol=2e-4, atol=1e-5)
    untrained = block.init(KEY, x, False)
    np.testing.assert_array_equal(block.apply(untrained, x, False), x)


def test_stems_are_of_one_modality_and_all_are_matched_in_one_space():
    _, variables, apply = build(model__non_local=(0, 1, 0, 0))
    assert "non_local_layer2_0" in variables["params"]["shared"]
    batch = pairs.batch(4)
    both, changed = apply(variables, batch, train=False)
    assert changed == {}
    alone = []
    for i, modality in enumerate(pairs.MODALITIES):
        one = dataclasses.replace(batch, images=batch.images[i : i + 1])
        out, _ = apply(variables, one, train=False, modalities=(modality,))
        assert list(out.features) == [modality]
        np.testing.assert_allclose(
            out.features[modality], both.features[modality], rtol=1e-4, atol=1e-6
        )
        stats = jax.tree.map(np.asarray, variables["batch_stats"]["neck"])
        neck = (np.asarray(out.features[modality]) - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        neck = neck * np.asarray(variables["params"]["neck"]["scale"]) + stats["bias"]
        np.testing.assert_allclose(out.embedding, neck, rtol=1e-3, atol=1e-5)
        alone.append(np.asarray(out.embedding))
    np.testing.assert_allclose(both.embedding, np.mean(alone, axis=0), rtol=1e-4, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    swapped = dataclasses.replace(batch, images=batch.images[1:])
    other, _ = apply(variables, swapped, train=False, modalities=pairs.MODALITIES[:1])
    assert np.abs(np.asarray(other.embedding) - alone[1]).max() > 1e-3  # another stem


def test_a_missing_image_is_left_out_of_the_mean():
    _, variables, apply = build()
    batch = pairs.batch(3)
    there = jnp.array([[True, True, False], [True, False, True]])
    out, _ = apply(variables, dataclasses.replace(batch, present=there), train=False)
    alone = [
        apply(
            variables,
            dataclasses.replace(batch, images=batch.images[i : i + 1]),
            train=False,
            modalities=(modality,),
        )[0].embedding
        for i, modality in enumerate(pairs.MODALITIES)
    ]
    expected = [(alone[0][0] + alone[1][0]) / 2, alone[0][1], alone[1][2]]
    np.testing.assert_allclose(out.embedding, np.stack(expected), rtol=1e-4, atol=1e-5)
    assert out.present["infrared"].tolist() == [True, False, True]


@pytest.mark.parametrize(("split_after", "shared"), [("stem", 4), ("layer1", 3), ("layer2", 2)])
def test_the_split_says_what_is_shared(split_after, shared):
    c = pairs.config("two_stem", model__split_after=split_after, model__gem_learned=True)
    params = jax.eval_shape(models.build(c.model, pairs.SPEC).init, KEY)["params"]
    assert len([name for name in params["shared"] if name.startswith("layer")]) == shared
    assert params["pool"]["power"].shape == ()


def test_more_non_local_blocks_than_blocks_are_refused():
    with pytest.raises(UserError, match="non_local puts 2 non-local blocks into layer2, which has"):
        configs.check(pairs.config("two_stem", model__non_local=(0, 2, 0, 0)))


@pytest.mark.parametrize("name", ["two_stem", "ffdml", "mun"])
def test_a_file_fills_all_stems_and_the_shared_stages(name, tmp_path):
    write_state_dict(tmp_path / "resnet.pth", torch_file())
    changes = {"model__non_local": (0, 1, 0, 0)} if name == "two_stem" else {}
    model = models.build(pairs.config(name, **changes).model, pairs.SPEC)
    variables = tiny.variables(model)
    filled, report = model.load(jax.tree.map(np.asarray, variables), str(tmp_path / "resnet.pth"))
    models.contract.check_loaded(variables, filled)
    stems = [filled["params"][f"stem_{m}"]["conv1"]["kernel"] for m in pairs.MODALITIES]
    np.testing.assert_array_equal(*stems)
    kept = {path.removeprefix("batch_stats/").split("/")[0] for path in report.kept}
    own = {"two_stem": {"shared"}, "ffdml": {"fusion"}, "mun": {"generator"}}[name]
    assert own <= kept
    assert not {"stem_visible", "stem_infrared"} & kept
    assert all("non_local" in path for path in report.kept if "shared" in path)
