"""The place around a vehicle in the rendered set: surfaces of a scene, drawn from its own stream.

A scene is shared by many identities, so nothing in it tells who stands in front of it.
"""

import numpy as np

_SCENE_STREAM = 3

# red, green, blue, near infrared, temperature by day, temperature by night. Places are duller,
# darker in the near infrared (the lamp stands far away) and cooler than vehicles that were driven.
_SURFACES = {
    "sky": (0.68, 0.76, 0.86, 0.14, 0.02, 0.01),
    "asphalt": (0.36, 0.36, 0.37, 0.16, 0.24, 0.15),
    "concrete": (0.56, 0.55, 0.52, 0.24, 0.22, 0.13),
    "grass": (0.33, 0.4, 0.25, 0.34, 0.15, 0.09),
    "earth": (0.48, 0.42, 0.35, 0.22, 0.21, 0.11),
    "leaves": (0.2, 0.28, 0.17, 0.36, 0.11, 0.09),
    "trunk": (0.25, 0.21, 0.17, 0.2, 0.14, 0.11),
    "brick": (0.48, 0.35, 0.3, 0.26, 0.19, 0.14),
    "plaster": (0.68, 0.66, 0.6, 0.3, 0.2, 0.13),
    "steel": (0.5, 0.53, 0.56, 0.22, 0.15, 0.09),
    "window": (0.2, 0.25, 0.3, 0.1, 0.14, 0.2),
    "paint": (0.84, 0.84, 0.8, 0.4, 0.21, 0.14),
    "rail": (0.66, 0.68, 0.7, 0.3, 0.16, 0.1),
    "hill": (0.4, 0.45, 0.44, 0.25, 0.12, 0.09),
}


def scene_generator(seed: int, scene: int) -> np.random.Generator:
    """The random stream of a scene, the same for every vehicle that passes it."""
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence((seed, scene, _SCENE_STREAM)))
    )


def paint_scene(fill, rng: np.random.Generator, size: tuple[int, int]) -> None:
    """Paints sky, ground and what stands between them over the whole canvas.

    fill(points, surface row of 6, brightness): paints a polygon given in canvas pixels.
    """
    width, height = size
    horizon = height * rng.uniform(0.12, 0.46)
    unit = min(size)

    def flat(name, x0, y0, x1, y1, light=1.0):
        fill([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], _SURFACES[name], light)

    flat("sky", 0, 0, width, horizon + 1, rng.uniform(0.75, 1.05))
    ground = str(rng.choice(["asphalt", "concrete", "asphalt", "earth", "grass"]))
    tone = rng.uniform(0.75, 1.2)
    for i in range(4):  # the ground darkens a little towards the camera
        y = horizon + (height - horizon) * (i / 4) ** 1.3
        flat(ground, 0, y, width, height, tone * (1.08 - 0.05 * i))
    _PLACES[rng.integers(len(_PLACES))](flat, fill, rng, width, horizon, unit)
    _road_marks(fill, rng, width, height, horizon)


def _road_marks(fill, rng, width, height, horizon) -> None:
    kind = rng.integers(4)
    middle = width * rng.uniform(0.2, 0.8)
    if kind == 1:  # parking bays run towards a vanishing point
        for k in range(-3, 4):
            x = middle + k * width * 0.34
            far = middle + k * width * 0.12
            near = [(x, height), (x + width * 0.02, height)]
            fill([*near, (far + width * 0.007, horizon), (far, horizon)], _SURFACES["paint"], 0.85)
    elif kind == 2:  # a lane line across the picture
        slope, y = rng.uniform(-0.08, 0.08) * height, height * rng.uniform(0.8, 0.95)
        thick = height * 0.018
        line = [(0, y), (width, y + slope), (width, y + slope + thick), (0, y + thick)]
        fill(line, _SURFACES["paint"], 0.9)
    elif kind == 3:  # dashes
        y, step = height * rng.uniform(0.82, 0.96), width * 0.16
        for x in np.arange(-step * rng.random(), width, step):
            dash = [(x, y), (x + step * 0.55, y), (x + step * 0.5, y + height * 0.02)]
            fill([*dash, (x - step * 0.05, y + height * 0.02)], _SURFACES["paint"], 0.9)


