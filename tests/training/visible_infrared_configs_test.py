"""AGW, FFDML and MUN in the trainer: recipes, resume and export, devices, the demo set."""

import functools
import json

import jax
import numpy as np
import pytest

from configs.agw import regdb as agw_regdb
from configs.agw import sysu_mm01 as agw_sysu
from configs.ffdml import regdb as ffdml_regdb
from configs.ffdml import sysu_mm01 as ffdml_sysu
from configs.mun import regdb as mun_regdb
from configs.mun import sysu_mm01 as mun_sysu
from facenet_jax import config as configs
from facenet_jax import embed, models, optim
from facenet_jax.inputs import dataset as data
from facenet_jax.types import DataSpec
from tests.support import tiny_pairs as pairs
from tests.support import tiny_run as tiny

RECIPES = {
    "two_stem": (agw_sysu, agw_regdb),
    "ffdml": (ffdml_sysu, ffdml_regdb),
    "mun": (mun_sysu, mun_regdb),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_values_of_the_papers(name):
    c, other = (module.get_config() for module in RECIPES[name])
    for one, start in ((c, "sysu_mm01/all_single"), (other, "regdb/visible_to_thermal_1")):
        configs.check(one)
        assert one.data.name == start
    assert tuple(c.data.image_size) == (288, 144)
    assert (c.sampler.name, c.augment.per_modality) == ("cross_modal", True)
    assert (c.train.identities_per_batch, c.train.samples_per_identity) == (8, 4)
    assert (c.augment.flip, c.augment.pad) == (0.5, 10)
    if name == "mun":
        assert (c.optim.name, c.optim.learning_rate, c.optim.weight_decay) == ("adamw", 2e-3, 0.01)
        assert (c.train.epochs, c.optim.warmup, c.augment.channels) == (90, 15, "adapt_grey")
        weights = {label: c.losses[label].weight for label in c.losses}
        assert weights == {"id": 1, "triplet": 1, "idc": 0.25, "ia": 0.5, "ma": 0.008}
        assert (c.losses.triplet.margin, c.losses.ia.margin, c.losses.ia.hinge) == (0.3, 0.55, True)
    else:
        assert (c.optim.name, c.optim.learning_rate, c.optim.weight_decay) == ("sgd", 0.1, 5e-4)
        assert (c.train.epochs, c.optim.nesterov, c.model.pretrained_lr_factor) == (80, True, 0.1)
    erasing = {"two_stem": 0.0, "ffdml": 0.5, "mun": 0.5}
    assert c.augment.erase == erasing[name]


def test_the_rates_of_mun_rise_by_step():
    """From 1e-8 over 15 epochs to 2e-3, a tenth from the 31st epoch on, and from the 61st."""
    c = mun_sysu.get_config()
    epoch = np.repeat(np.arange(1, 91), 4)
    rates = optim.rate_table(c.optim, epoch, 90, {})[:, 0]
    np.testing.assert_allclose(rates[[0, 60, 119]], [1e-8, 2e-3, 2e-3], rtol=1e-5)
    np.testing.assert_allclose(np.diff(rates[:61]), 2e-3 / 60, rtol=1e-3)
    np.testing.assert_allclose(rates[[120, 239, 240]], [2e-4, 2e-4, 2e-5], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "width"),
    [
        # ResNet-50 less its classifier, a second stem, neck and classifier, non-local blocks.
        ("two_stem", 23_508_032 + 9_536 + 2048 + 395 * 2048 + 28_687, 2048),
        ("ffdml", None, 2048 + 768),
        ("mun", None, 2048),
    ],
)
def test_full_size_models_by_their_shapes(name, parameters, width):
    spec = DataSpec(pairs.MODALITIES, (288, 144), 395)
    c = RECIPES[name][0].get_config()
    model = models.build(c.model, spec)
    batch = jax.eval_shape(lambda: models.init_batch(spec))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert parameters is None or found == parameters
    out, _ = jax.eval_shape(functools.partial(model.apply, train=False), shapes, batch)
    assert out.embedding.shape == (1, width)
    assert {x.shape for x in out.logits.values()} == {(1, 395)}


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory):
    """The rendered visible-infrared set of a tiny tree, and the config section that names it."""
    root = tmp_path_factory.mktemp("pairs")
    tiny.tree(root / "tree")
    c = pairs.config("two_stem")
    c.data.root, c.data.prepared = str(root / "tree"), str(root / "prepared")
    return c.data, data.load(c.data)


def test_near_infrared_queries_find_visible_images_of_other_instants(demo_set):
    _, found = demo_set
    assert found.modalities == ("visible", "near_infrared")
    protocol = found.protocol
    query, gallery = (embed.side(found, side) for side in (protocol.query, protocol.gallery))
    assert (query.modalities, gallery.modalities) == (("near_infrared",), ("visible",))
    assert protocol.junk == "scene"
    assert len(query) == 4
    assert set(query.labels["camera"]) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_stem", "ffdml", "mun"])
def test_a_run_is_resumed_and_exports(name, demo_set, tmp_path):
    """A run that was stopped after a chunk goes on to the very state of one that was not."""
    section, _ = demo_set
    c = pairs.config(name, train__steps=6, evaluate__sanity_baselines=name == "two_stem")
    c.data.update(section)
    with jax.numpy_dtype_promotion("standard"):  # which optax.scale_by_adam needs
        whole = tiny.train(c, tmp_path / "whole")
        assert tiny.train(c, tmp_path / "cut", stop_at=1) is None
        cut = tiny.train(c, tmp_path / "cut")
    assert whole["last"]["mAP"] == cut["last"]["mAP"]
    arrays = [np.load(tmp_path / run / "embeddings" / "query.npz") for run in ("whole", "cut")]
    np.testing.assert_array_equal(*(each["embedding"] for each in arrays))
    assert np.isfinite(arrays[0]["embedding"]).all()
    if name == "two_stem":
        assert set(whole) >= {"untrained", "raw_pixels", "colour_histogram"}
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["last"] == whole["last"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_devices_give_the_losses_of_one(name):
    found = {}
    with jax.numpy_dtype_promotion("standard"):
        for devices in (1, 2):
            trainer = tiny.Trainer(pairs.config(name), devices, steps=4, data=pairs.dataset())
            _, logs = trainer.run(4)
            found[devices] = logs
    for label, values in found[1].items():
        np.testing.assert_allclose(found[2][label], values, rtol=2e-4, atol=1e-5, err_msg=label)
    assert np.isfinite(found[1]["loss"]).all()


@pytest.mark.slow
def test_every_parameter_of_each_learns():
    with jax.numpy_dtype_promotion("standard"):
        for name in RECIPES:
            trainer = tiny.Trainer(pairs.config(name), steps=6, data=pairs.dataset())
            state, _ = trainer.run(3)
            before = tiny.variables(trainer.model)["params"]
            pairs_of = zip(
                jax.tree_util.tree_leaves_with_path(before),
                jax.tree.leaves(state.params),
                strict=True,
            )
            still = [jax.tree_util.keystr(p) for (p, a), b in pairs_of if np.array_equal(a, b)]
            assert still == [], name
