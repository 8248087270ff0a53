"""One tri-spectral picture of the rendered set: visible, near-infrared and thermal of one instant.

Everything opaque is drawn once, as a map of surface numbers at twice the size; a band is that map
with a palette of its own, moved by its misalignment. Light, blur, flare and noise follow per band.
Every picture is a pure function of (seed, identity, sample, size).
"""

import dataclasses
import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_tfds import scenery
from data_tfds.vehicle import Vehicle, identity_generator, vehicle

VERSION = 1
"""Raised whenever a pixel changes, so that trees of an older renderer are not taken for new ones."""

VIEWS = 8
SCENES = 200
NIGHT_SHARE = 0.4
FLARE_SHARE = 0.4
SCALE = 2  # supersampling
_MARGIN = 4  # pixels around the frame that misalignment may bring into it
_CEILING = 238.0  # brightest level without flare: below the 251 at which flare is counted
_SAMPLE_STREAM, _FLARE_STREAM = 2, 4


@dataclasses.dataclass(frozen=True)
class Triplet:
    """Three pictures of one instant and what the file name tells about them."""

    images: tuple[Image.Image, Image.Image, Image.Image]  # visible, near-infrared, thermal; RGB
    view: int  # 1..8, 1 from the front, then counter-clockwise in steps of 45 degrees
    night: bool
    scene: int  # 1..200
    flared: tuple[bool, bool]  # whether a light blinds the visible, the near-infrared camera


class _Canvas:
    """The map of surface numbers [2(H + 2m), 2(W + 2m)] and one row of facts per number."""

    def __init__(self, size: tuple[int, int]):
        self.size = tuple(SCALE * (n + 2 * _MARGIN) for n in size)
        self.labels = Image.new("L", self.size)
        self.draw = ImageDraw.Draw(self.labels)
        self.numbers, self.rows = {}, []

    def paint(self, points, key, row) -> None:
        """Fills a polygon; polygons with the same key share one number and one row."""
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = min(len(self.rows), 255)
            if number == len(self.rows):
                self.rows.append(row)
        self.draw.polygon(points, fill=number)


@dataclasses.dataclass(frozen=True)
class _Shot:
    """Where the camera and the light stand."""

    yaw: float
    right: np.ndarray
    up: np.ndarray
    towards: np.ndarray  # from the vehicle to the camera, unit
    distance: float  # metres
    scale: float  # canvas pixels per unit of the picture plane
    centre: np.ndarray  # canvas pixels
    shift: np.ndarray  # picture plane coordinates of the vehicle's middle

    def project(self, points: np.ndarray) -> np.ndarray:
        """Canvas pixels [n, 2] of points [n, 3] in metres."""
        flat = _plane(points, self.right, self.up, self.towards, self.distance) - self.shift
        return self.centre + flat * np.array([self.scale, -self.scale])


def _plane(points, right, up, towards, distance):
    axes = points @ np.stack([right, up, towards], axis=1)
    return axes[:, :2] / (distance - axes[:, 2:])


def _aim(car: Vehicle, rng, view: int, size: tuple[int, int], canvas) -> _Shot:
    """A camera that sees the vehicle from `view` and fills most of the frame with it."""
    yaw = math.radians(45 * (view - 1) + rng.uniform(-11, 11))
    pitch = math.radians(rng.uniform(11, 25))
    towards = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch),
                        math.sin(pitch)])  # fmt: skip
    right = np.array([-math.sin(yaw), math.cos(yaw), 0.0])
    up = np.cross(towards, right)
    distance = car.footprint[0] * rng.uniform(2.0, 3.2)
    flat = _plane(car.corners, right, up, towards, distance)
    low, high = flat.min(0), flat.max(0)
    span = high - low
    fill = rng.uniform(0.82, 0.94)
    scale = SCALE * min(size[0] * fill / span[0], size[1] * fill * 0.96 / span[1])
    slack = np.array(size) * SCALE - span * scale
    centre = np.array(canvas) / 2 + slack * rng.uniform(-0.22, 0.22, 2)
    return _Shot(yaw, right, up, towards, distance, scale, centre, (low + high) / 2)


def _paint_vehicle(canvas: _Canvas, car: Vehicle, shot: _Shot) -> None:
    points = shot.project(car.corners).tolist()
    eye = shot.towards * shot.distance
    facing = ((eye - car.centres) * car.normals).sum(1)
    seen = (facing > 0) | ~car.normals.any(1)
    depth = car.part_centres @ shot.towards
    rank = np.lexsort((depth, car.levels)).argsort()
    starts = np.concatenate([[0], car.ends[:-1]])
    for i in np.argsort(rank[car.parts], kind="stable"):
        if seen[i]:
            normal, look = car.normals[i], int(car.looks[i])
            polygon = [tuple(p) for p in points[starts[i] : car.ends[i]]]
            key = (look, *np.round(normal, 2).tolist())
            canvas.paint(polygon, key, (*car.materials[look], *normal, 1.0))


