"""FFDML on RegDB, trial 1: 206 identities; otherwise as on SYSU-MM01.

Published, means over ten trials, each with a model of its own: visible to thermal R-1 92.00, mAP
88.01, mINP 79.77; thermal to visible (--mode evaluate
--config.data.name=regdb/thermal_to_visible_1) R-1 90.01, mAP 86.15, mINP 75.31.
"""

from configs.ffdml import sysu_mm01


def get_config():
    """The recipe; --config.data.name=regdb/visible_to_thermal_N for trial N."""
    c = sysu_mm01.get_config()
    c.data.name = "regdb/visible_to_thermal_1"
    return c
