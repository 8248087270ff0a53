"""Augmentation on the device: flip, pad and crop, erase. Pure functions of a key."""

import jax
import jax.numpy as jnp
import ml_collections


def normalise(images: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [-1, 1]: (x / 255 - 0.5) / 0.5."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def draws(key: jax.Array, shape: tuple[int, int], shared: bool) -> tuple[jax.Array, ...]:
    """Keys of `flip, top, left, erase` and the shape they draw; one row for all bands if shared."""
    return *jax.random.split(key, 4), ((1, shape[1]) if shared else shape)


def augment(images: jax.Array, key: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Training images [M, B, H, W, 3] float32 in [-1, 1] from uint8 ones.

    Flip left to right with probability `flip`; a black border of `pad` pixels, then a crop back to
    H x W at a uniform place; random erasing with probability `erase`. `draw` = "shared" treats the
    M images of a triplet alike, so that their patches stay aligned; "independent" does not, as the
    release.
    """
    bands, batch, height, width, _ = images.shape
    flip_key, top_key, left_key, erase_key, shape = draws(
        key, (bands, batch), config.draw == "shared"
    )
    flip = jnp.broadcast_to(jax.random.bernoulli(flip_key, config.flip, shape), (bands, batch))
    images = jnp.where(flip[:, :, None, None, None], images[:, :, :, ::-1], images)
    if config.pad:
        pad = config.pad
        top, left = (
            jnp.broadcast_to(jax.random.randint(k, shape, 0, 2 * pad + 1), (bands, batch))
            for k in (top_key, left_key)
        )
        border = ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0))
        images = jnp.pad(images, border)

        def crop(image: jax.Array, top: jax.Array, left: jax.Array) -> jax.Array:
            zero = jnp.zeros_like(top)
            return jax.lax.dynamic_slice(image, (top, left, zero), (height, width, 3))

        images = jax.vmap(jax.vmap(crop))(images, top, left)
    images = normalise(images)
    if config.erase:
        hole = jnp.broadcast_to(
            erase_boxes(erase_key, shape, (height, width), config.erase),
            (bands, batch, height, width),
        )
        images = jnp.where(hole[..., None], jnp.zeros_like(images), images)
    return images


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
