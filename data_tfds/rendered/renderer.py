"""One sample of the rendered set: a visible, a near-infrared and a thermal picture of one instant.

Everything opaque is drawn once, as a map of surface numbers at twice the size; a modality is
that map with a palette of its own, moved by its misalignment. Light, blur, flare and noise follow.
Every picture is a pure function of (seed, identity, sample, size).
"""

import dataclasses
import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_tfds.rendered import glare, scenery
from data_tfds.rendered.vehicle import Vehicle, identity_generator, vehicle

VERSION = 5
"""Raised whenever a pixel changes, so that a tree of an older renderer is never taken for new."""

VIEWS = 8
SCENES = 200
NIGHT_SHARE = 0.4
_SCALE = 2  # supersampling
_MARGIN = 4  # pixels around the frame that misalignment may bring into it
_CEILING = 238.0  # brightest level without flare: below the 251 at which flare is counted
_SAMPLE_STREAM = 2


@dataclasses.dataclass(frozen=True)
class Sample:
    """Three pictures of one instant and what the file name tells about them."""

    images: tuple[Image.Image, Image.Image, Image.Image]  # visible, near-infrared, thermal; RGB
    view: int  # 1..8, 1 from the front, then on in steps of 45 degrees
    night: bool
    scene: int  # 1..200
    flared: tuple[bool, bool]  # whether a light blinds the visible, the near-infrared camera


def view_of(seed: int, identity: int, sample: int) -> int:
    """The view 1..8 of a sample: eight samples in a row show all views, in the identity's order."""
    return int(identity_generator(seed, identity).permutation(VIEWS)[sample % VIEWS]) + 1


def render(
    seed: int,
    identity: int,
    sample: int,
    size: tuple[int, int] = (256, 128),
    flare: bool | None = None,
    infrared_follows_paint: float = 0.0,
    flare_share: float = glare.SHARE,
    flare_saturated: tuple[float, float] = glare.SATURATED,
) -> Sample:
    """The picture of one sample of an identity in the three modalities.

    Args:
        seed, identity, sample: the key of everything random; identity and sample count from 0.
        size: width and height in pixels.
        flare: None draws it with `flare_share`; True and False force it, all else staying equal.
        infrared_follows_paint: share in 0..1 of near-infrared reflectance that is the paint's
            lightness; the rest is drawn apart from the paint.
        flare_share: probability of flare; a higher one only adds flared samples.
        flare_saturated: least and largest share of saturated pixels of a blinded picture.
    """
    car = vehicle(seed, identity, infrared_follows_paint)
    key = np.random.SeedSequence((seed, identity, sample, _SAMPLE_STREAM))
    rng = np.random.Generator(np.random.Philox(key))
    view = view_of(seed, identity, sample)
    night = bool(rng.random() < NIGHT_SHARE)
    scene = 1 + int(rng.integers(SCENES))
    azimuth, rise = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1.8)
    sun = np.array([math.cos(azimuth), math.sin(azimuth), rise]) / math.hypot(1, rise)

    canvas = _Canvas(size)
    shot = _aim(car, rng, view, size)
    _paint_place(canvas, scenery.scene_generator(seed, scene), night)
    _paint_shadow(canvas, car, shot, np.array([0.0, 0.0, 1.0]) if night else sun)
    _paint_vehicle(canvas, car, shot)
    palettes = _palettes(np.array(canvas.rows), shot, sun, night, rng)
    pictures = _develop(canvas, palettes, size, rng)
    light, clouds = _bodywork_light(car, shot, size), _clouds(rng, size)
    pictures[0] = pictures[0] * (light * clouds)[..., None]
    pictures[1] = pictures[1] * (0.6 + 0.4 * light) * clouds
    pictures[2] = pictures[2] * (0.8 + 0.2 * light) * (0.6 + 0.4 * clouds)

    lamps, sample_key = _lamps(car, shot, night, size, rng), (seed, identity, sample)
    flared = glare.blind(pictures, lamps, sample_key, flare, flare_share, flare_saturated)
    grain = (rng.uniform(3, 7) if night else rng.uniform(1.5, 4), rng.uniform(2, 5),
             rng.uniform(1.5, 3.5))  # fmt: skip
    images = []
    for picture, sigma, hit in zip(pictures, grain, (*flared, False), strict=True):
        picture = picture + np.float32(sigma) * _noise(rng, picture.shape)
        image = Image.fromarray(np.clip(picture, 0, 255 if hit else _CEILING).astype(np.uint8))
        images.append(image if picture.ndim == 3 else Image.merge("RGB", (image,) * 3))
    return Sample(tuple(images), view, night, scene, flared)


