"""The corruptions of MUN's Table 5: strength, chance, and what they are by definition."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data_tfds.errors import UserError
from facenet_jax.inputs import corruption_blurs, corruption_weather, corruptions

SIZE = (96, 48)
RANDOM = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur"),
    *("motion_blur", "fog", "frost", "snow", "spatter", "rain", "elastic_transform"),
}


def picture(seed):
    """uint8 [H, W, 3]: dark ground that changes slowly, patches of one colour, sharp edges."""
    rng = np.random.default_rng(seed)
    ground = ndimage.gaussian_filter(rng.random((*SIZE, 3)), (12, 12, 0)) * 0.5
    patches = ndimage.gaussian_filter(rng.random(SIZE), 4) > 0.5
    return corruptions.as_bytes(ground + 0.5 * patches[:, :, None] * rng.random(3))


PICTURES = [picture(seed) for seed in range(6)]
GREY = np.full((*SIZE, 3), 128, np.uint8)


def corrupt(image, name, severity, seed=0):
    return corruptions.corrupt(image, name, severity, np.random.default_rng(seed))


def distance(name, severity):
    """The mean absolute difference that a corruption makes, over some images."""
    found = [corrupt(image, name, severity, seed) for seed, image in enumerate(PICTURES)]
    return np.mean([abs(a.astype(float) - b) for a, b in zip(found, PICTURES, strict=True)])


def test_there_are_twenty_types():
    assert len(corruptions.TYPES) == 20
    assert set(corruptions.TYPES) >= RANDOM


@pytest.mark.parametrize("name", corruptions.TYPES)
@pytest.mark.parametrize("severity", [1, 5])
def test_a_corruption_gives_another_image_by_its_seed(name, severity):
    image = PICTURES[0].copy()
    found = corrupt(image, name, severity)
    np.testing.assert_array_equal(image, PICTURES[0])
    assert (found.dtype, found.shape) == (np.uint8, image.shape)
    assert (found != image).any()
    np.testing.assert_array_equal(found, corrupt(image, name, severity))
    assert (found != corrupt(image, name, severity, seed=1)).any() == (name in RANDOM)


@pytest.mark.parametrize("name", [name for name in corruptions.TYPES if name != "saturate"])
def test_severity_5_is_farther_from_the_image_than_severity_1(name):
    assert distance(name, 5) > distance(name, 1)


@pytest.mark.parametrize("name", corruptions.TYPES)
@pytest.mark.parametrize("shape", [(32, 16), (16, 32), (7, 5)])
@pytest.mark.parametrize("value", [0, 255])
def test_small_black_and_white_images_are_images_too(name, shape, value):
    image = np.full((*shape, 3), value, np.uint8)
    for severity in corruptions.SEVERITIES:
        assert corrupt(image, name, severity).shape == image.shape


def test_gaussian_noise_has_its_deviation():
    noise = corrupt(GREY, "gaussian_noise", 1).astype(float) / 255 - 128 / 255
    assert noise.std() == pytest.approx(0.08, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.003)


def test_shot_noise_counts_photons():
    """Of 60 photons for white, a value of v has the variance v / 60."""
    found = corrupt(GREY, "shot_noise", 1) / 255
    assert found.mean() == pytest.approx(128 / 255, abs=0.005)
    assert found.var() == pytest.approx(128 / 255 / 60, rel=0.05)


def test_speckle_noise_grows_with_the_value():
    dark = corrupt(GREY // 2, "speckle_noise", 1) / 255
    assert dark.std() == pytest.approx(0.15 * 64 / 255, rel=0.03)


def test_impulses_have_their_share():
    found = corrupt(GREY, "impulse_noise", 5)
    assert set(np.unique(found)) == {0, 128, 255}
    assert (found == 0).mean() == pytest.approx(0.27 / 2, abs=0.01)
    assert (found == 255).mean() == pytest.approx(0.27 / 2, abs=0.01)


def test_brightness_adds_to_the_largest_channel():
    image = np.uint8([[[100, 50, 0], [0, 0, 0], [250, 125, 25]]])
    # 51 of 255 is severity 2; the ratios of the channels stay, and the value stops at 255.
    expected = np.rint([[[151, 75.5, 0], [51, 51, 51], [255, 127.5, 25.5]]])
    found = corrupt(image, "brightness", 2)
    np.testing.assert_allclose(found, expected, atol=1)
    assert found[..., 0].tolist() == [[151, 51, 255]]


def test_contrast_is_about_the_mean_of_a_channel():
    image = PICTURES[0]
    mean = image.mean(axis=(0, 1))
    np.testing.assert_allclose(
        corrupt(image, "contrast", 3), mean + 0.2 * (image - mean), atol=0.51
    )


def test_saturation_by_the_library():
    """Of HSV by Pillow, whose hue and saturation are rounded to bytes."""
    image = PICTURES[1]
    for severity, factor in ((1, 0.3), (3, 2)):
        hsv = np.array(Image.fromarray(image).convert("HSV"))
        hsv[..., 1] = np.minimum(np.rint(hsv[..., 1] * factor), 255)
        expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")).astype(int)
        assert abs(corrupt(image, "saturate", severity) - expected).max() <= 4
    assert corrupt(GREY, "saturate", 5)[0, 0].tolist() == [128, 102, 102]  # 128 x (1 - 0.2)


def test_jpeg_is_pillows():
    file = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(file, "JPEG", quality=15)
    np.testing.assert_array_equal(
        corrupt(PICTURES[0], "jpeg_compression", 3), np.asarray(Image.open(file))
    )


def test_pixelate_takes_means():
    """A quarter of the length: squares of 4 x 4 pixels."""
    found = corrupt(PICTURES[0], "pixelate", 5).astype(float)
    squares = PICTURES[0].reshape(SIZE[0] // 4, 4, SIZE[1] // 4, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(found, squares.repeat(4, axis=0).repeat(4, axis=1), atol=1)


def test_a_point_out_of_focus_is_a_disk():
    image = np.zeros((41, 41, 3), np.float32)
    image[20, 20] = 1
    found = corruption_blurs.defocus_blur(image, 5, None)[:, :, 0]
    assert found.sum() == pytest.approx(1, rel=1e-5)
    away = np.hypot(*(np.indices((41, 41)) - 20))
    assert found[away < 7] == pytest.approx(found[20, 20], rel=1e-4)
    assert found[away > 13].max() == 0


def test_motion_is_to_one_side():
    image = np.zeros((31, 61, 1), np.float32)
    image[15, 30] = 1
    found = corruption_blurs.drawn_out(image, 10, 3.0, 0.0)[15, :, 0]
    weight = np.exp(-(np.arange(21) ** 2) / 18)
    np.testing.assert_allclose(found[10:31], (weight / weight.sum())[::-1], rtol=1e-5)
    assert found[31:].max() == 0


def test_glass_only_moves_pixels(monkeypatch):
    """Without the Gaussians around it, the pixels are the same ones, in other places."""
    image = np.arange(20 * 30 * 3, dtype=np.float32).reshape(20, 30, 3)
    monkeypatch.setattr(corruption_blurs, "smoothed", lambda image, sigma: image)
    found = corruption_blurs.glass_blur(image, 5, np.random.default_rng(0))
    assert (found != image).any()
    np.testing.assert_array_equal(np.sort(found.ravel()), image.ravel())
    np.testing.assert_array_equal(found[..., 1] - found[..., 0], 1)


def test_enlarging_keeps_the_middle():
    ramp = np.tile(np.arange(48, dtype=np.float32)[None, :, None], (96, 1, 2))
    found = corruption_blurs.enlarged(ramp, 2.0)[:, 4:-4]
    np.testing.assert_allclose(found, 23.5 + (ramp[:, 4:-4] - 23.5) / 2, atol=1e-4)


def test_a_cloud_fills_its_range_and_is_finer_where_it_decays_less():
    rough, smooth = (
        corruption_weather.plasma((64, 64), decay, np.random.default_rng(0)) for decay in (1.4, 3)
    )
    for cloud in (rough, smooth):
        assert (cloud.min(), cloud.max()) == (0, 1)
    assert abs(np.diff(rough)).mean() > 2 * abs(np.diff(smooth)).mean()


def test_types_and_severities_are_drawn_uniformly():
    """Of 1000 images, 50 +- 7 have a type and 200 +- 13 a severity."""
    images = np.full((1000, 8, 4, 3), 100, np.uint8)
    _, names, severities = corruptions.corrupted(images, 3)
    _, counts = np.unique(names, return_counts=True)
    assert (len(counts), counts.sum()) == (20, 1000)
    assert counts.min() > 25
    assert counts.max() < 80
    values, counts = np.unique(severities, return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5]
    assert counts.min() > 150
    assert counts.max() < 250


def test_an_image_does_not_depend_on_the_others():
    images = np.stack(PICTURES)
    whole, names, severities = corruptions.corrupted(images, 7)
    other = images.copy()
    other[:3] = 0
    part = corruptions.corrupted(other[2:], 7, first=2)
    np.testing.assert_array_equal(part[0][1:], whole[3:])
    assert (part[1].tolist(), part[2].tolist()) == (names[2:].tolist(), severities[2:].tolist())
    assert (corruptions.corrupted(images, 8)[0] != whole).any()
    assert len(corruptions.corrupted(images[:0], 7)[0]) == 0


@pytest.mark.parametrize(
    ("image", "name", "severity", "message"),
    [
        (GREY, "hail", 1, "There is no corruption 'hail'; there are gaussian_noise"),
        (GREY, "fog", 6, "The severity of a corruption is 1, 2, 3, 4 or 5, not 6"),
        (GREY / 255, "fog", 1, r"is uint8 \[height, width, 3\], not float64 \[96, 48, 3\]"),
        (GREY[..., 0], "fog", 1, r"not uint8 \[96, 48\]"),
    ],
)
def test_what_cannot_be_corrupted(image, name, severity, message):
    with pytest.raises(UserError, match=message):
        corrupt(image, name, severity)
