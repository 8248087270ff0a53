"""MUN on the rendered visible-infrared set, from scratch, on two CPU cores.

--config configs/mun/demo.py:NAME runs a row of ablations.py instead.
"""

from configs.agw import demo
from configs.ffdml.sysu_mm01 import CRE_FILL
from configs.mun.ablations import ablated


def get_config(name: str = "mun"):
    """The demo of AGW with this model and its augmentation."""
    c = demo.get_config("mun")
    c.augment.channels = "adapt_grey"
    c.augment.erase = 0.5
    c.augment.erase_fill = CRE_FILL
    return ablated(c, name)