class _Canvas:
    """The map of surface numbers at twice the size, margin included, and one row per number.

    A row holds the columns of livery.COLUMNS, the outward normal (zero: none) and 1 on the vehicle.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = tuple(_SCALE * (n + 2 * _MARGIN) for n in size)
        self.labels = Image.new("L", self.size)
        self.draw = ImageDraw.Draw(self.labels)
        self.numbers, self.rows = {}, []

    def paint(self, points: np.ndarray, key, row) -> None:
        """Fills the polygon points [n, 2]; polygons with the same key share a number and a row."""
        number = self.numbers.setdefault(key, len(self.rows))
        if number == len(self.rows):
            self.rows.append(row)
        self.draw.polygon(np.asarray(points, float).ravel().tolist(), fill=number)


@dataclasses.dataclass(frozen=True)
class _Shot:
    """Where the camera stands and how its picture fills the frame."""

    yaw: float  # radians, 0 in front of the vehicle
    axes: np.ndarray  # [3, 3] columns: right, up, from the vehicle to the camera; unit
    distance: float  # metres
    scale: float = 1.0  # pixels per unit of the picture plane
    middle: tuple[float, float] = (0.0, 0.0)  # of the vehicle in the picture plane
    centre: tuple[float, float] = (0.0, 0.0)  # pixels where that middle lies

    @property
    def towards(self) -> np.ndarray:
        """The unit vector from the vehicle to the camera."""
        return self.axes[:, 2]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels of the frame [n, 2] of points [n, 3] in metres."""
        seen = points @ self.axes
        plane = seen[:, :2] / (self.distance - seen[:, 2:])
        return self.centre + (plane - self.middle) * (self.scale, -self.scale)

    def on_canvas(self, points: np.ndarray) -> np.ndarray:
        """The same in pixels of the canvas."""
        return _SCALE * (self.project(points) + _MARGIN)


def _aim(car: Vehicle, rng, view: int, size: tuple[int, int]) -> _Shot:
    """A camera that sees the vehicle from `view` and fills most of the frame with it."""
    yaw = math.radians(45 * (view - 1) + rng.uniform(-7, 7))
    pitch = math.radians(rng.uniform(18, 26))
    towards = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch),
                        math.sin(pitch)])  # fmt: skip
    right = np.array([-math.sin(yaw), math.cos(yaw), 0.0])
    axes = np.stack([right, np.cross(towards, right), towards], axis=1)
    shot = _Shot(yaw, axes, car.size[0] * rng.uniform(2.0, 3.2))
    plane = shot.project(car.corners)
    low, high = plane.min(0), plane.max(0)
    frame, span = np.array(size), high - low
    scale = min(frame / span) * rng.uniform(0.88, 0.95)
    centre = frame / 2 + (frame - span * scale) * rng.uniform(-0.1, 0.1, 2)
    middle = (low + high) / 2 * (1, -1)
    return dataclasses.replace(shot, scale=scale, middle=tuple(middle), centre=tuple(centre))


def _paint_place(canvas: _Canvas, rng, night: bool) -> None:
    def fill(points, surface, brightness):
        *reflectance, day_warmth, night_warmth = surface
        row = np.zeros(12)
        row[:4] = np.clip(np.array(reflectance) * brightness, 0, 0.9)
        row[4] = night_warmth if night else day_warmth
        canvas.paint(points, (surface, brightness), row)

    scenery.paint_scene(fill, rng, canvas.size)


