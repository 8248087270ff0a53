"""Flare drawn over training images: light in the lens that blinds visible and near-infrared.

The renderer's physics (data_tfds/rendered/glare.py) on the device: one or two sources at any place,
each a core with a halo and up to three streaks; so bright that a share of 9 to 15 % of the picture
is saturated. A picture that is hit loses exposure and is veiled; one that is spared while the other
modality is hit gets a haze. Thermal images stay as they are.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.flare import MODALITIES

SOURCES, STREAKS = 2, 3
WHICH = np.array([[True, True], [True, False], [False, True]])
WHICH_SHARES = (0.56, 0.22, 0.22)
"""Which of visible and near-infrared are hit, and how often."""


def flared(
    images: jax.Array,
    present: jax.Array | None,
    key: jax.Array,
    probability: float,
    modalities: Sequence[str],
) -> tuple[jax.Array, jax.Array]:
    """(images uint8 [M, B, H, W, 3] with flare over each sample with this probability, which of
    them are blinded by it: bool [M, B]).

    `modalities` names the M, `present` [M, B] says which images there are (None: all). Data without
    visible or without near-infrared images have the other blinded whenever a sample is hit.
    """
    batch = images.shape[1]
    on_key, which_key, light_key = jax.random.split(key, 3)
    on = jax.random.bernoulli(on_key, probability, (batch,))
    which = jax.random.choice(which_key, 3, (batch,), p=jnp.asarray(WHICH_SHARES))
    hits = jnp.asarray(WHICH)[which].T  # [2, B]
    there = jnp.ones(images.shape[:2], bool) if present is None else present
    blinded = jnp.zeros_like(there)
    places = [modalities.index(m) if m in modalities else None for m in MODALITIES]
    for number, place in enumerate(places):
        if place is None:
            continue
        hit = hits[number] if None not in places else jnp.ones(batch, bool)
        keys = jax.random.split(jax.random.fold_in(light_key, number), batch)
        tinted = number == 0  # lamps are warm, and a colour camera sees it
        drawn = jax.vmap(lambda x, k, h, t=tinted: composited(x, k, h, t))(images[place], keys, hit)
        lit = on & there[place]
        changed = jnp.where(lit[:, None, None, None], drawn, images[place])
        images = images.at[place].set(changed)
        blinded = blinded.at[place].set(lit & hit)
    return images, blinded


def composited(image: jax.Array, key: jax.Array, hit: jax.Array, tinted: bool) -> jax.Array:
    """One uint8 image [H, W, 3] with flare over it: blinded where `hit`, else with a haze."""
    keys = jax.random.split(key, 5)
    light = light_in_lens(keys[0], image.shape[:2])
    tint = jnp.ones(3)
    if tinted:
        low = jnp.float32([1.0, 0.88, 0.7])
        tint = jax.random.uniform(keys[1], (3,), minval=low, maxval=1.0)
    light = jnp.maximum(
        light[..., None] * tint[None, None], jnp.where(light > 250, 256.0, 0.0)[..., None]
    )
    keep = jax.random.uniform(keys[2], minval=0.3, maxval=0.5)
    veil = jax.random.uniform(keys[3], minval=10.0, maxval=40.0)
    haze = jax.random.uniform(keys[4], minval=0.05, maxval=0.12)
    picture = image.astype(jnp.float32)
    blinded = picture * keep + light + veil
    hazy = picture * 0.75 + haze * jnp.minimum(light, 255.0)
    return jnp.clip(jnp.where(hit, blinded, hazy), 0, 255).astype(jnp.uint8)


def light_in_lens(key: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Levels of light [H, W]; a share of 9 to 15 % of the picture lies above 256."""
    names = ("x", "y", "strength", "radius", "thin", "reach", "turn", "count", "share")
    k = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    height, width = size
    unit = min(size)

    def draw(name: str, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
        return jax.random.uniform(k[name], shape, minval=low, maxval=high)

    streaks, second = jax.random.randint(k["count"], (2,), 1, jnp.array([STREAKS + 1, 3]))
    field = field_of(
        size,
        x=draw("x", (SOURCES,), 0, width),
        y=draw("y", (SOURCES,), 0, height),
        strength=jnp.where(
            jnp.arange(SOURCES) < second, draw("strength", (SOURCES,), 0.6, 1.0), 0.0
        ),
        radius=unit * draw("radius", (SOURCES,), 0.14, 0.24),
        thin=unit * draw("thin", (SOURCES, STREAKS), 0.025, 0.05),
        reach=unit * draw("reach", (SOURCES, STREAKS), 0.5, 1.1),
        angle=draw("turn", (), -0.3, 0.3)
        + jnp.arange(STREAKS, dtype=jnp.float32) * (jnp.pi / streaks.astype(jnp.float32)),
        on=jnp.arange(STREAKS) < streaks,
    )
    rank = (draw("share", (), 0.09, 0.15) * field.size).astype(jnp.int32)
    return field * (256.0 / jnp.sort(field.ravel())[field.size - rank])


def field_of(size, x, y, strength, radius, thin, reach, angle, on) -> jax.Array:
    """The light [H, W] of sources [S] with streaks [S, K], of which `on` [K] are there.

    A source is strength / (1 + (r / radius)^2); a streak at `angle` falls off across it within
    `thin` and along it within `reach` pixels, at 0.8 of the strength.
    """
    rows, columns = (jnp.arange(n, dtype=jnp.float32) for n in size)
    dy = rows[None, :, None] - y[:, None, None]  # [S, H, 1]
    dx = columns[None, None, :] - x[:, None, None]  # [S, 1, W]
    core = strength[:, None, None] / (1 + (dx**2 + dy**2) / radius[:, None, None] ** 2)
    cosine, sine = (f(angle)[None, :, None, None] for f in (jnp.cos, jnp.sin))
    dy, dx = dy[:, None], dx[:, None]  # [S, 1, H, W]
    across = (dy * cosine - dx * sine) / thin[:, :, None, None]
    along = (dx * cosine + dy * sine) / reach[:, :, None, None]
    streaks = 0.8 * strength[:, None, None, None] / ((1 + across**2) * (1 + along**2))
    return core.sum(0) + jnp.where(on[None, :, None, None], streaks, 0.0).sum((0, 1))
