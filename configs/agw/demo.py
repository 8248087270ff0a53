"""The two-stem baseline on the rendered visible-infrared set, from scratch, on two CPU cores.

Near-infrared images of vehicles find visible ones of other instants. Needs them drawn:
facenet render data/rendered_infrared --infrared_follows_paint 1. In the set of the other demos a
surface's near-infrared is drawn apart from its paint, so that only shapes would tell who is who.
There are no non-local blocks, since the layers of the small ResNet have one block each.
"""

from configs import common

LATE = ((0.0, 0.0), (0.4, 0.0), (0.6, 1.0), (1.0, 1.0))
"""The weight of a metric loss over the run: from the first step it only draws all features together
(see configs/demo.py)."""


def get_config(model: str = "two_stem"):
    """The demo, with the baseline or with another model on a two-stem ResNet."""
    c = common.get_config(model)
    c.data.name = "rendered_infrared"
    c.data.root = "data/rendered_infrared"
    c.data.image_size = (48, 96)
    c.model.variant = "mini"
    c.model.pretrained = "none"
    c.augment.pad = 4
    c.augment.per_modality = True
    c.sampler.name = "cross_modal"
    c.train.identities_per_batch = 16
    c.train.samples_per_identity = 2
    c.train.steps = 800
    c.train.evaluate_every = 4
    c.train.save_every = 4
    c.optim.name = "adam"
    c.optim.learning_rate = 3e-3
    c.optim.schedule = "cosine"
    c.optim.bias_lr_factor = 1.0
    c.optim.warmup = 1.0
    c.optim.weight_decay = 5e-4
    c.evaluate.sanity_baselines = True
    metric = "triplet" if model == "mun" else "wrt"
    c.losses[metric].weight = LATE
    return c
