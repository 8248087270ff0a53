"""CCNet on MSVR310: 155 identities, 128 x 256, ResNet-50 of ImageNet, 1200 epochs of 8 x 4.

Published: mAP 36.4, R-1 55.2, R-5 72.4, R-10 79.7, with gallery images of the query's own scene
removed; the authors' own rank list gives R-1 52.8, so expect a few points between runs. Visible
alone 30.7, near-infrared 26.3, thermal 19.6 mAP. 75 million parameters: 0.9 GB with Adam; a step of
96 images computes about 4 TFLOP.
"""

from configs import common
from facenet_jax.models.resnet import IMAGENET_MEAN


def get_config(backbone: str = "resnet"):
    """The paper's recipe, with what the release says where the paper is silent."""
    c = common.get_config("ccnet", backbone=backbone)
    c.data.name = "msvr310"
    c.data.image_size = (128, 256)
    c.data.train_resize = c.data.test_resize = "bilinear"
    c.model.dtype = "bfloat16"  # of convolutions; float32 to compute as the release does
    c.losses.cdc.alpha = 0.6
    c.losses.cdc.weight = 0.3  # lambda, chosen with the release's norm: the mean over identities
    c.losses.cdc.norm = "code"
    c.augment.erase = 0.4
    c.augment.erase_fill = IMAGENET_MEAN  # in normalised pixels, as the release has it
    c.augment.per_modality = True
    c.train.epochs = 1200
    c.train.evaluate_every = c.train.save_every = 50
    c.optim.name = "adam"
    c.optim.learning_rate = 3.5e-4
    c.optim.weight_decay = 5e-4
    c.optim.bias_lr_factor = 1.0
    c.optim.schedule = "multistep"
    c.optim.milestones = (300, 550)
    c.optim.warmup = 10.0
    c.seed = 42
    c.evaluate.per_modality = True  # the seven rows of Table II
    return c
