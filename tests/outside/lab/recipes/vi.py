"""The two-stream model on visible and infrared images."""

from facenet_jax import config as options


def get_config():
    """Sixty steps, evaluated and saved on the way."""
    c = options.default_config("lab.two_streams")
    c.data.name = "lab.sets.vi.load"
    c.data.image_size = (32, 16)
    c.sampler = options.sampler("lab.samplers.cross_modal", steps_per_epoch=5)
    c.augment.pad = 2
    c.train.identities_per_batch, c.train.samples_per_identity = 4, 2
    c.train.steps, c.train.steps_per_dispatch = 60, 3
    c.train.evaluate_every, c.train.save_every_steps = 4, 4
    c.optim.learning_rate, c.optim.warmup = 0.05, 1.0
    c.evaluate.batch = 8
    return c