def _street(flat, fill, rng, width, horizon, unit) -> None:
    x = -width * 0.1 * rng.random()
    while x < width:
        wide, tall = width * rng.uniform(0.14, 0.34), horizon * rng.uniform(0.45, 1.0)
        wall = str(rng.choice(["brick", "plaster", "concrete", "steel"]))
        light = rng.uniform(0.6, 1.1)
        flat(wall, x, horizon - tall, x + wide, horizon + unit * 0.02, light)
        rows, columns = int(rng.integers(1, 4)), int(rng.integers(2, 5))
        for row in range(rows):
            for column in range(columns):
                left = x + wide * (column + 0.25) / columns
                top = horizon - tall + tall * (row + 0.25) / rows
                flat(
                    "window", left, top, left + wide * 0.5 / columns, top + tall * 0.45 / rows, 1.0
                )
        x += wide * rng.uniform(1.0, 1.12)
    flat("concrete", 0, horizon, width, horizon + unit * 0.05, 0.9)


def _trees(flat, fill, rng, width, horizon, unit) -> None:
    flat("grass", 0, horizon - unit * 0.02, width, horizon + unit * 0.06, 1.0)
    circle = np.linspace(0, 2 * np.pi, 11)[:-1]
    x = -unit * 0.1
    while x < width:
        radius, top = unit * rng.uniform(0.09, 0.22), horizon - unit * rng.uniform(0.12, 0.3)
        flat("trunk", x - unit * 0.015, top, x + unit * 0.015, horizon + unit * 0.02, 0.9)
        ragged = radius * rng.uniform(0.8, 1.15, 10)
        crown = np.stack([x + ragged * np.cos(circle), top + 0.85 * ragged * np.sin(circle)], 1)
        fill([tuple(p) for p in crown.tolist()], _SURFACES["leaves"], rng.uniform(0.7, 1.3))
        x += radius * rng.uniform(0.9, 2.2)


def _wall(flat, fill, rng, width, horizon, unit) -> None:
    material = str(rng.choice(["brick", "plaster", "concrete", "steel"]))
    top = horizon - unit * rng.uniform(0.15, 0.4)
    light = rng.uniform(0.65, 1.1)
    flat(material, 0, top, width, horizon + unit * 0.04, light)
    step = unit * rng.uniform(0.2, 0.6)
    for x in np.arange(step * rng.random(), width, step):
        flat(material, x, top, x + unit * 0.03, horizon + unit * 0.04, light * 0.78)
    flat(material, 0, top - unit * 0.025, width, top, light * 1.15)


def _field(flat, fill, rng, width, horizon, unit) -> None:
    x = np.linspace(0, width, 9)
    ridge = horizon - unit * rng.uniform(0.0, 0.18, 9)
    outline = [
        *zip(x.tolist(), ridge.tolist(), strict=True),
        (width, horizon + 2),
        (0, horizon + 2),
    ]
    fill(outline, _SURFACES["hill"], rng.uniform(0.7, 1.1))
    flat("grass", 0, horizon, width, horizon + unit * rng.uniform(0.05, 0.2), rng.uniform(0.8, 1.2))


def _highway(flat, fill, rng, width, horizon, unit) -> None:
    flat("grass", 0, horizon - unit * 0.05, width, horizon + unit * 0.08, rng.uniform(0.7, 1.1))
    y = horizon + unit * rng.uniform(0.0, 0.08)
    for x in np.arange(0, width, unit * 0.24):
        flat("steel", x, y, x + unit * 0.02, y + unit * 0.12, 0.7)
    flat("rail", 0, y, width, y + unit * 0.055, 1.0)


_PLACES = (_street, _trees, _wall, _field, _highway, _street, _trees)
