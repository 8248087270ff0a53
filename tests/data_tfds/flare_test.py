import numpy as np
import pytest
from PIL import Image

from data_tfds import flare
from data_tfds.samples import MODALITIES


def slow_histogram_ratio(image):
    """The release's rule, value by value."""
    values = image.astype(np.float32).ravel() / np.float32(255)
    lo, hi = values.min(), values.max()
    if lo == hi:
        return 0.0
    bins = np.minimum(99, np.floor((values - lo) / (hi - lo) * np.float32(100)))
    return np.count_nonzero(bins >= 98) / values.size


@pytest.mark.parametrize("seed", range(5))
def test_histogram_ratio_equals_the_slow_rule(seed):
    rng = np.random.default_rng(seed)
    lo, hi = sorted(rng.choice(256, 2, replace=False))
    image = rng.integers(lo, hi + 1, (9, 7, 3), dtype=np.uint8)
    assert flare.histogram_ratio(image) == slow_histogram_ratio(image)


@pytest.mark.parametrize(
    ("lo", "hi", "value"), [(14, 64, 63), (28, 128, 126), (29, 129, 127), (78, 128, 127)]
)
def test_the_four_values_where_float32_leaves_the_integer_rule(lo, hi, value):
    assert 100 * (value - lo) >= 98 * (hi - lo)
    image = np.full((2, 2, 3), value, np.uint8)
    image[0, 0] = lo
    image[1, 1, 0] = hi
    assert flare.histogram_ratio(image) == 1 / 12  # only hi itself is in the top two bins


def test_histogram_uses_the_range_of_the_image():
    image = np.zeros((10, 10, 3), np.uint8)
    image[0] = 98
    image[1, 0, 0] = 100
    assert flare.histogram_ratio(image) == 31 / 300
    image[1, 0, 0] = 255
    assert flare.histogram_ratio(image) == 1 / 300


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_image_has_no_histogram_flare(value):
    assert flare.histogram_ratio(np.full((4, 4, 3), value, np.uint8)) == 0.0


def test_luma_fraction_counts_251_to_255():
    image = np.full((4, 5, 3), 250, np.uint8)
    assert flare.luma_fraction(image) == 0.0
    image[0, 0] = 251
    image[0, 1] = 255
    assert flare.luma_fraction(image) == 2 / 20
    image[1] = [255, 255, 0]  # luma 226: a saturated pair of channels is no saturated pixel
    assert flare.luma_fraction(image) == 2 / 20


def test_statistics_take_a_pillow_image_too():
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    assert flare.luma_fraction(Image.fromarray(image)) == flare.luma_fraction(image)
    assert flare.histogram_ratio(Image.fromarray(image)) == flare.histogram_ratio(image)


FRACTION = np.array([[0.05, 0.06], [0.01, 0.0], [0.5, 0.04], [0.1, 0.2]], np.float32)
RATIO = np.array([[0.095, 0.2], [0.0949, 0.1], [0.0, 0.0], [0.3, 0.3]], np.float32)


@pytest.mark.parametrize(
    ("statistic", "rule", "threshold", "expected"),
    [
        ("luma", "per_modality", 0.05, [[0, 1], [0, 0], [1, 0], [1, 1]]),
        ("luma", "either", 0.05, [[1, 1], [0, 0], [1, 1], [1, 1]]),
        ("luma", "both", 0.05, [[0, 0], [0, 0], [0, 0], [1, 1]]),
        ("histogram", "per_modality", 0.095, [[1, 1], [0, 1], [0, 0], [1, 1]]),
        ("histogram", "both", 0.095, [[1, 1], [0, 0], [0, 0], [1, 1]]),
    ],
)
def test_labels(statistic, rule, threshold, expected):
    found = flare.labels(
        FRACTION, RATIO, MODALITIES[:2], statistic=statistic, rule=rule, threshold=threshold
    )
    assert found.dtype == bool
    np.testing.assert_array_equal(found, np.array(expected, bool))


@pytest.mark.parametrize("rule", ["per_modality", "either", "both"])
def test_only_the_visible_and_the_near_infrared_are_flared(rule):
    """Columns of other modalities, at any place, are False and have no say."""
    options = {"statistic": "luma", "rule": rule, "threshold": 0.05}
    expected = flare.labels(FRACTION, RATIO, ("visible", "near_infrared"), **options)
    wide = np.ones((4, 3), np.float32)
    wide[:, [2, 0]] = FRACTION
    found = flare.labels(wide, wide, ("near_infrared", "thermal", "visible"), **options)
    np.testing.assert_array_equal(found[:, [2, 0]], expected)
    assert not found[:, 1].any()


def test_a_missing_image_is_not_flared_and_has_no_say():
    present = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
    bright = np.ones((4, 2), np.float32)
    for rule in ("per_modality", "either", "both"):
        found = flare.labels(
            *(bright, bright, MODALITIES[:2]),
            statistic="luma",
            rule=rule,
            threshold=0.05,
            present=present,
        )
        np.testing.assert_array_equal(found, present)


def slow_removal(image, rule):
    """Pixel by pixel; the luma of ITU-R 601 in Pillow's integers."""
    out = image.copy()
    for y, x in np.ndindex(image.shape[:2]):
        r, g, b = (int(value) for value in image[y, x])
        luma = (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16
        saturated = {
            "luma": luma > 250,
            "any": max(r, g, b) > 250,
            "all": min(r, g, b) > 250,
        }[rule]
        if saturated:
            out[y, x] = 0
    return out


@pytest.mark.parametrize("rule", ["luma", "any", "all"])
def test_removal_blackens_just_the_saturated_pixels(rule):
    image = np.random.default_rng(0).integers(244, 256, (16, 16, 3), dtype=np.uint8)
    found = np.asarray(flare.removed(Image.fromarray(image), rule))
    expected = slow_removal(image, rule)
    np.testing.assert_array_equal(found, expected)
    black = (expected == 0).all(axis=2)
    assert black.any()
    assert not black.all()
