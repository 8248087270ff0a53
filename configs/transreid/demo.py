"""TransReID on the rendered set, from scratch, on two CPU cores: configs/transreid/demo.py.

The schedule of the demo, with half of each loss for the mean of the four local features.
`...demo.py:facenet` has FACENet's MFMP and FCE between trunk and heads.
"""

from configs import common, demo
from configs.transreid.wmveid863 import ROWS


def get_config(name: str = "transreid"):
    """The demo: `transreid` alone or with `facenet`."""
    c = demo.get_config("transreid")
    schedule = c.losses.triplet.weight
    for label, share in (("triplet", 0.5), ("triplet_local", 0.125)):
        c.losses[label].weight = tuple((at, share * value) for at, value in schedule)
    c.losses.id_local.label_smoothing = c.losses.id.label_smoothing
    return common.with_row(c, ROWS, name)
