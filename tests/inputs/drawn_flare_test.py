"""Flare over training images against a slow twin, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facenet_jax.inputs import flare
from facenet_jax.inputs.augment import change_samples
from facenet_jax.types import Batch
from tests.support import tiny_run as tiny

SIZE = (12, 20)


def images(batch=40):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 200, (3, batch, *SIZE, 3), dtype=np.uint8))


def test_the_field_is_that_of_the_twin():
    rng = np.random.default_rng(1)
    sources, streaks = 2, 3
    x, y, strength, radius = rng.uniform(1, 9, (4, sources))
    thin, reach = rng.uniform(1, 9, (2, sources, streaks))
    angle, on = rng.uniform(-1, 2, streaks), np.array([True, False, True])
    expected = np.zeros(SIZE)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            for s in range(sources):
                dx, dy = column - x[s], row - y[s]
                expected[row, column] += strength[s] / (1 + (dx * dx + dy * dy) / radius[s] ** 2)
                for k in range(streaks):
                    across = (dy * np.cos(angle[k]) - dx * np.sin(angle[k])) / thin[s, k]
                    along = (dx * np.cos(angle[k]) + dy * np.sin(angle[k])) / reach[s, k]
                    light = 0.8 * strength[s] / ((1 + across**2) * (1 + along**2))
                    expected[row, column] += light * on[k]
    values = (x, y, strength, radius, thin, reach, angle, on)
    found = flare.field_of(SIZE, *map(jnp.asarray, values))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_some_samples_are_blinded_and_thermal_never():
    before = images()
    there = np.ones((3, 40), bool)
    there[0, ::4] = False
    draw = jax.jit(lambda x, key: flare.flared(x, jnp.asarray(there), key, 0.5, tiny.MODALITIES))
    after, said = (np.asarray(x) for x in draw(before, jax.random.key(0)))
    np.testing.assert_array_equal(after[2], before[2])
    changed = (after != before).any((2, 3, 4))[:2]
    assert not changed[0, ::4].any()  # these images are missing
    np.testing.assert_array_equal(changed[0, there[0]], changed[1, there[0]])  # spared: a haze
    assert 10 < changed[1].sum() < 30
    share = (after[:2].min(-1) >= 251).mean((2, 3))  # the core saturates all three channels
    blinded = share > 0.05
    assert blinded[changed].mean() > 0.5
    np.testing.assert_array_equal(blinded, said[:2])
    assert not said[2].any()
    assert (blinded <= changed).all()
    assert (blinded.any(0) == changed.any(0))[there[0]].all()
    assert share.max() < 0.35


@pytest.mark.slow
def test_without_near_infrared_visible_is_always_hit():
    before = images()[:1]
    after, said = flare.flared(before, None, jax.random.key(1), 1.0, tiny.MODALITIES[:1])
    assert ((np.asarray(after).min(-1) >= 251).mean((2, 3)) > 0.05).all()
    assert np.asarray(said).all()


def test_a_sample_that_flare_is_drawn_over_is_labelled_as_flared():
    c = tiny.config().augment
    had = np.zeros((3, 40), bool)
    had[0, :3] = True
    batch = Batch(None, jnp.zeros(40, jnp.int32), {"flare": jnp.asarray(had)})
    same, off = change_samples(images(), batch, jax.random.key(3), c, tiny.MODALITIES)
    np.testing.assert_array_equal(same, images())
    np.testing.assert_array_equal(off.labels["flare"], had)
    c.flare = 0.5
    drawn, on = change_samples(images(), batch, jax.random.key(3), c, tiny.MODALITIES)
    label = np.asarray(on.labels["flare"])
    blinded = (np.asarray(drawn).min(-1) >= 251).mean((2, 3)) > 0.05
    np.testing.assert_array_equal(label, had | blinded)
    assert 5 < label[0].sum() < 35
