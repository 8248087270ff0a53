"""The built-in baseline on the small residual network."""

from facenet_jax import config as options


def get_config():
    """Eight steps, saved on the way."""
    c = options.default_config("three_stream", backbone="lab.small_resnet")
    c.data.name = "lab.sets.aligned.load"
    c.data.image_size = (32, 16)
    c.augment.pad = 2
    c.train.identities_per_batch, c.train.samples_per_identity = 4, 2
    c.train.steps, c.train.steps_per_dispatch, c.train.save_every_steps = 8, 3, 3
    c.optim.learning_rate, c.optim.warmup = 0.05, 1.0
    c.evaluate.batch = 8
    return c
