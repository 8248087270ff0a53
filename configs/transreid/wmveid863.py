"""TransReID on WMVeID863, a ViT-B/16 for each modality: --config configs/transreid/wmveid863.py.

Published in Table 8 of the FACENet paper, and with FACENet's MFMP and FCE between trunk and heads
(`...wmveid863.py:facenet`): see `ROWS`. The paper does not say how TransReID was trained there:
this is FACENet's own recipe, with patches that do not overlap (16 x 8 of them, as FACENet has) and
without side information.
"""

from configs import common, wmveid863

FACENET = {"model.facenet": True, "losses.mask_kl.weight": 1.0, "losses.mc.weight": 1.0}

# name: (changes, published mAP, R-1, R-5, R-10)
ROWS = {
    "transreid": ({}, (67.0, 74.7, 79.5, 82.4)),
    "facenet": (FACENET, (69.2, 76.0, 80.2, 83.5)),
}


def get_config(name: str = "transreid"):
    """The recipe: `transreid` alone or with `facenet`."""
    return common.with_row(wmveid863.get_config("transreid"), ROWS, name)
