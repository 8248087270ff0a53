"""CCNet's recipes and the rows of its tables: they build, and say what the papers say."""

import jax
import pytest

from configs.ccnet import ablations, demo, msvr310, rgbnt100, wmveid863
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models, objective, optim
from facenet_jax.models.resnet import IMAGENET_MEAN
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny

RECIPES = {"msvr310": msvr310, "rgbnt100": rgbnt100, "wmveid863": wmveid863}


@pytest.mark.parametrize(
    ("name", "size", "epochs", "milestones"),
    [
        ("msvr310", (128, 256), 1200, (300, 550)),
        ("rgbnt100", (128, 256), 120, (40, 70)),
        ("wmveid863", (256, 128), 120, (40, 70)),
    ],
)
def test_recipes_have_the_values_of_the_paper(name, size, epochs, milestones):
    c = RECIPES[name].get_config()
    configs.check(c)
    optim.optimizer(c.optim)
    assert (c.data.name, tuple(c.data.image_size)) == (name, size)
    assert (c.train.epochs, c.optim.milestones, c.optim.warmup) == (epochs, milestones, 10)
    assert (c.optim.name, c.optim.schedule, c.optim.learning_rate) == ("adam", "multistep", 3.5e-4)
    assert (c.optim.weight_decay, c.optim.bias_lr_factor) == (5e-4, 1.0)
    assert (c.train.identities_per_batch, c.train.samples_per_identity) == (8, 4)
    assert (c.augment.flip, c.augment.pad, c.augment.erase) == (0.5, 10, 0.4)
    assert (c.augment.erase_fill, c.augment.per_modality) == (IMAGENET_MEAN, True)
    assert (c.losses.cdc.weight, c.losses.cdc.alpha, c.losses.cdc.norm) == (0.3, 0.6, "code")
    assert (c.losses.id.label_smoothing, c.model.neck_feature) == (0.0, "after")
    assert list(objective.terms(c)) == ["id", "cdc"]
    with pytest.raises(UserError, match="resnet50"):
        models.check_start(c)


def test_the_parameters_of_ccnet():
    """75 251 142 of the release, less the three frozen biases of its necks."""
    model = models.build(msvr310.get_config().model, DataSpec(tiny.MODALITIES, (128, 256), 155))
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 75_251_142 - 3 * 2048


@pytest.mark.parametrize("name", ablations.ROWS)
def test_every_row_of_the_tables_fits_together(name):
    c = ablations.get_config(name)
    configs.check(c)
    assert set(objective.terms(c)) <= {"id", "cdc", "center", "hc"}


def test_rows_change_what_they_say():
    rows = {name: ablations.get_config(name) for name in ("baseline", "samples", "modalities")}
    assert list(objective.terms(rows["baseline"])) == ["id"]
    halves = [(rows[k].losses.cdc.sample_weight, rows[k].losses.cdc.alpha) for k in rows]
    assert halves[1:] == [(1.0, 0.0), (0.0, 1.0)]
    assert ablations.get_config("lambda_0.7").losses.cdc.weight == 0.7
    assert ablations.ROWS["alpha_0.7"][1] == (33.8,)
    assert demo.get_config("layer_norm").model.norm == "ln"
    with pytest.raises(UserError, match="ablation is 'x'; it must be one of baseline, alnu"):
        ablations.get_config("x")
