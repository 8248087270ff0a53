"""Three-stream ViT-B/16 on WMVeID863, the baseline of Table 3: ID and triplet losses alone.

Published: mAP 66.5, R-1 73.7.
"""

import ml_collections

from configs import wmveid863


def baseline(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`c` without MFMP, FCE, MC and KL: three ViTs that only meet in the concatenation."""
    c.model.mfmp.enabled = False
    c.model.fce.enabled = False
    c.model.flare_heads = False
    c.losses.mask_kl = 0.0
    c.losses.mc = 0.0
    return c


def get_config():
    """The recipe of the baseline."""
    return baseline(wmveid863.get_config())
