"""The demo without MFMP, FCE, MC and KL: three ViTs that only meet in the concatenation."""

from configs import demo


def get_config():
    """The demo's three-stream baseline."""
    c = demo.get_config()
    c.model.mfmp.enabled = False
    c.model.fce.enabled = False
    c.model.flare_heads = False
    c.losses.mask_kl = 0.0
    c.losses.mc = 0.0
    return c