def _paint_shadow(canvas: _Canvas, car: Vehicle, shot: _Shot, light: np.ndarray) -> None:
    """Darkens the ground under the vehicle and, by day, on the side away from the sun."""
    length, width, height = car.footprint
    corner = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * np.array([length, width]) / 2
    drop = -light[:2] / max(light[2], 0.35) * height * 0.5
    ground = np.array([*(corner * 1.02), *(corner * 0.95 + drop)])
    hull = _hull(ground)
    points = shot.project(np.column_stack([hull, np.zeros(len(hull))]))
    shade = (0.1, 0.1, 0.11, 0.1, 0.42, 0, 0, 0, 0, 0, 0, 0.0)
    canvas.paint([tuple(p) for p in points.tolist()], "shadow", shade)


def _hull(points: np.ndarray) -> np.ndarray:
    """The convex hull of a few points in the plane [n, 2], in order."""
    points = sorted(map(tuple, points.tolist()))

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

    return np.array(chain(points) + chain(reversed(points)))


def _unit(x, y, z):
    vector = np.array([x, y, z], float)
    return vector / np.linalg.norm(vector)


def _palettes(rows: np.ndarray, shot: _Shot, light, night: bool, rng):
    """Levels 0..255 of every surface in the three bands: [K, 3], [K], [K]."""
    colour, infrared, warmth = rows[:, :3], rows[:, 3], rows[:, 4]
    gloss, glow, retro = rows[:, 5], rows[:, 6], rows[:, 7]
    normal, on_car = rows[:, 8:11], rows[:, 11]
    lit = np.where(normal.any(1), np.maximum(normal @ light, 0), 0.7)
    facing = np.where(normal.any(1), np.maximum(normal @ shot.towards, 0), 0.75)
    upward = np.maximum(normal[:, 2], 0)

    if night:
        tint = np.array([1.0, rng.uniform(0.72, 0.95), rng.uniform(0.4, 0.85)])
        strength = rng.uniform(0.16, 0.4)
        shade = strength * (0.35 + 0.65 * lit) * (1 - 0.35 * (1 - on_car))
        visible = 255 * colour * shade[:, None] * tint
        visible += 190 * glow[:, None] * np.sqrt(colour)
    else:
        tint = 1 + rng.uniform(-0.14, 0.14, 3) * np.array([1, 0.4, 1])
        shade = rng.uniform(0.6, 1.08) * (rng.uniform(0.38, 0.58) + 0.6 * lit)
        visible = 255 * colour * shade[:, None] * tint
        sky = np.array([0.8, 0.9, 1.0]) * rng.uniform(20, 75)
        visible += (gloss * (0.25 + upward))[:, None] * sky
    # The near-infrared camera brings its own lamp beside the lens; by day the sun adds to it.
    coaxial = rng.uniform(0.55, 0.8) if night else rng.uniform(0.3, 0.5)
    sun = 0.06 if night else rng.uniform(0.3, 0.5)
    behind = 0.45 if night else 1.0  # the lamp does not reach far
    near = 235 * infrared * (0.16 + coaxial * facing + sun * lit)
    near = near * np.where(on_car > 0, 1.0, behind) + 130 * retro + 60 * glow * night
    # Metal under the open sky shows the sun's warmth by day and the cold sky at night.
    solar = (-0.06 if night else 0.1) * upward * on_car
    gain, offset = rng.uniform(0.85, 1.1), rng.uniform(-0.05, 0.06)
    thermal = 232 * np.clip((warmth + solar - 0.45) * gain + 0.45 + offset, 0.02, 1)
    cap = lambda x: np.clip(x, 0, _CEILING).astype(np.uint8)  # noqa: E731
    return cap(visible), cap(near), cap(thermal)


