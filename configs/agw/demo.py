"""The two-stem baseline on the rendered visible-infrared set, from scratch, on two CPU cores.

Near-infrared images of vehicles find visible ones taken at other instants in other views. Needs the
rendered set: python scripts/render.py data/rendered, or make demo. Non-local blocks are left out:
the layers of the small ResNet have one block each.
"""

from configs import common


def get_config(model: str = "two_stem"):
    """The demo, with the baseline or with another model on a two-stem ResNet."""
    c = common.get_config(model)
    c.data.name = "rendered_infrared"
    c.data.root = "data/rendered"
    c.data.image_size = (32, 64)
    c.model.variant = "mini"
    c.model.pretrained = "none"
    c.augment.pad = 3
    c.augment.per_modality = True
    c.sampler.name = "cross_modal"
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
    c.evaluate.sanity_baselines = True
    return c
