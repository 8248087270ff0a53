"""CCNet on the rendered set, from scratch, on two CPU cores.

--config configs/ccnet/demo.py:NAME runs an ablation of ablations.py instead.
"""

from configs import common
from configs.ccnet.ablations import ablated
from facenet_jax.models.resnet import IMAGENET_MEAN


def get_config(name: str = "ccnet"):
    """The demo."""
    c = common.get_config("ccnet", backbone="resnet")
    c.data.name = "rendered"
    c.data.root = "data/rendered"
    c.data.image_size = (32, 64)
    c.model.variant = "mini"
    c.model.pretrained = "none"
    c.losses.cdc.weight = 0.3
    c.augment.pad = 3
    c.augment.erase = 0.4
    c.augment.erase_fill = IMAGENET_MEAN
    c.train.identities_per_batch = 8
    c.train.samples_per_identity = 4
    c.train.steps = 800
    c.train.evaluate_every = 4
    c.train.save_every = 4
    c.optim.name = "adam"
    c.optim.learning_rate = 1e-3
    c.optim.schedule = "cosine"
    c.optim.bias_lr_factor = 1.0
    c.optim.warmup = 1.0
    c.optim.weight_decay = 5e-4
    c.evaluate.per_modality = True
    return ablated(c, name)