def _soft_light(car: Vehicle, shot: _Shot, size, rng) -> np.ndarray:
    """Light on the bodywork as factors [H, W]: shoulder bright, sill dark, cloudy elsewhere."""
    reduced = (size[0] // 4, size[1] // 4)
    plane = Image.new("L", reduced, 128)
    draw = ImageDraw.Draw(plane)
    length, width, height = car.footprint
    seen = np.sign(shot.towards[1]) * width / 2
    for x, y in (((-length / 2, length / 2), (seen, seen)),
                 (2 * (np.sign(shot.towards[0]) * length / 2,), (-width / 2, width / 2))):  # fmt: skip
        for low, high, level in ((0.0, 0.16, 70), (0.16, 0.3, 104), (0.42, 0.54, 158)):
            ring = [(x[0], y[0], low), (x[1], y[1], low), (x[1], y[1], high), (x[0], y[0], high)]
            corners = np.array(ring) * (1, 1, height)
            flat = (shot.project(corners) / SCALE - _MARGIN) / 4
            draw.polygon([tuple(p) for p in flat.tolist()], fill=level)
    plane = plane.filter(ImageFilter.BoxBlur(1.5))
    cloud = Image.fromarray(rng.integers(108, 149, (4, 7), dtype=np.uint8)).resize(
        reduced, Image.Resampling.BICUBIC
    )
    mixed = np.asarray(plane, np.float32) * np.asarray(cloud, np.float32) / 128
    return np.asarray(Image.fromarray(mixed).resize(size, Image.Resampling.BILINEAR)) / 128


@functools.lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """Standard normal noise drawn once; pictures take windows of it, which is far cheaper."""
    rng = np.random.Generator(np.random.Philox(12345))
    return rng.standard_normal(1 << 20, dtype=np.float32)


def _noise(rng, shape) -> np.ndarray:
    count = math.prod(shape)
    bank = _noise_bank()
    if count >= len(bank):
        return rng.standard_normal(shape, dtype=np.float32)
    start = int(rng.integers(len(bank) - count))
    return bank[start : start + count].reshape(shape)


def _develop(canvas, palette, size, rng, blur, offset) -> np.ndarray:
    """One band before light and noise: float32 [H, W] or [H, W, 3] in levels."""
    lut = np.zeros((256, *palette.shape[1:]), np.uint8)
    lut[: len(palette)] = palette
    x, y = (SCALE * _MARGIN + o for o in offset)
    window = canvas.labels.crop((x, y, x + SCALE * size[0], y + SCALE * size[1]))
    if palette.ndim == 2:
        window.putpalette(lut.tobytes())
        picture = window.convert("RGB")
    else:
        picture = window.point(lut.tolist())
    picture = picture.reduce(SCALE)
    if max(blur) > 0.3:
        picture = picture.filter(ImageFilter.BoxBlur(blur))
    return np.asarray(picture, np.float32)


def render(
    seed: int, identity: int, sample: int, size: tuple[int, int] = (256, 128),
    flare: bool | None = None,
) -> Triplet:  # fmt: skip
    """The picture of one sample of an identity in the three spectra.

    Args:
        seed, identity, sample: the key of everything random; identity and sample count from 0.
        size: width and height in pixels.
        flare: None draws it (40 % of the samples); True and False force it, all else staying equal.
    """
    car = vehicle(seed, identity)
    key = np.random.SeedSequence((seed, identity, sample, _SAMPLE_STREAM))
    rng = np.random.Generator(np.random.Philox(key))
    view = view_of(seed, identity, sample)
    night = bool(rng.random() < NIGHT_SHARE)
    scene = 1 + int(rng.integers(SCENES))
    azimuth = rng.uniform(0, 2 * math.pi)
    light = _unit(math.cos(azimuth), math.sin(azimuth), rng.uniform(0.6, 1.8))

    canvas = _Canvas(size)
    place = scenery.scene_generator(seed, scene)

    def fill(points, surface, brightness):
        *reflectance, day, dark = surface
        row = np.array([*reflectance, dark if night else day, *[0.0] * 7])
        row[:4] = np.clip(row[:4] * brightness, 0, 0.9)
        canvas.paint(points, (surface, brightness), row)

    scenery.paint_scene(fill, place, canvas.size)
    shot = _aim(car, rng, view, size, canvas.size)
    _paint_shadow(canvas, car, shot, _unit(0, 0, 1) if night else light)
    _paint_vehicle(canvas, car, shot)
    palettes = _palettes(np.array(canvas.rows), shot, light, night, rng)

    motion = (abs(rng.normal(0, 0.9)) * size[0] / 256, rng.uniform(0, 0.35))
    offsets = [(0, 0)] + [
        (int(rng.integers(-6, 7)), int(rng.integers(-4, 5))) for _ in range(2)
    ]  # half pixels
    blurs = (motion, motion, (0.6 * motion[0] + 1.0, 1.0))
    soft = _soft_light(car, shot, size, rng)
    bands = []
    for band, (palette, blur, offset) in enumerate(zip(palettes, blurs, offsets, strict=True)):
        picture = _develop(canvas, palette, size, rng, blur, offset)
        if band == 0:
            picture = picture * soft[..., None]
        elif band == 1:
            picture = picture * (0.4 + 0.6 * soft)
        bands.append(picture)

    flared = _flare(bands, car, shot, size, night, flare, (seed, identity, sample))
    grain = (rng.uniform(4, 8) if night else rng.uniform(1.5, 4), rng.uniform(3, 7),
             rng.uniform(2, 4))  # fmt: skip
    images = []
    for band, (picture, sigma, hit) in enumerate(zip(bands, grain, (*flared, False), strict=True)):
        ceiling = 255.0 if band < 2 and hit else _CEILING
        picture = picture + np.float32(sigma) * _noise(rng, picture.shape)
        levels = np.clip(picture, 0, ceiling).astype(np.uint8)
        image = Image.fromarray(levels)
        images.append(image if band == 0 else Image.merge("RGB", (image,) * 3))
    return Triplet(tuple(images), view, night, scene, flared)


def view_of(seed: int, identity: int, sample: int) -> int:
    """View 1..8 of a sample: every eight samples in a row show all eight, in the identity's order."""
    return int(identity_generator(seed, identity).permutation(VIEWS)[sample % VIEWS]) + 1


def _flare(bands, car, shot, size, night, wanted, key) -> tuple[bool, bool]:
    """Blinds the visible and near-infrared bands in place; says which of them were hit.

    About a fifth of the flares each hit one band alone or hardly touch the other.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((*key, _FLARE_STREAM))))
    drawn = rng.random() < FLARE_SHARE
    if not (drawn if wanted is None else wanted):
        return False, False
    which = rng.choice(3, p=[0.6, 0.2, 0.2])
    hits = (which in (0, 1), which in (0, 2))
    lamps = _light_sources(car, shot, night, size, rng)
    for band, hit in enumerate(hits):
        chosen = lamps[rng.permutation(len(lamps))[: int(rng.integers(1, 3))]]
        share = rng.uniform(0.1, 0.2)
        glare = _glare(chosen, size, share, rng)
        if not hit:  # the weaker band only gets a veil
            bands[band] = 0.8 * bands[band] + rng.uniform(0.04, 0.1) * np.minimum(
                glare, 255
            ).reshape(bands[band].shape[:2] + (1,) * (bands[band].ndim - 2))
            continue
        # The exposure falls with the light in the lens, and stray light lifts what is left.
        keep, veil = rng.uniform(0.12, 0.35), rng.uniform(15, 60)
        picture = bands[band] * np.float32(keep)
        if picture.ndim == 3:
            tone = np.array([1.0, rng.uniform(0.9, 1.0), rng.uniform(0.78, 1.0)], np.float32)
            bands[band] = picture + (glare + np.float32(veil))[..., None] * tone
            bands[band][glare > 250] = 256.0
        else:
            bands[band] = picture + glare + np.float32(veil)
    return hits


def _light_sources(car, shot, night, size, rng) -> np.ndarray:
    """Where light enters the lens, [n, 2] pixels: lamps at night, mirrored sun on paint by day."""
    if night:
        facing = math.cos(shot.yaw)
        points = np.concatenate([car.headlamps, car.taillamps] if abs(facing) < 0.3
                                else [car.headlamps if facing > 0 else car.taillamps])  # fmt: skip
    else:
        seen = car.glints @ shot.towards
        points = car.glints[np.argsort(-seen)[:3]]
    pixels = shot.project(points) / SCALE - _MARGIN
    # Lamps of other traffic and reflections on wet ground: anywhere over the vehicle.
    middle = shot.centre / SCALE - _MARGIN
    stray = middle + rng.uniform(-0.32, 0.32, (2, 2)) * np.array(size)
    inside = np.clip(np.concatenate([pixels, stray]), 0.08 * np.array(size), 0.92 * np.array(size))
    return inside


def _glare(lamps: np.ndarray, size, share: float, rng) -> np.ndarray:
    """Light in the lens [H, W] in levels, with a `share` of the picture above 255."""
    reduced = (size[0] // 2, size[1] // 2)
    y, x = np.ogrid[: reduced[1], : reduced[0]]
    x, y = x.astype(np.float32), y.astype(np.float32)
    unit = min(reduced)
    field = np.zeros((reduced[1], reduced[0]), np.float32)
    angle = rng.uniform(-0.3, 0.3)
    spikes = int(rng.integers(1, 4))
    for px, py in lamps / 2:
        strength = rng.uniform(0.6, 1.0)
        dx, dy = x - px, y - py
        squared = dx * dx + dy * dy
        radius = unit * rng.uniform(0.12, 0.22)
        field += strength / (1 + squared / radius**2)
        for k in range(spikes):
            turn = angle + k * math.pi / spikes
            along = dx * math.cos(turn) + dy * math.sin(turn)
            across = dy * math.cos(turn) - dx * math.sin(turn)
            reach, thin = unit * rng.uniform(0.5, 1.1), unit * rng.uniform(0.025, 0.05)
            field += 0.8 * strength / ((1 + (across / thin) ** 2) * (1 + (along / reach) ** 2))
    level = np.partition(field.ravel(), -int(share * field.size))[-int(share * field.size)]
    field *= np.float32(256.0) / level
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR))
