import importlib
import json

import jax
import pytest

from configs import common
from facenet_jax import config as configs
from facenet_jax import models, objective, optim
from facenet_jax.runtime import workdir
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny

RECIPES = sorted(
    path.stem for path in (tiny.ROOT / "configs").glob("*.py") if path.stem != "official"
)
IDENTITIES = 603


def config(name):
    return importlib.import_module(f"configs.{name}").get_config()


def parameters(name):
    c = config(name)
    model = models.build(c.model, DataSpec(tiny.MODALITIES, c.data.image_size, IDENTITIES))
    with jax.numpy_dtype_promotion("standard"):  # which jax.nn.dot_product_attention needs
        return jax.eval_shape(model.init, jax.random.key(0))["params"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_config_builds_and_fits_together(name):
    """No array is made: shapes alone."""
    c = config(name)
    assert parameters(name)["classifier"]["kernel"].shape[2] == IDENTITIES
    configs.check(c)
    assert objective.terms(c)
    optim.optimizer(c.optim)
    assert c.train.identities_per_batch * c.train.samples_per_identity % 8 == 0


@pytest.mark.parametrize("name", RECIPES)
def test_every_config_changes_options_of_common_alone(name):
    """No option of its own, and the same type for each."""
    ours, theirs = (
        workdir.flat(x.to_dict())
        for x in (config(name), common.get_config(config(name).model.name))
    )
    assert ours.keys() == theirs.keys()
    assert json.loads(json.dumps(ours)) == ours
    for option, value in ours.items():
        if not option.endswith(".weight"):  # numbers or tables
            assert type(value) is type(theirs[option]), option


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("demo")])
def test_recipes_ask_for_data_and_weights(name):
    c = config(name)
    assert (c.data.root, c.model.pretrained, c.model.variant) == ("", "", "B")


def test_the_parameters_of_vit_b_facenet():
    """Counted by hand: three branches, MFMP and flare heads in two directions (Fig. 3)."""
    d, n, p, depth = 768, 128, 16, 12
    norm = 2 * d
    block = 2 * norm + (d * 3 * d + 3 * d) + (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d)
    vit = (p * p * 3 * d + d) + d + (1 + n) * d + depth * block + norm
    branch = vit + d + d * IDENTITIES  # neck and classifier
    mfmp = norm + 3 * d * d + (d * d + d)
    flare_head = block + norm + d + 2 * d
    expected = 3 * branch + 2 * mfmp + 2 * flare_head
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters("wmveid863")))
    assert count == expected, f"{count} parameters, not {expected}"


def test_the_baseline_has_neither_mfmp_nor_flare_heads():
    for name in ("wmveid863_baseline", "demo_baseline"):
        assert sorted(parameters(name)) == ["classifier", "last", "neck", "trunk"]
        assert list(objective.terms(config(name))) == ["id", "triplet"]


@pytest.mark.parametrize(
    ("name", "size", "rate", "epochs", "warmup"),
    [
        ("wmveid863", (256, 128), 3e-3, 120, 5),
        ("rgbnt100", (128, 256), 1e-3, 120, 10),
        ("msvr310", (128, 256), 1e-3, 1000, 100),
    ],
)
def test_recipes_have_the_values_of_the_table(name, size, rate, epochs, warmup):
    """The hyperparameters of the paper and of the release; see docs/fidelity.md."""
    c = config(name)
    assert (c.data.name, tuple(c.data.image_size)) == (name, size)
    assert (c.optim.learning_rate, c.train.epochs, c.optim.warmup) == (rate, epochs, warmup)
    assert (c.optim.name, c.optim.momentum, c.optim.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (c.optim.bias_lr_factor, c.optim.schedule, c.optim.clip) == (2.0, "recipe", 0.0)
    assert (c.train.identities_per_batch, c.train.samples_per_identity) == (8, 4)
    assert (c.model.drop_path, c.augment.flip, c.augment.pad, c.augment.erase) == (0.1, 0.5, 10, 0)
