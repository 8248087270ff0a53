"""CCNet on RGBNT100: 50 identities, 128 x 256, ResNet-50 of ImageNet, 120 epochs of 8 x 4.

Published: mAP 77.2, R-1 96.3, R-5 97.2, R-10 97.7. The paper has one schedule for all data; 120
epochs with steps at 40 and 70 are the release's, since an epoch here is eight times as long.
"""

from configs.ccnet import msvr310


def get_config():
    """The recipe."""
    c = msvr310.get_config()
    c.data.name = "rgbnt100"
    c.train.epochs = 120
    c.train.evaluate_every = c.train.save_every = 10
    c.optim.milestones = (40, 70)
    return c
