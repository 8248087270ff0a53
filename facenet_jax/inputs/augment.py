"""Augmentation on the device: channels, flip, pad and crop, erase. Pure functions of a key."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data_tfds.errors import UserError
from facenet_jax.inputs.channels import of_visible
from facenet_jax.inputs.flare import flared
from facenet_jax.options import (
    Option,
    Options,
    between,
    finite,
    numbers,
    one_of,
    probabilities,
    switch,
    whole,
)
from facenet_jax.types import Batch

OPTIONS: Options = {
    "flip": Option(0.5, "probability of a flip from left to right", between(0, 1)),
    "pad": Option(10, "pixels of black border before the random crop", whole(0, 4096)),
    "erase": Option(0.0, "probability of random erasing", between(0, 1)),
    "erase_fill": Option(
        (0.0, 0.0, 0.0),
        "the value of erased pixels, after normalisation, R G B",
        numbers(3, finite()),
    ),
    "erase_with": Option(
        "fill",
        "what is put there: erase_fill | random_channel: one random value of each channel | "
        "random_pixel: random values of each pixel",
        one_of("fill", "random_channel", "random_pixel"),
    ),
    "channels": Option(
        "none",
        "of the visible images, drawn for each: rcc: one of the 6 orders of the channels or grey "
        "(FFDML) | exchange, exchange_grey: one channel, or grey too, for all three | adapt, "
        "adapt_grey: the same, or unchanged, or half of those grey (CAJ)",
        one_of("none", "rcc", "exchange", "exchange_grey", "adapt", "adapt_grey"),
    ),
    "flare": Option(
        0.0,
        "probability that flare is drawn over visible and near-infrared images of a sample",
        between(0, 1),
    ),
    "modality_dropout": Option(
        (),
        "probability, for each modality, that a sample of a batch lacks it in training; () for "
        "none. A sample that would lose all keeps all",
        probabilities(),
    ),
    "per_modality": Option(
        False,
        "draw for each image apart (release), not once for the images of a sample",
        switch(),
    ),
}
"""Of the section `augment` of a config."""

Colour = Sequence[float]
"""R, G, B."""


def normalise(
    images: jax.Array, mean: Colour = (0.5, 0.5, 0.5), std: Colour = (0.5, 0.5, 0.5)
) -> jax.Array:
    """uint8 pixels [..., 3] to float32, (x / 255 - mean) / std of each channel."""
    shape = (1,) * (images.ndim - 1) + (3,)
    scale, shift = (
        np.float32(x).reshape(shape)
        for x in (255 * np.float64(std), np.float64(mean) / np.float64(std))
    )
    return images.astype(jnp.float32) / scale - shift


def draws(key: jax.Array, shape: tuple[int, int], shared: bool) -> tuple[jax.Array, ...]:
    """Keys of flip, top, left, erase and the shape they draw; one row for all if shared."""
    return *jax.random.split(key, 4), ((1, shape[1]) if shared else shape)


def change_samples(
    images: jax.Array,
    batch: Batch,
    key: jax.Array,
    config: ml_collections.ConfigDict,
    modalities: Sequence[str],
) -> tuple[jax.Array, Batch]:
    """(images uint8 [M, B, H, W, 3], batch) after what also changes what is known of a sample.

    With probability `flare` flare is drawn over a sample, and its label says so; then images are
    dropped by `modality_dropout`. Before `augment`, with the same key.
    """
    flare_key, drop_key = (jax.random.fold_in(key, number) for number in (6, 7))  # augment has 0-5
    if config.flare:
        images, hit = flared(images, batch.present, flare_key, config.flare, modalities)
        flare = batch.labels["flare"] | hit
        batch = dataclasses.replace(batch, labels={**batch.labels, "flare": flare})
    images, present = drop_modalities(
        images, batch.present, drop_key, config.modality_dropout, modalities
    )
    return images, dataclasses.replace(batch, present=present)


def drop_modalities(
    images: jax.Array,
    present: jax.Array | None,
    key: jax.Array,
    probabilities: Sequence[float],
    modalities: Sequence[str],
) -> tuple[jax.Array, jax.Array | None]:
    """(images uint8 [M, B, H, W, 3], present bool [M, B]) with some images taken away at random.

    Image m of a sample is dropped with `probabilities[m]`, each by itself: black and not present,
    as if the data set lacked it. A sample that would have no image left keeps all it has. `present`
    None: all are there. () drops nothing. Raises UserError for another number of probabilities than
    of modalities.
    """
    if not probabilities:
        return images, present
    if len(probabilities) != len(images):
        raise UserError(
            f"config.augment.modality_dropout is {tuple(probabilities)}, but the data set has "
            f"{len(images)} modalities ({', '.join(modalities)}): give a probability for each."
        )
    rate = jnp.float32(probabilities)[:, None]
    had = jnp.ones(images.shape[:2], bool) if present is None else present
    kept = had & ~jax.random.bernoulli(key, rate, images.shape[:2])
    kept = jnp.where(kept.any(axis=0), kept, had)
    return jnp.where(kept[:, :, None, None, None], images, jnp.zeros_like(images)), kept


def augment(
    images: jax.Array,
    key: jax.Array,
    config: ml_collections.ConfigDict,
    mean: Colour = (0.5, 0.5, 0.5),
    std: Colour = (0.5, 0.5, 0.5),
    modalities: Sequence[str] = (),
) -> jax.Array:
    """Training images [M, B, H, W, 3] float32, normalised, from uint8 ones.

    `modalities` names the M; the channels of the visible ones are changed as `channels` says, see
    `inputs.channels`: of rcc before everything else, of the others after it, as in CAJ's release.
    Flip left to right with probability `flip`; a black border of `pad` pixels, then a crop back to
    H x W at a uniform place; random erasing with probability `erase`, which fills its box with
    `erase_fill` after normalisation, or with what `erase_with` says. The M images of a sample are
    treated alike, so that their patches stay aligned; with `per_modality` they are not, as in the
    release.
    """
    count, batch, height, width, _ = images.shape
    flip_key, top_key, left_key, erase_key, shape = draws(
        key, (count, batch), not config.per_modality
    )
    # split has 0-3
    channel_key, noise_key = (jax.random.fold_in(key, number) for number in (4, 5))  # split has 0-3
    if config.channels == "rcc":
        images = of_visible(images, channel_key, config.channels, modalities)
    flip = jnp.broadcast_to(jax.random.bernoulli(flip_key, config.flip, shape), (count, batch))
    images = jnp.where(flip[:, :, None, None, None], images[:, :, :, ::-1], images)
    if config.pad:
        pad = config.pad
        top, left = (
            jnp.broadcast_to(jax.random.randint(k, shape, 0, 2 * pad + 1), (count, batch))
            for k in (top_key, left_key)
        )
        border = ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0))
        images = jnp.pad(images, border)

        def crop(image: jax.Array, top: jax.Array, left: jax.Array) -> jax.Array:
            zero = jnp.zeros_like(top)
            return jax.lax.dynamic_slice(image, (top, left, zero), (height, width, 3))

        images = jax.vmap(jax.vmap(crop))(images, top, left)
    images = normalise(images, mean, std)
    if config.erase:
        hole = jnp.broadcast_to(
            erase_boxes(erase_key, shape, (height, width), config.erase),
            (count, batch, height, width),
        )
        if config.erase_with == "fill":
            filling = jnp.float32(config.erase_fill)[(None,) * 4]
        else:
            filling = noise(noise_key, images.shape, config.erase_with, mean, std)
        images = jnp.where(hole[..., None], filling, images)
    if config.channels not in ("none", "rcc"):
        images = of_visible(images, channel_key, config.channels, modalities)
    return images


def noise(
    key: jax.Array, shape: tuple[int, ...], kind: str, mean: Colour, std: Colour
) -> jax.Array:
    """Random pixel values, uniform from black to white and normalised, for images [M, B, H, W, 3].

    `kind` "random_channel" draws one value of each channel of an image, "random_pixel" one of each
    pixel and channel.
    """
    drawn = (*shape[:2], 1, 1, 3) if kind == "random_channel" else shape
    centre, scale = (jnp.float32(x)[(None,) * 4] for x in (mean, std))
    return (jax.random.uniform(key, drawn) - centre) / scale


def erase_boxes(
    key: jax.Array, shape: tuple[int, int], size: tuple[int, int], probability: float
) -> jax.Array:
    """Where to erase: bool [*shape, H, W], at most one box each (Zhong et al. 2020).

    A box has an area of 2 to 40 % of the image and an aspect ratio uniform in 0.3..3.33. Twenty
    candidates are drawn at once and the first that fits is taken, which is the law of drawing again
    until one fits.
    """
    height, width = size
    on_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
    area = jax.random.uniform(area_key, (*shape, 20), minval=0.02, maxval=0.4) * (height * width)
    aspect = jax.random.uniform(aspect_key, (*shape, 20), minval=0.3, maxval=1 / 0.3)
    tall, wide = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits, -1, keepdims=True)
    tall, wide = (jnp.take_along_axis(x, first, -1)[..., 0] for x in (tall, wide))
    top = jnp.floor(jax.random.uniform(top_key, shape) * (height - tall + 1))
    left = jnp.floor(jax.random.uniform(left_key, shape) * (width - wide + 1))
    on = jax.random.bernoulli(on_key, probability, shape) & fits.any(-1)

    def inside(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
        position = jnp.arange(size, dtype=jnp.float32).reshape((1,) * len(shape) + (size,))
        return (position >= start[..., None]) & (position < (start + length)[..., None])

    box = inside(top, tall, height)[..., :, None] & inside(left, wide, width)[..., None, :]
    return box & on[..., None, None]