def _paint_vehicle(canvas: _Canvas, car: Vehicle, shot: _Shot) -> None:
    points = shot.on_canvas(car.corners)
    eye = shot.towards * shot.distance
    seen = (((eye - car.centres) * car.normals).sum(1) > 0) | ~car.normals.any(1)
    depth = car.part_centres @ shot.towards
    rank = np.lexsort((depth, car.levels)).argsort()
    starts = np.concatenate([[0], car.ends[:-1]])
    rows = np.column_stack([car.materials[car.looks], car.normals, np.ones(len(car.looks))])
    keys = [row.tobytes() for row in rows.round(2)]
    for i in np.argsort(rank[car.parts], kind="stable"):
        if seen[i]:
            canvas.paint(points[starts[i] : car.ends[i]], keys[i], rows[i])


def _paint_shadow(canvas: _Canvas, car: Vehicle, shot: _Shot, light: np.ndarray) -> None:
    """Darkens the ground under the vehicle and on the side away from the light."""
    length, width, height = car.size
    corner = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * (length / 2, width / 2)
    drop = -light[:2] / max(light[2], 0.35) * height * 0.5
    outline = _hull(np.concatenate([corner * 1.02, corner * 0.95 + drop]))
    points = shot.on_canvas(np.column_stack([outline, np.zeros(len(outline))]))
    canvas.paint(points, "shadow", np.array([0.11, 0.11, 0.13, 0.06, 0.14, *[0.0] * 7]))


def _hull(points: np.ndarray) -> np.ndarray:
    """The convex hull of a few points [n, 2] of the plane, in order."""
    ordered = sorted(map(tuple, points.tolist()))

    def chain(sequence):
        line = []
        for p in sequence:
            while len(line) > 1 and (
                (line[-1][0] - line[-2][0]) * (p[1] - line[-2][1])
                <= (line[-1][1] - line[-2][1]) * (p[0] - line[-2][0])
            ):
                line.pop()
            line.append(p)
        return line[:-1]

    return np.array(chain(ordered) + chain(reversed(ordered)))


def _palettes(rows: np.ndarray, shot: _Shot, sun, night: bool, rng) -> list[np.ndarray]:
    """Levels of every surface in the three modalities: uint8 [K, 3], [K], [K]."""
    colour, infrared, warmth, gloss, glow, retro = (rows[:, :3], *rows[:, 3:8].T)
    normal, on_car = rows[:, 8:11], rows[:, 11]
    bent = normal.any(1)  # the scenery has no normals
    lit = np.where(bent, np.maximum(normal @ sun, 0), 0.7)
    facing = np.where(bent, np.maximum(normal @ shot.towards, 0), 0.75)
    upward = np.maximum(normal[:, 2], 0)

    if night:  # street lamps are yellow, and they stand over the road
        tint = np.array([1.0, rng.uniform(0.8, 0.98), rng.uniform(0.6, 0.95)])
        shade = rng.uniform(0.28, 0.55) * (0.55 + 0.45 * lit) * (0.5 + 0.5 * on_car)
        visible = 255 * colour * shade[:, None] * tint
        visible += 190 * glow[:, None] * np.sqrt(colour)
    else:
        tint = 1 + rng.uniform(-0.1, 0.1, 3)
        shade = rng.uniform(0.75, 1.1) * (rng.uniform(0.45, 0.6) + 0.5 * lit)
        visible = 255 * colour * shade[:, None] * tint
        sky = np.array([0.8, 0.9, 1.0]) * rng.uniform(20, 75)
        visible += (gloss * (0.25 + upward))[:, None] * sky
    # The near-infrared camera brings its own lamp beside the lens; by day the sun adds to it.
    lamp, sunlight = rng.uniform(0.3, 0.4), 0.0 if night else rng.uniform(0.08, 0.2)
    near = 255 * infrared * (rng.uniform(0.5, 0.58) + lamp * facing + sunlight * lit)
    reach = np.where(on_car > 0, 1.0, 0.4 if night else 0.65)  # at night the lamp fades behind
    near = near * reach + 130 * retro + 60 * glow * night
    # Metal under the open sky takes the sun's warmth by day and the sky's cold at night.
    solar = (-0.04 if night else 0.05) * upward * on_car
    gain, offset = rng.uniform(0.95, 1.1), rng.uniform(-0.03, 0.03)
    thermal = 236 * np.clip((warmth + solar - 0.42) * gain + 0.42 + offset, 0.03, 1)
    return [np.clip(levels, 0, _CEILING).astype(np.uint8) for levels in (visible, near, thermal)]


