"""CCNet on WMVeID863, as FACENet's Table 7 compares it: 603 identities, 256 x 128, 120 epochs.

Published there: mAP 50.3, R-1 52.7, R-5 69.7, R-10 75.3; with the MC loss added
(--config.losses.mc.weight=1.0) 60.6, 68.5, 79.2, 82.4. Size and length are those of the other
methods on this set; the papers do not say them.
"""

from configs.ccnet import rgbnt100


def get_config():
    """The recipe."""
    c = rgbnt100.get_config()
    c.data.name = "wmveid863"
    c.data.image_size = (256, 128)
    return c
