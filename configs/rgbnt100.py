"""FACENet on RGBNT100: 50 identities, 128 x 256, ViT-B/16 from ImageNet-21k, 120 epochs of 8 x 4.

Published: mAP 81.5, R-1 96.9.
"""

from configs import wmveid863


def get_config():
    """The recipe."""
    c = wmveid863.get_config()
    c.data.name = "rgbnt100"
    c.data.image_size = (128, 256)
    c.optim.learning_rate = 1e-3
    c.optim.warmup = 10.0
    return c
