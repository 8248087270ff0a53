"""The rows of AGW and of margin-MMD: the releases' numbers are met, and a wrong one is seen."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from configs.agw import sysu_mm01
from facenet_jax.parity import agw, visible_infrared
from facenet_jax.parity.rows import Golden
from scripts import check_parity


def statuses(rows):
    return {row.status for row in rows}


def test_scores_galleries_and_rates_are_met(shared):
    golden = Golden(shared / "golden" / "siblings" / "agw")
    rows = [*visible_infrared.metric_rows(golden.needed("metrics.npz"))]
    gallery = golden.needed("sysu_gallery.json")
    rows += visible_infrared.gallery_rows(gallery)
    rates, optim = golden.needed("lr_by_epoch.json"), sysu_mm01.get_config().optim
    rows += visible_infrared.rate_rows(rates, optim)
    assert len(rows) == 34
    assert statuses(rows) == {"ok"}
    gallery["gallery"]["all"][3][5] = "cam1/0001/0001.jpg"
    wrong = [r.name for r in visible_infrared.gallery_rows(gallery) if r.status == "FAIL"]
    assert wrong == ["gallery all 3"]
    optim.milestones = (20, 51)
    assert statuses(visible_infrared.rate_rows(rates, optim)) == {"FAIL"}


def test_names_of_the_release_have_their_places():
    names = {
        "visible_module.visible.conv1.weight": [2, 3, 7, 7],
        "thermal_module.thermal.layer1.0.conv1.weight": [2, 2, 1, 1],
        "base_resnet.base.conv1.weight": [2, 3, 7, 7],
        "base_resnet.base.layer2.1.bn3.running_var": [16],
        "base_resnet.base.layer2.0.downsample.0.weight": [16, 8, 1, 1],
        "NL_2.0.W.1.weight": [16],
        "NL_2.0.g.0.weight": [1, 16, 1, 1],
        "bottleneck.bias": [64],
        "bottleneck.num_batches_tracked": [],
        "classifier.weight": [5, 64],
    }
    assert agw.places(names, (1, 3, 1, 1), [0, 2, 0, 0]) == {
        "visible_module.visible.conv1.weight": "params/stem_visible/conv1/kernel",
        "base_resnet.base.layer2.1.bn3.running_var": "batch_stats/shared/layer2_1/bn3/var",
        "base_resnet.base.layer2.0.downsample.0.weight": (
            "params/shared/layer2_0/shortcut_conv/kernel"
        ),
        "NL_2.0.W.1.weight": "params/shared/non_local_layer2_1/norm/scale",
        "NL_2.0.g.0.weight": "params/shared/non_local_layer2_1/g/kernel",
        "bottleneck.bias": "batch_stats/neck/bias",
        "classifier.weight": "params/classifier/kernel",
    }


@pytest.mark.slow
def test_every_number_of_margin_mmd_is_met(shared, tmp_path):
    folder = shutil.copytree(shared / "golden" / "siblings" / "mmd", tmp_path / "mmd")
    with jax.numpy_dtype_promotion("standard"):
        rows = check_parity.check(folder)
        assert len(rows) == 52
        assert statuses(rows) == {"ok"}
        z = dict(np.load(folder / "mmd.npz"))
        z["per_identity"] = z["per_identity"] * 1.001
        np.savez(folder / "mmd.npz", **z)
        wrong = [row.name for row in check_parity.check(folder) if row.status == "FAIL"]
    assert wrong == ["per_identity in float64", "per_identity in float32"]


@pytest.mark.slow
def test_every_number_of_agw_is_met(shared):
    with jax.numpy_dtype_promotion("standard"):
        rows = check_parity.check(shared / "golden" / "siblings" / "agw")
    assert len(rows) == 891
    assert [dataclasses.astuple(row) for row in rows if row.status != "ok"] == []
