"""MUN on SYSU-MM01: 395 identities, 288 x 144, ResNet-50 of ImageNet, 90 epochs of 8 x (4 + 4).

Published, single shot: all search R-1 76.24, R-10 97.84, mAP 73.81; indoor
(--config.data.name=sysu_mm01/indoor_single) R-1 79.42, R-10 98.09, mAP 82.06. The paper does not
say how large a batch is; 8 x (4 + 4) is AGW's. If training diverges, a smaller rate of what is
pretrained, --config.model.pretrained_lr_factor=0.1, is the first thing to try.
"""

from configs import common
from configs.ffdml.sysu_mm01 import CRE_FILL


def get_config():
    """The paper's recipe."""
    c = common.get_config("mun")
    c.data.name = "sysu_mm01/all_single"
    c.data.image_size = (288, 144)
    c.data.train_resize = c.data.test_resize = "lanczos"
    c.model.dtype = "bfloat16"
    c.augment.per_modality = True
    c.augment.channels = "adapt_grey"
    c.augment.erase = 0.5
    c.augment.erase_fill = CRE_FILL
    c.sampler.name = "cross_modal"
    c.train.epochs = 90
    c.train.evaluate_every = c.train.save_every = 5
    c.optim.name = "adamw"
    c.optim.learning_rate = 2e-3
    c.optim.weight_decay = 0.01
    c.optim.bias_lr_factor = 1.0
    c.optim.schedule = "multistep"
    c.optim.milestones = (31, 61)  # epochs count from 1
    c.optim.warmup = 15.0
    c.optim.warmup_start = 5e-6  # from 1e-8
    c.optim.warmup_each = "step"
    return c