def _develop(canvas: _Canvas, palettes, size: tuple[int, int], rng) -> list[np.ndarray]:
    """The pictures before light and noise, float32 [H, W, 3], [H, W], [H, W]: moved and blurred."""
    unit = min(size) / 128
    motion = np.array([abs(rng.normal(0, 0.7)), rng.uniform(0, 0.35)]) * unit
    blurs = (motion, motion, 0.6 * motion + 1.3 * unit)  # thermal lenses are soft
    pictures = []
    for number, (palette, blur) in enumerate(zip(palettes, blurs, strict=True)):
        # Up to 3 and 2 pixels between the cameras, in half pixels.
        shift = rng.integers((-6, -4), (7, 5)) * (number > 0)
        x, y = (_SCALE * _MARGIN + shift).tolist()
        picture = canvas.labels.crop((x, y, x + _SCALE * size[0], y + _SCALE * size[1]))
        table = np.zeros((256, *palette.shape[1:]), np.uint8)
        table[: len(palette)] = palette
        if palette.ndim == 2:
            picture.putpalette(table.tobytes())
            picture = picture.convert("RGB")
        else:
            picture = picture.point(table.tolist())
        picture = picture.reduce(_SCALE)
        if max(blur) > 0.3:
            picture = picture.filter(ImageFilter.BoxBlur(tuple(blur.tolist())))
        pictures.append(np.asarray(picture, np.float32))
    return pictures


def _bodywork_light(car: Vehicle, shot: _Shot, size: tuple[int, int]) -> np.ndarray:
    """Factors [H, W] that round the flat flanks: shoulder bright, sill dark, soft in between."""
    reduced = (size[0] // 4, size[1] // 4)
    plane = Image.new("L", reduced, 128)
    draw = ImageDraw.Draw(plane)
    length, width, height = car.size
    side, end = np.sign(shot.towards[1]) * width / 2, np.sign(shot.towards[0]) * length / 2
    edges = (((-length / 2, side), (length / 2, side)), ((end, -width / 2), (end, width / 2)))
    for low, high, level in ((0.0, 0.16, 70), (0.16, 0.3, 104), (0.42, 0.54, 158)):
        for a, b in edges:
            strip = np.array([(*a, low), (*b, low), (*b, high), (*a, high)]) * (1, 1, height)
            draw.polygon((shot.project(strip) / 4).ravel().tolist(), fill=level)
    plane = plane.filter(ImageFilter.BoxBlur(1.5 * min(size) / 128))
    return np.asarray(plane.resize(size, Image.Resampling.BILINEAR), np.float32) / 128


def _clouds(rng, size: tuple[int, int]) -> np.ndarray:
    """Slow changes of the light over the picture: factors [H, W] around 1."""
    coarse = Image.fromarray(rng.uniform(0.88, 1.12, (4, 7)).astype(np.float32))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))


def _lamps(car: Vehicle, shot: _Shot, night: bool, size: tuple[int, int], rng) -> np.ndarray:
    """Where light may enter the lens [n, 2], in pixels: lamps at night, mirrored sun by day."""
    ahead = math.cos(shot.yaw)
    if not night:
        points = car.glints[np.argsort(-(car.glints @ shot.towards))[:3]]
    elif abs(ahead) < 0.3:
        points = np.concatenate([car.headlamps, car.taillamps])
    else:
        points = car.headlamps if ahead > 0 else car.taillamps
    # Lamps of other traffic and mirrors on the street: anywhere over the vehicle.
    stray = shot.centre + rng.uniform(-0.32, 0.32, (2, 2)) * size
    frame = np.array(size)
    return np.clip(np.concatenate([shot.project(points), stray]), 0.08 * frame, 0.92 * frame)


@functools.lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """Standard normal noise drawn once; pictures take windows of it, which is far cheaper."""
    return np.random.Generator(np.random.Philox(1)).standard_normal(1 << 20, dtype=np.float32)


def _noise(rng, shape: tuple[int, ...]) -> np.ndarray:
    bank, count = _noise_bank(), math.prod(shape)
    if count >= len(bank):
        return rng.standard_normal(shape, dtype=np.float32)
    start = int(rng.integers(len(bank) - count))
    return bank[start : start + count].reshape(shape)
