"""AGW on RegDB, trial 1: 206 identities; otherwise as on SYSU-MM01.

Published (Ye et al. 2021), means over ten trials, each with a model of its own: visible to thermal
mAP 66.37, R-1 70.05, mINP 50.19.
"""

from configs.agw import sysu_mm01


def get_config():
    """The recipe; --config.data.name=regdb/visible_to_thermal_N for trial N."""
    c = sysu_mm01.get_config()
    c.data.name = "regdb/visible_to_thermal_1"
    return c
