"""The renderer: the same key gives the same picture, flare blinds two modalities, never thermal."""

import numpy as np
import pytest

from data_tfds.rendered import renderer, vehicle

SAMPLES = [(identity, sample) for identity in range(12) for sample in range(6)]


def bright(image) -> float:
    """The share of pixels that the flare label counts."""
    return float((np.asarray(image.convert("L")) >= 251).mean())


def test_picture_depends_on_its_key_alone():
    first = renderer.render(3, 5, 7)
    for other in (1, 2, 9):
        renderer.render(3, other, 0)
    vehicle.vehicle.cache_clear()
    again = renderer.render(3, 5, 7)
    assert (first.view, first.night, first.scene) == (again.view, again.night, again.scene)
    for a, b in zip(first.images, again.images, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("other", [(4, 5, 7), (3, 6, 7), (3, 5, 8)])
def test_any_part_of_the_key_changes_the_picture(other):
    first, second = renderer.render(3, 5, 7), renderer.render(*other)
    for a, b in zip(first.images, second.images, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() > 2


@pytest.mark.parametrize("size", [(256, 128), (128, 256), (512, 256), (260, 132)])
def test_sizes(size):
    shot = renderer.render(0, 0, 0, size)
    assert [image.size for image in shot.images] == [size] * 3
    assert [image.mode for image in shot.images] == ["RGB"] * 3


def test_near_infrared_and_thermal_are_grey():
    shot = renderer.render(0, 1, 2, flare=True)
    for image in shot.images[1:]:
        levels = np.asarray(image)
        np.testing.assert_array_equal(levels[..., 0], levels[..., 1])
        np.testing.assert_array_equal(levels[..., 0], levels[..., 2])


def test_eight_samples_show_eight_views_and_they_are_what_the_pictures_show():
    for identity in range(5):
        views = [renderer.view_of(0, identity, sample) for sample in range(16)]
        assert sorted(views[:8]) == list(range(1, 9))
        assert views[8:] == views[:8]
        assert renderer.render(0, identity, 3).view == views[3]


def test_flared_pictures_exceed_five_percent_and_others_stay_below():
    for identity, sample in SAMPLES:
        shot = renderer.render(0, identity, sample, flare=True)
        assert any(shot.flared)
        for image, flared in zip(shot.images, (*shot.flared, False), strict=True):
            assert 0.07 < bright(image) < 0.4 if flared else bright(image) < 0.01


def test_pictures_without_flare_have_no_saturated_pixels():
    for identity, sample in SAMPLES:
        shot = renderer.render(0, identity, sample, flare=False)
        assert shot.flared == (False, False)
        assert max(bright(image) for image in shot.images) == 0


def test_flare_leaves_thermal_untouched_and_hides_the_others():
    lost = []
    for identity, sample in SAMPLES[::4]:
        clean = renderer.render(0, identity, sample, flare=False)
        hit = renderer.render(0, identity, sample, flare=True)
        np.testing.assert_array_equal(np.asarray(clean.images[2]), np.asarray(hit.images[2]))
        for number in (0, 1):
            if hit.flared[number]:
                a, b = (np.asarray(t.images[number].convert("L"), float) for t in (clean, hit))
                lost.append(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert np.median(lost) < 0.4


def test_flare_hits_about_forty_percent_and_the_modalities_differ():
    flared = np.array([renderer.render(1, i, k).flared for i in range(25) for k in range(8)])
    assert 0.3 < flared.any(1).mean() < 0.5
    assert 0.1 < (flared[:, 0] != flared[:, 1]).mean() < 0.25


def test_flare_covers_partly_different_places_in_the_two_modalities():
    overlaps = []
    for identity, sample in SAMPLES:
        shot = renderer.render(0, identity, sample, flare=True)
        if all(shot.flared):
            a, b = (np.asarray(image.convert("L")) >= 251 for image in shot.images[:2])
            overlaps.append((a & b).sum() / (a | b).sum())
    assert 0.1 < np.mean(overlaps) < 0.8


def test_night_is_dark_to_the_visible_alone():
    levels = {True: [], False: []}
    for identity, sample in SAMPLES:
        shot = renderer.render(0, identity, sample, flare=False)
        levels[shot.night].append([np.asarray(image).mean() for image in shot.images])
    night, day = (np.mean(levels[when], axis=0) for when in (True, False))
    assert 0.25 < len(levels[True]) / len(SAMPLES) < 0.55
    assert night[0] < 0.4 * day[0]
    assert night[2] > 0.6 * day[2]


def test_paint_reflectance_and_warmth_are_independent():
    bodies = []
    for identity in range(150):
        car = vehicle.vehicle(0, identity)
        centre = np.abs(car.normals[:, 1]) > 0.9
        bodies.append(car.materials[car.looks[centre]].mean(0))
    visible, infrared, warmth = np.array(bodies)[:, [0, 1, 2]].mean(1), *np.array(bodies)[:, 3:5].T
    correlation = np.corrcoef([visible, infrared, warmth]) - np.eye(3)
    assert np.abs(correlation).max() < 0.25


def test_surfaces_fit_the_map_and_lie_in_range():
    for identity in range(60):
        car = vehicle.vehicle(0, identity)
        assert car.materials.min() >= 0
        assert car.materials.max() <= 1
        lengths = np.linalg.norm(car.normals, axis=1)
        assert np.all((lengths == 0) | (np.abs(lengths - 1) < 1e-6))
        assert car.corners[:, 2].min() >= -1e-9


def test_the_near_infrared_follows_the_paint_where_it_is_asked_to():
    """And then alone: the visible and the thermal picture stay, and so does everything at 0."""
    for identity in range(3):
        apart, halfway, bound = (vehicle.vehicle(0, identity, x).materials for x in (0.0, 0.5, 1.0))
        lightness = apart[:, :3] @ (0.3, 0.59, 0.11)
        np.testing.assert_allclose(bound[:, 3], lightness)
        np.testing.assert_allclose(halfway[:, 3], (apart[:, 3] + lightness) / 2)
        np.testing.assert_array_equal(np.delete(bound, 3, 1), np.delete(apart, 3, 1))
    plain, follows = (
        renderer.render(0, 1, 0, infrared_follows_paint=share).images for share in (0.0, 1.0)
    )
    same = [np.array_equal(*pair) for pair in zip(plain, follows, strict=True)]
    assert same == [True, False, True]
