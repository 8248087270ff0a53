"""TransReID on WMVeID863, a ViT-B/16 for each modality: --config configs/transreid/wmveid863.py.

Published in Table 8 of the FACENet paper: mAP 67.0, R-1 74.7, R-5 79.5, R-10 82.4; with FACENet's
MFMP and FCE between trunk and heads (`...wmveid863.py:facenet`) 69.2, 76.0, 80.2, 83.5. The paper
does not say how TransReID was trained there: this is FACENet's own recipe, with patches that do not
overlap (16 x 8 of them, as FACENet has) and without side information.
"""

from configs import wmveid863
from data_tfds.errors import UserError


def get_config(name: str = "transreid"):
    """The recipe: `transreid` alone or with `facenet`."""
    c = wmveid863.get_config("transreid")
    if name == "facenet":
        c.model.facenet = True
        c.losses.mask_kl.weight = c.losses.mc.weight = 1.0
    elif name != "transreid":
        raise UserError(f"The recipe is '{name}'; it must be transreid or facenet.", 2)
    return c
