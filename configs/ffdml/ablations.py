"""The rows of FFDML's Tables 1 to 4 on SYSU-MM01: --config configs/ffdml/ablations.py:NAME.

NAME is a key of `ROWS`, which has what the paper publishes beside it. For other data or sizes give
the options on the command line, or call `ablated` on another config.
"""

import ml_collections

from configs import common
from configs.ffdml import sysu_mm01

NO_CHANNELS, NO_ERASE = {"augment.channels": "none"}, {"augment.erase": 0.0}
NO_KD = {"losses.kd_global.weight": 0.0, "losses.kd_fusion.weight": 0.0}
NO_ID = {"losses.id_global.weight": 0.0, "losses.id_fusion.weight": 0.0}
NO_FUSION = {
    **NO_KD,
    "model.fusion_levels": (),
    "losses.id_fusion.weight": 0.0,
    "losses.id_joint.weight": 0.0,
}
THETA_1 = {"losses.kd_global.weight": 1.0, "losses.kd_fusion.weight": 1.0}

# name: (changes to FFDML, published, mAP, mINP)
ROWS = {
    # Table 1
    "baseline": (
        {**NO_FUSION, **NO_CHANNELS, **NO_ERASE},
        (49.86, 86.98, 93.70, 46.55, 33.10),
    ),
    "fusion": ({**NO_KD, **NO_CHANNELS, **NO_ERASE}, (54.12, 89.90, 95.15, 52.99, 39.80)),
    "rcc": ({**NO_FUSION, **NO_ERASE}, (56.87, 91.64, 96.70, 54.30, 39.89)),
    "cre": ({**NO_FUSION, **NO_CHANNELS}, (59.48, 92.29, 96.43, 59.16, 43.82)),
    "rcc_cre": (NO_FUSION, (65.45, 94.55, 97.96, 60.78, 44.92)),
    "rcc_cre_fusion": (NO_KD, (69.68, 96.28, 98.87, 65.66, 50.86)),
    "ffdml": ({}, (72.57, 96.60, 98.89, 68.61, 54.64)),
    # Table 2
    "levels_12": ({"model.fusion_levels": (1, 2)}, (66.01, 94.49, 98.19, 62.30, 47.68)),
    "levels_13": ({"model.fusion_levels": (1, 3)}, (71.58, 95.90, 98.72, 67.19, 52.55)),
    "levels_23": ({"model.fusion_levels": (2, 3)}, (72.39, 96.64, 99.02, 68.10, 53.47)),
    "levels_124": ({"model.fusion_levels": (1, 2, 4)}, (67.59, 95.09, 98.31, 65.39, 52.52)),
    "levels_134": ({"model.fusion_levels": (1, 3, 4)}, (70.21, 95.82, 98.66, 66.83, 53.66)),
    "levels_234": ({"model.fusion_levels": (2, 3, 4)}, (71.08, 96.07, 98.84, 67.43, 53.96)),
    "levels_1234": ({"model.fusion_levels": (1, 2, 3, 4)}, (71.69, 96.15, 98.87, 67.52, 54.39)),
    # Table 3: the losses of the global and of the fusion branch; with its weights KD is "LSR"
    "no_id_no_kd": ({**NO_ID, **NO_KD}, (69.59, 96.06, 98.74, 65.36, 50.40)),
    "id": (NO_KD, (69.68, 96.28, 98.87, 65.66, 50.86)),
    "kd": ({**NO_ID, **THETA_1}, (68.37, 95.75, 98.56, 65.32, 50.35)),
    "id_kd": (THETA_1, (71.24, 96.02, 98.82, 67.38, 53.21)),
    # Table 4: who learns from whom
    "global_to_fusion": (
        {
            "losses.kd_global.weight": 0.0,
            "losses.kd_fusion.on": ("global_*", "fusion_*"),
            "losses.kd_fusion.detach": "first",
        },
        (68.67, 94.76, 97.84, 64.31, 49.44),
    ),
    "joint_to_global": (
        {"losses.kd_fusion.weight": 0.0},
        (70.18, 95.59, 98.48, 65.95, 51.31),
    ),
    "joint_to_fusion": (
        {"losses.kd_global.weight": 0.0},
        (70.87, 95.68, 98.49, 66.78, 52.38),
    ),
}


def get_config(name: str = "ffdml"):
    """A row on SYSU-MM01."""
    return ablated(sysu_mm01.get_config(), name)


def ablated(c: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """`c`, a config of FFDML, with the changes of a row."""
    return common.with_row(c, ROWS, name)
