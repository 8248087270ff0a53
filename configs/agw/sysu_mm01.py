"""AGW on SYSU-MM01: 395 identities, 288 x 144, ResNet-50 of ImageNet, 80 epochs of 8 x (4 + 4).

The baseline of FFDML and MUN. Published with its release: all search R-1 47.50, mAP 47.65, mINP
35.30. Indoor search is --config.data.name=sysu_mm01/indoor_single. The
authors' later code (CAJ) adds --config.augment.channels=adapt_grey to the same network.
24.4 million parameters.
"""

from configs import common


def get_config(model: str = "two_stem"):
    """The recipe of the release, with its model or with another one on a two-stem ResNet."""
    c = common.get_config(model)
    c.data.name = "sysu_mm01/all_single"
    c.data.image_size = (288, 144)
    c.data.train_resize = c.data.test_resize = "lanczos"
    if model == "two_stem":
        c.model.non_local = (0, 2, 3, 0)
    c.model.dtype = "bfloat16"  # of convolutions; float32 to compute as the release does
    c.model.pretrained_lr_factor = 0.1
    c.augment.per_modality = True
    c.sampler.name = "cross_modal"
    c.train.epochs = 80
    c.train.evaluate_every = c.train.save_every = 4
    c.optim.learning_rate = 0.1
    c.optim.weight_decay = 5e-4
    c.optim.nesterov = True
    c.optim.bias_lr_factor = 1.0
    c.optim.schedule = "multistep"
    c.optim.milestones = (21, 51)  # epochs count from 1
    c.optim.warmup = 10.0
    c.optim.warmup_start = 0.0
    return c
