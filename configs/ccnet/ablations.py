"""The rows of CCNet's Tables V to VII on MSVR310: --config configs/ccnet/ablations.py:NAME.

NAME is a key of `ROWS`, which has what the paper publishes beside it. For other data or sizes give
the options on the command line, or call `ablated` on another config.
"""

import ml_collections

from configs import common
from configs.ccnet import msvr310

PLAIN = {"model.norm": "none", "losses.cdc.weight": 0.0}
NO_ALNU = {"model.norm": "none"}

# name: (changes to CCNet, published mAP, R-1, R-5, R-10). For L_M alone alpha is 1: the paper gives
# no number for it. The hetero-centre loss is over all pairs of
# modalities, with the weight of CdC, which the paper does not say either.
ROWS = {
    # Table V
    "baseline": (PLAIN, (25.6, 39.4, 58.5, 67.9)),
    "alnu": ({"losses.cdc.weight": 0.0}, (29.4, 47.2, 66.0, 74.3)),
    "samples": ({**NO_ALNU, "losses.cdc.alpha": 0.0}, (27.4, 41.6, 61.8, 69.0)),
    "modalities": (
        {**NO_ALNU, "losses.cdc.alpha": 1.0, "losses.cdc.sample_weight": 0.0},
        (31.4, 48.6, 65.1, 73.6),
    ),
    "cdc": (NO_ALNU, (33.7, 51.8, 68.2, 76.0)),
    "ccnet": ({}, (36.4, 55.2, 72.4, 79.7)),
    # Table VI
    "instance_norm": ({**PLAIN, "model.norm": "in"}, (26.8, 42.3, 61.9, 70.6)),
    "layer_norm": ({**PLAIN, "model.norm": "ln"}, (28.8, 45.9, 66.3, 72.3)),
    "center": (
        {**PLAIN, "losses.center.weight": 5e-4, "model.centre_rate": 0.5},
        (25.8, 42.0, 60.1, 66.8),
    ),
    "hc": ({**PLAIN, "losses.hc.weight": 0.3}, (30.5, 48.7, 64.8, 72.1)),
}

# Table VII, without ALNU: mAP for lambda 0.1 to 1 at alpha 0.6, and alpha 0.1 to 1 at lambda 0.3.
SWEEPS = {
    "lambda": ("weight", (31.3, 33.3, 33.7, 33.4, 33.0, 32.8, 32.7, 32.3, 31.9, 31.3)),
    "alpha": ("alpha", (32.6, 33.5, 33.1, 33.4, 33.1, 33.7, 33.8, 33.3, 33.1, 33.1)),
}
for _name, (_option, _published) in SWEEPS.items():
    for _tenths, _map in enumerate(_published, start=1):
        _changes = {**NO_ALNU, f"losses.cdc.{_option}": _tenths / 10}
        ROWS[f"{_name}_{_tenths / 10}"] = (_changes, (_map,))


def get_config(name: str = "ccnet"):
    """A row on MSVR310."""
    return ablated(msvr310.get_config(), name)


def ablated(c: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """`c`, a config of CCNet, with the changes of a row."""
    return common.with_row(c, ROWS, name)
