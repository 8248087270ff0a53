"""Channels of visible images and what erasing puts there, each against NumPy with its draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from facenet_jax.inputs import channels
from facenet_jax.inputs.augment import OPTIONS, augment, normalise
from facenet_jax.options import defaults

KEY = jax.random.key(11)
MODALITIES = ("infrared", "visible")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def options(**changes):
    plain = {"flip": 0.0, "pad": 0, "erase": 0.0, "per_modality": True}
    return ConfigDict({**defaults(OPTIONS), **plain, **changes})


def augmented(x, c, modalities=MODALITIES):
    """`augment` in one program, as training has it."""
    return jax.jit(lambda x: augment(x, KEY, c, MEAN, STD, modalities))(x)


def images(batch=64, height=6, width=4):
    shape = (2, batch, height, width, 3)
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def pictures(image, kind):
    """Every picture that an image [H, W, 3] float64 may become, in the order of the draw."""
    one = [np.repeat(image[..., c : c + 1], 3, axis=2) for c in range(3)]
    weights = (0.299, 0.587, 0.114) if kind == "rcc" else (0.2989, 0.587, 0.114)
    grey = np.repeat((image * weights).sum(-1, keepdims=True), 3, axis=2)
    return {
        "rcc": [image[..., list(o)] for o in itertools.permutations(range(3))] + [grey],
        "exchange": one,
        "exchange_grey": [*one, grey],
        "adapt": [*one, image],
        "adapt_grey": [*one, *one, grey, image],
    }[kind]


def choice(kind, batch):
    """The picture of each visible image, with the draws of the device."""
    key = jax.random.fold_in(jax.random.fold_in(KEY, 4), MODALITIES.index("visible"))
    return np.asarray(jax.random.randint(key, (batch,), 0, len(channels.PICTURES[kind])))


@pytest.mark.parametrize("kind", list(channels.PICTURES))
def test_channels_equal_numpy_with_the_same_draws(kind):
    x = images()
    y = np.asarray(augmented(x, options(channels=kind)))
    np.testing.assert_allclose(y[0], normalise(x[0], MEAN, STD), atol=1e-6)  # infrared stays
    chosen = choice(kind, x.shape[1])
    for i, number in enumerate(chosen):
        pixels = np.asarray(x[1, i], np.float64)
        if kind == "rcc":  # of bytes, before normalisation
            expected = (np.round(pictures(pixels, kind)[number]) / 255 - MEAN) / STD
        else:
            expected = pictures((pixels / 255 - MEAN) / STD, kind)[number]
        np.testing.assert_allclose(y[1, i], expected, atol=2e-5)


@pytest.mark.parametrize("kind", list(channels.PICTURES))
def test_every_picture_has_its_chance(kind):
    drawn = choice(kind, 4000)
    share = np.bincount(drawn) / 4000
    expected = 1 / len(channels.PICTURES[kind])
    assert np.abs(share - expected).max() < 5 * (expected / 4000) ** 0.5


def test_rcc_of_bytes_is_bytes_and_grey_is_pillows():
    x = images()[1]
    y = channels.drawn(x, KEY, "rcc")
    assert y.dtype == jnp.uint8
    chosen = np.asarray(jax.random.randint(KEY, (len(x),), 0, 7))
    pixels = np.asarray(x[chosen == 6], int)
    fixed = (pixels @ np.array([19595, 38470, 7471]) + 32768) >> 16  # what Pillow computes
    assert len(pixels) > 3
    assert np.abs(np.asarray(y[chosen == 6], int) - fixed[..., None]).max() <= 1
    np.testing.assert_array_equal(y[chosen == 0], x[chosen == 0])


def test_without_a_visible_modality_nothing_changes():
    x = images()
    for names in ((), ("thermal", "infrared")):
        y = augmented(x, options(channels="adapt"), names)
        np.testing.assert_allclose(y, normalise(x, MEAN, STD), atol=1e-6)


def erased(kind, batch=64):
    x = images(batch, 16, 8)
    y = augmented(x, options(erase=0.5, erase_with=kind))
    plain = augmented(x, options(erase=0.5, erase_fill=(9.0, 9.0, 9.0)))
    hole = np.asarray((plain == 9.0).all(-1))
    np.testing.assert_array_equal(np.asarray(y)[~hole], np.asarray(plain)[~hole])
    return np.asarray(y), hole


@pytest.mark.parametrize("kind", ["random_channel", "random_pixel"])
def test_erasing_with_random_values_equals_numpy_with_the_same_draws(kind):
    y, hole = erased(kind)
    assert 0.3 < hole.any(axis=(2, 3)).mean() < 0.7
    shape = (*y.shape[:2], 1, 1, 3) if kind == "random_channel" else y.shape
    drawn = np.asarray(jax.random.uniform(jax.random.fold_in(KEY, 5), shape), np.float64)
    expected = np.broadcast_to((drawn - MEAN) / STD, y.shape)
    np.testing.assert_allclose(y[hole], expected[hole], atol=1e-5)
    one = y[0, hole[0].any(axis=(1, 2))][0][hole[0, hole[0].any(axis=(1, 2))][0]]
    assert (len(np.unique(one, axis=0)) == 1) == (kind == "random_channel")


def test_the_new_options_draw_nothing_from_the_old_keys():
    """Flip, crop and box stay where they are whatever is done to channels and fillings."""
    x = images(16, 16, 8)
    settings = {"flip": 0.5, "pad": 3, "erase": 0.5}
    plain, other = (
        np.asarray(augmented(x, options(**settings, **changes)))
        for changes in ({}, {"channels": "adapt_grey"})
    )
    np.testing.assert_array_equal(plain[0], other[0])
    assert (plain[1] != other[1]).any()
