"""FFDML on the rendered visible-infrared set, from scratch, on two CPU cores.

--config configs/ffdml/demo.py:NAME runs a row of ablations.py instead.
"""

from configs.agw import demo
from configs.ffdml.ablations import ablated
from configs.ffdml.sysu_mm01 import CRE_FILL


def get_config(name: str = "ffdml"):
    """The demo of AGW with this model and its augmentation."""
    c = demo.get_config("ffdml")
    c.model.fusion_width = 32
    c.augment.channels = "rcc"
    c.augment.erase = 0.5
    c.augment.erase_fill = CRE_FILL
    return ablated(c, name)
