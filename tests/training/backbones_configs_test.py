"""DINOv2, DINOv3 and CLIP in the trainer: recipes, a few steps, resume and export."""

import numpy as np
import pytest

from configs.backbones import demo, wmveid863
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models, objective, optim
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny

SIZES = {"width": 16, "depth": 2, "heads": 2}
DEMOS = [*demo.BACKBONES, *(f"facenet_{name}" for name in demo.BACKBONES)]


@pytest.mark.parametrize("prefix", ["", "facenet_"])
@pytest.mark.parametrize("name", wmveid863.BACKBONES)
def test_recipes_fit_together_and_ask_for_weights(name, prefix):
    c = wmveid863.get_config(prefix + name)
    configs.check(c)
    optim.optimizer(c.optim)
    assert ("mc" in objective.terms(c)) == bool(prefix)
    with pytest.raises(UserError, match=f"(?i){c.model.backbone[:4]}"):
        models.check_start(c)


def test_recipes_have_the_values_of_the_releases():
    c = wmveid863.get_config("dinov3_b")
    assert (c.optim.name, c.optim.learning_rate, c.train.epochs) == ("adam", 5e-5, 60)
    assert (c.losses.triplet.margin, c.losses.id.label_smoothing) == (0.5, 0.1)
    assert (c.augment.erase, c.model.pixels) == (0.0, "publisher")
    rates = optim.rate_table(c.optim, np.arange(1, 61), 60, {})[:, 0]
    np.testing.assert_allclose(rates[[0, 59]], [5e-6 + 4.5e-6, 1.6e-5], rtol=1e-6)
    with pytest.raises(UserError, match="backbone is 'x'; it must be one of dinov2_s"):
        wmveid863.get_config("x")


def test_the_rates_of_a_backbone_start_above_its_peak_as_in_the_release():
    """DeMo's CLIP: from 3.5e-5 down to 5e-6 over ten epochs, while the heads rise to 3.5e-4."""
    c = wmveid863.get_config("clip_b")
    model = models.build(c.model, DataSpec(tiny.MODALITIES, tuple(c.data.image_size), 5))
    groups = optim.parameter_groups(model.groups, c.optim.bias_lr_factor)
    rates = optim.rate_table(c.optim, np.arange(1, 51), 50, groups)
    assert list(groups) == ["backbone", "biases"]
    np.testing.assert_allclose(rates[0], [6.65e-5, 3.2e-5, 1.015e-4], rtol=1e-5)
    assert rates[8, 1] < rates[0, 1]
    np.testing.assert_allclose(rates[-1], 3.5e-7, rtol=1e-5)


def small(name):
    """The demo of this name on the tiny tree: two blocks, few steps."""
    c = tiny.small_demo(demo.get_config(name))
    sizes = {"width": 2, "depths": (1, 1, 1, 1)} if name.endswith("resnet") else SIZES
    c.model.update(**sizes)
    return c


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMOS)
def test_a_run_is_resumed_and_exports(name, place, tmp_path):
    """A run that was stopped after a chunk goes on to the very state of one that was not."""
    tiny.resumed_and_exported(small(name), place, tmp_path)
