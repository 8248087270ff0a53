"""FACENet on MSVR310: 155 identities, 128 x 256, ViT-B/16 from ImageNet-21k, 1000 epochs of 8 x 4.

Published: mAP 36.2, R-1 54.1, with gallery images of the query's own scene removed.
"""

from configs import wmveid863


def get_config():
    """The recipe."""
    c = wmveid863.get_config()
    c.data.name = "msvr310"
    c.data.image_size = (128, 256)
    c.train.epochs = 1000
    c.train.evaluate_every = 20
    c.train.save_every = 20
    c.optim.learning_rate = 1e-3
    c.optim.warmup = 100.0
    return c
