"""MUN on the rendered visible-infrared set, from scratch, on two CPU cores.

--config configs/mun/demo.py:NAME runs a row of ablations.py instead.
"""

from configs.agw import demo
from configs.mun.ablations import ablated


def get_config(name: str = "mun"):
    """The demo of AGW with this model.

    From scratch, in so few steps, two things of the recipe kept it from learning (mAP 5 instead of
    10): grey and erased images, and an alignment loss from the first step, which draws all features
    together before identities are apart.
    """
    c = demo.get_config("mun")
    c.losses.ia.weight = tuple((at, 0.5 * weight) for at, weight in demo.LATE)
    return ablated(c, name)
