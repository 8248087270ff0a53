"""FFDML on SYSU-MM01: 395 identities, 288 x 144, ResNet-50 of ImageNet, 80 epochs of 8 x (4 + 4).

Published: all search R-1 72.57, R-10 96.60, R-20 98.89, mAP 68.61, mINP 54.64; indoor
(--config.data.name=sysu_mm01/indoor_single) R-1 78.01, mAP 81.39, mINP 77.54. Where the paper is
silent, the recipe is that of AGW, whose settings it repeats. 26 million parameters.
"""

from configs.agw.sysu_mm01 import get_config as agw_config

CRE_FILL = (0.4914, 0.4822, 0.4465)
"""What channel random erasing puts into normalised pixels in CAJ's release."""


def get_config():
    """The recipe."""
    c = agw_config("ffdml")
    c.augment.channels = "rcc"
    c.augment.erase = 0.5
    c.augment.erase_fill = CRE_FILL
    return c
