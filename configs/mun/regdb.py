"""MUN on RegDB, trial 1: 206 identities; otherwise as on SYSU-MM01.

Published, means over ten trials, each with a model of its own: visible to thermal R-1 95.19, R-10
98.93, mAP 87.15; thermal to visible (--mode evaluate
--config.data.name=regdb/thermal_to_visible_1) R-1 91.86, R-10 97.99, mAP 85.01.
"""

from configs.mun import sysu_mm01


def get_config():
    """The recipe; --config.data.name=regdb/visible_to_thermal_N for trial N."""
    c = sysu_mm01.get_config()
    c.data.name = "regdb/visible_to_thermal_1"
    return c
