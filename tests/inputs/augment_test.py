import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.inputs.augment import augment, draws, drop_modalities, erase_boxes, normalise
from tests.support import tiny_run as tiny

KEY = jax.random.key(7)
HEIGHT, WIDTH = 12, 8


def options(**changes):
    values = {"flip": 0.5, "pad": 3, "erase": 0.0, "per_modality": False}
    c = tiny.config().augment
    c.update(values | changes)
    return c


def images(batch=16):
    """Random pixels, alike in the three modalities, so that a shared draw gives equal results."""
    one = np.random.default_rng(0).integers(1, 256, (1, batch, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return jnp.asarray(np.repeat(one, 3, axis=0))


def in_numpy(images, key, c):
    """The same draws, applied one picture at a time."""
    modalities, batch, height, width, _ = images.shape
    flip_key, top_key, left_key, _, shape = draws(key, (modalities, batch), not c.per_modality)
    flip = np.asarray(jax.random.bernoulli(flip_key, c.flip, shape))
    top, left = (
        np.asarray(jax.random.randint(k, shape, 0, 2 * c.pad + 1)) for k in (top_key, left_key)
    )
    out = np.empty(images.shape, np.float32)
    for modality in range(modalities):
        row = modality if c.per_modality else 0
        for i in range(batch):
            picture = np.asarray(images[modality, i])
            if flip[row, i]:
                picture = picture[:, ::-1]
            picture = np.pad(picture, ((c.pad, c.pad), (c.pad, c.pad), (0, 0)))
            y, x = top[row, i], left[row, i]
            picture = picture[y : y + height, x : x + width]
            out[modality, i] = (picture.astype(np.float64) / 255 - 0.5) / 0.5
    return out


def test_normalise_maps_bytes_to_minus_one_to_one():
    x = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    y = np.asarray(normalise(jnp.asarray(x)))
    np.testing.assert_allclose(y, (x.astype(np.float64) / 255 - 0.5) / 0.5, atol=1e-6)
    assert (set(y[0]), set(y[255])) == ({-1.0}, {1.0})


def test_a_backbone_may_have_its_own_mean_and_deviation_of_each_colour():
    """Those of ImageNet, as torchvision's normalisation computes it."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4, 3), dtype=np.uint8)
    expected = (x.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(normalise(jnp.asarray(x), mean, std), expected, atol=2e-6)
    plain = options(flip=0.0, pad=0)
    y = augment(jnp.asarray(x), KEY, plain, mean, std)
    np.testing.assert_array_equal(y, normalise(jnp.asarray(x), mean, std))


def test_nothing_asked_for_is_exactly_normalise():
    x = images()
    for apart in (False, True):
        y = augment(x, KEY, options(flip=0.0, pad=0, per_modality=apart))
        np.testing.assert_array_equal(y, normalise(x))


@pytest.mark.parametrize("apart", [False, True])
def test_flip_pad_and_crop_equal_numpy_with_the_same_draws(apart):
    x, c = images(), options(per_modality=apart)
    y = augment(x, KEY, c)
    np.testing.assert_allclose(y, in_numpy(x, KEY, c), atol=1e-6)
    np.testing.assert_array_equal(np.any(y[0] != y[2]), apart)


def test_every_output_is_a_window_of_the_padded_picture():
    """Without looking at the draws; over a batch every offset and both mirror images occur."""
    x = images(batch=64)
    y = np.round((np.asarray(augment(x, KEY, options(pad=2)))[0] + 1) * 127.5).astype(np.uint8)
    seen = set()
    for picture, result in zip(np.asarray(x[0]), y, strict=True):
        found = [
            (flip, top, left)
            for flip in (False, True)
            for top in range(5)
            for left in range(5)
            for padded in [np.pad(picture[:, ::-1] if flip else picture, ((2, 2), (2, 2), (0, 0)))]
            if np.array_equal(padded[top : top + HEIGHT, left : left + WIDTH], result)
        ]
        assert len(found) == 1
        seen |= set(found)
    flips, tops, lefts = (set(column) for column in zip(*seen, strict=True))
    assert (flips, tops, lefts) == ({False, True}, set(range(5)), set(range(5)))


def test_the_key_decides():
    x, c = images(), options(erase=0.5)
    np.testing.assert_array_equal(augment(x, KEY, c), augment(x, KEY, c))
    assert np.any(augment(x, jax.random.key(8), c) != augment(x, KEY, c))


def boxes(count=4000, size=(32, 16), probability=0.5):
    """(which samples are erased, top, left, height and width of their boxes)."""
    hole = np.asarray(erase_boxes(KEY, (1, count), size, probability))[0]
    on = hole.any(axis=(1, 2))
    rows, columns = hole[on].any(axis=2), hole[on].any(axis=1)
    tall, wide = rows.sum(axis=1), columns.sum(axis=1)
    np.testing.assert_array_equal(hole[on].sum(axis=(1, 2)), tall * wide)  # one full rectangle
    return on, rows.argmax(axis=1), columns.argmax(axis=1), tall, wide


def test_erased_boxes_follow_their_law():
    """Probability, area of 2 to 40 %, aspect ratio 0.3 to 3.33, any place."""
    on, top, left, tall, wide = boxes()
    assert abs(on.mean() - 0.5) < 4 * (0.25 / 4000) ** 0.5
    # Rounding a side by half a pixel each moves area and ratio a little.
    assert ((tall + 0.5) * (wide + 0.5) >= 0.02 * 512).all()
    assert ((tall - 0.5) * (wide - 0.5) <= 0.4 * 512).all()
    assert ((tall + 0.5) / (wide - 0.5) >= 0.3).all()
    assert ((tall - 0.5) / (wide + 0.5) <= 1 / 0.3).all()
    assert (top + tall <= 32).all()
    assert (left + wide <= 16).all()
    share = tall * wide / 512
    assert share.min() < 0.03
    assert share.max() > 0.37
    for start, length, size in ((top, tall, 32), (left, wide, 16)):
        assert (start == 0).any()
        assert (start + length == size).any()
        place = start / np.maximum(size - length, 1)
        assert abs(place.mean() - 0.5) < 0.05


def test_a_candidate_that_does_not_fit_is_drawn_again():
    """In a strip of 64 x 4 four of five candidates are too wide; nearly all samples are erased."""
    on, _, _, tall, wide = boxes(size=(64, 4), probability=1.0)
    assert on.mean() > 0.95
    assert wide.max() <= 3
    assert tall.max() < 64


@pytest.mark.parametrize("apart", [False, True])
def test_erasing_paints_grey_and_nothing_else(apart):
    x = images()
    c = options(flip=0.0, pad=0, erase=1.0, per_modality=apart)
    y = np.asarray(augment(x, KEY, c))
    hole = (y == 0).all(axis=-1)  # no byte maps to exactly 0
    assert hole.any(axis=(2, 3)).mean() > 0.95
    np.testing.assert_array_equal(y[~hole], np.asarray(normalise(x))[~hole])
    assert np.array_equal(hole[0], hole[1]) != apart


def test_modalities_are_dropped_as_often_as_asked_and_never_all():
    pictures, rates = images(4000)[:, :, :2, :2], (0.5, 0.2, 0.0)
    had = np.ones((3, 4000), bool)
    had[2, :2000] = False  # without a thermal image both others may be drawn, and are kept
    found, kept = drop_modalities(pictures, jnp.asarray(had), KEY, rates, tiny.MODALITIES)
    kept = np.asarray(kept)
    assert not (kept & ~had).any()
    assert kept.any(axis=0).all()
    # 0.5 x 0.2 of the first half keep both.
    expected = [0.5 - 0.1 / 2, 0.2 - 0.1 / 2]
    np.testing.assert_allclose(1 - kept[:2].mean(axis=1), expected, atol=0.03)
    np.testing.assert_array_equal(kept[2], had[2])
    np.testing.assert_array_equal(found, np.where(kept[..., None, None, None], pictures, 0))


def test_no_dropout_leaves_the_batch_alone():
    pictures = images(2)
    found, present = drop_modalities(pictures, None, KEY, (), tiny.MODALITIES)
    assert found is pictures
    assert present is None


def test_dropout_needs_a_probability_for_each_modality():
    with pytest.raises(UserError, match=r"modality_dropout is \(0.5, 0.5\), .* 3 modalities"):
        drop_modalities(images(2), None, KEY, (0.5, 0.5), tiny.MODALITIES)
