"""The rows of MUN's Tables 1 to 3 on SYSU-MM01: --config configs/mun/ablations.py:NAME.

NAME is a key of `ROWS`, which has what the paper publishes beside it. For other data or sizes give
the options on the command line, or call `ablated` on another config.
"""

import ml_collections

from configs import common
from configs.mun import sysu_mm01

NO_IA, NO_MA = {"losses.ia.weight": 0.0}, {"losses.ma.weight": 0.0, "model.prototypes": False}
OWN = {"model.auxiliary_classifiers": "own"}
NO_AUXILIARY = {**NO_IA, **NO_MA, "model.auxiliary": "none", "losses.idc.weight": 0.0}
IMAGES = ("image_visible", "image_*")
FEATURES = ("image_visible", "auxiliary", "image_*")
NO_BRIDGE = ("prototype_visible", "prototype_[!a]*")  # all but the auxiliary one

# name: (changes to MUN, published R-1 and mAP of SYSU-MM01's all search and of RegDB, visible to
# thermal). Which row of Table 3 is which is not printed: the order is taken to be none, prototypes,
# auxiliary modality between, both.
ROWS = {
    # Table 1
    "baseline": (NO_AUXILIARY, (57.49, 55.83, 75.42, 71.93)),
    "auxiliary": ({**NO_IA, **NO_MA, **OWN}, (62.55, 58.42, 79.26, 73.81)),
    "idc": ({**NO_IA, **NO_MA}, (66.58, 61.29, 83.51, 79.79)),
    "ia": (NO_MA, (71.35, 65.54, 89.42, 84.66)),
    "ma": (NO_IA, (69.77, 66.96, 89.93, 84.02)),
    "mun": ({}, (76.24, 73.81, 95.19, 87.15)),
    # Table 2
    "x": ({"model.auxiliary": "x"}, (66.17, 63.06, 79.95, 74.28)),
    "mixed": ({"model.auxiliary": "mixed"}, (66.42, 62.85, 79.43, 73.09)),
    "syncretic": ({"model.auxiliary": "syncretic"}, (72.95, 68.74, 84.59, 79.11)),
    # Table 3
    "no_prototypes_no_bridge": (
        {"model.prototypes": False, "losses.ma.on": IMAGES},
        (69.02, 65.83, 80.09, 73.97),
    ),
    "no_bridge": ({"losses.ma.on": NO_BRIDGE}, (74.15, 72.10, 86.73, 77.24)),
    "no_prototypes": (
        {"model.prototypes": False, "losses.ma.on": FEATURES},
        (71.66, 68.35, 83.92, 75.54),
    ),
}


def get_config(name: str = "mun"):
    """A row on SYSU-MM01."""
    return ablated(sysu_mm01.get_config(), name)


def ablated(c: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """`c`, a config of MUN, with the changes of a row."""
    return common.with_row(c, ROWS, name)
