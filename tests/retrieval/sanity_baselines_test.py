"""Non-learned features: known values, and what they must and must not see."""

import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.retrieval import metrics, sanity_baselines


def noise(samples=3, height=64, width=40, modalities=3, seed=0):
    shape = (modalities, samples, height, width, 3)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 33), (20, 7), (256, 128)])
def test_thumbnails_equal_a_loop_over_blocks(height, width):
    images = noise(2, height, width)
    rows, columns = min(height, 32), min(width, 32)
    expected = np.empty((2, 3, rows, columns, 3))
    for i in range(rows):
        for j in range(columns):
            block = images[
                :,
                :,
                i * height // rows : (i + 1) * height // rows,
                j * width // columns : (j + 1) * width // columns,
            ]
            expected[:, :, i, j] = block.mean((2, 3)).swapaxes(0, 1)
    expected -= expected.mean((2, 3, 4), keepdims=True)
    actual = sanity_baselines.raw_pixel_features(images)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.reshape(2, -1), atol=2e-4)


def test_thumbnails_do_not_see_brightness_of_a_modality():
    images = noise() // 2
    brighter = images + np.array([10, 60, 100], np.uint8)[:, None, None, None, None]
    np.testing.assert_allclose(
        sanity_baselines.raw_pixel_features(images),
        sanity_baselines.raw_pixel_features(brighter),
        atol=1e-4,
    )


def test_more_samples_than_a_chunk_keep_their_order():
    images = noise(130, 8, 8)
    together = sanity_baselines.raw_pixel_features(images)
    alone = [sanity_baselines.raw_pixel_features(images[:, n : n + 1])[0] for n in range(130)]
    np.testing.assert_array_equal(together, alone)


def test_histogram_of_a_known_image():
    """Half of the centre is black, half pure red; the frame is green and must not count."""
    images = np.zeros((1, 16, 8, 3), np.uint8)
    images[..., 1] = 200
    images[:, 4:12, 2:6] = 0
    images[:, 4:8, 2:6, 0] = 255
    features = sanity_baselines.colour_histogram_features(images)
    expected = np.zeros(512)
    expected[0] = expected[7 * 64] = np.sqrt(0.5)
    np.testing.assert_allclose(features, expected[None], rtol=1e-6)


@pytest.mark.parametrize("bins", [2, 8, 10])
def test_histogram_equals_numpy(bins):
    images = noise(4)[0]
    features = sanity_baselines.colour_histogram_features(images, bins)
    for row, image in zip(features, images[:, 16:48, 10:30], strict=True):
        counts, _ = np.histogramdd(image.reshape(-1, 3), bins, [(0, 256)] * 3)
        np.testing.assert_allclose(row, np.sqrt(counts / counts.sum()).ravel(), rtol=1e-6)
    np.testing.assert_allclose((features**2).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("smallest", [(1, 1), (3, 2)])
def test_tiny_images_have_a_centre(smallest):
    images = noise(2, *smallest)
    assert np.isfinite(sanity_baselines.colour_histogram_features(images[0])).all()
    assert np.isfinite(sanity_baselines.raw_pixel_features(images)).all()


def of_visible(images):
    return sanity_baselines.colour_histogram_features(images[0])


@pytest.mark.parametrize("features", [sanity_baselines.raw_pixel_features, of_visible])
def test_they_retrieve_a_slightly_noisy_copy(features):
    images = np.repeat(np.repeat(noise(6, 4, 4), 8, 2), 8, 3) // 2 + 40
    jitter = np.random.default_rng(1).integers(3, size=images.shape, dtype=np.uint8)
    identity = np.arange(6)
    ranking = metrics.per_query(features(images), features(images + jitter), identity, identity)
    assert ranking.metrics()["mAP"] == 1.0


def test_modalities_may_differ_in_image_size():
    small, large = noise(5, 8, 4, 1)[0], noise(5, 40, 50, 1, seed=1)[0]
    both = sanity_baselines.raw_pixel_features([small, large])
    alone = [sanity_baselines.raw_pixel_features([images]) for images in (small, large)]
    np.testing.assert_array_equal(both, np.concatenate(alone, axis=1))


@pytest.mark.parametrize("images", [(), (noise(2)[0], noise(3)[0])])
def test_modalities_of_different_lengths_are_refused(images):
    with pytest.raises(UserError, match="one image of each per sample"):
        sanity_baselines.raw_pixel_features(images)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(images):
    with pytest.raises(UserError, match="not uint8"):
        sanity_baselines.raw_pixel_features([images])
    with pytest.raises(UserError, match="not uint8"):
        sanity_baselines.colour_histogram_features(images)


def test_bins_out_of_range_are_refused():
    with pytest.raises(UserError, match="1 bins"):
        sanity_baselines.colour_histogram_features(noise()[0], bins=1)
