"""The measurements of `facenet benchmark --everything`, in order of worth, and what is left out."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import ml_collections

from facenet_jax.step import embedding_batch

TRAINING_BATCHES, EMBEDDING_BATCHES = (32, 64, 128, 256), (64, 256)
"""Samples in a batch, beside those of the recipe."""

SAMPLES_IN_CHUNK = 320
"""Samples of one timed call, so that a large batch takes about as long as a small one."""

MOST_STEPS = 20
"""In one timed call."""

DEMO = (
    "its data set is rendered with Pillow and prepared with TensorFlow Datasets, which this "
    "command does without; python scripts/demo.py runs it where they are installed"
)
"""Why the demo is not measured here."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement, made in a process of its own."""

    name: str  # as in the files of the result
    what: str  # device | train | embed | peer | first | kernels | demo
    changes: Mapping[str, Any]  # {"section.option": value} in the config
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    absent: str = ""  # why it is left out whatever the device is

    @property
    def kind(self) -> str:
        """Points of one kind take about as long as each other."""
        return f"{self.what}, unrolled" if self.changes.get("model.unroll") == 0 else self.what


def points(config: ml_collections.ConfigDict) -> list[Point]:
    """All measurements of a config, the most worthwhile first."""
    train = config.train
    batch = train.identities_per_batch * train.samples_per_identity
    return [
        Point("matrix product", "device", always(config)),
        recipe(config, "embed", embedding_batch(config)),
        recipe(config, "train", batch),
        *sweep(config),
        *(
            Point(f"{what}, beside PyTorch ({how})", "peer", always(config), {"what": what, **flag})
            for how, flag in (("compiled", {"compile": True}), ("eager", {"compile": False}))
            for what in ("train", "embed")
        ),
        Point("command to first step", "first", always(config) | {"train.steps_per_dispatch": 1}),
        Point("costliest kernels", "kernels", always(config) | dispatch(batch)),
        Point("demo", "demo", {}, absent=DEMO),
    ]


def always(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What is changed in the config for every measurement."""
    return {"model.pretrained": "none"} if "pretrained" in config.model else {}


def dispatch(batch: int) -> dict[str, int]:
    """How many steps one timed call has, for batches of `batch` samples."""
    return {"train.steps_per_dispatch": min(MOST_STEPS, max(2, SAMPLES_IN_CHUNK // batch))}


def recipe(config: ml_collections.ConfigDict, what: str, batch: int) -> Point:
    """Training ("train") or embedding ("embed") of the config as it is."""
    return Point(f"{what}, the recipe, batch {batch}", what, always(config) | dispatch(batch))


def sweep(config: ml_collections.ConfigDict) -> list[Point]:
    """Training and embedding with other options, those that differ least from the plain ones first.

    Options that the model does not have are one point each, which is left out.
    """
    model, samples = config.model, config.train.samples_per_identity
    choices = {
        "remat": ["none", "dots"],
        "attention": ["xla", "cudnn"],
        "unroll": [1, 0],
    }
    absent = [
        Point(f"config.model.{name}", "", {}, absent=f"the model {model.name} has no such option")
        for name in choices
        if name not in model
    ]
    choices = {name: values for name, values in choices.items() if name in model}
    found = []
    for batch, *picked in itertools.product(TRAINING_BATCHES, *choices.values()):
        options = dict(zip(choices, picked, strict=True))
        identities = -(-batch // samples)
        name = f"train, batch {identities} x {samples}{in_words(options)}"
        size = {"train.identities_per_batch": identities}
        found.append(varied(config, name, "train", options, size, identities * samples))
    attention = {name: values for name, values in choices.items() if name == "attention"}
    for batch, *picked in itertools.product(EMBEDDING_BATCHES, *attention.values()):
        options = dict(zip(attention, picked, strict=True))
        name = f"embed, batch {batch}{in_words(options)}"
        found.append(varied(config, name, "embed", options, {"evaluate.batch": batch}, batch))
    plain = {name: values[0] for name, values in choices.items()}
    found.sort(key=lambda x: sum(plain[name] != value for name, value in x.options.items()))
    return [*(point for point in found if not same_as_recipe(point, config)), *absent]


def in_words(options: Mapping[str, Any]) -> str:
    """The options of the model as a part of a name."""
    return "".join(f", {name} {value}" for name, value in options.items())


def varied(
    config: ml_collections.ConfigDict,
    name: str,
    what: str,
    options: Mapping[str, Any],
    size: Mapping[str, int],
    batch: int,
) -> Point:
    """A point with options of the model and a batch of `batch` samples, which `size` sets."""
    model = {f"model.{option}": value for option, value in options.items()}
    return Point(name, what, {**always(config), **dispatch(batch), **size, **model}, options)


def same_as_recipe(
    point: Point, config: ml_collections.ConfigDict, became: Mapping[str, Any] | None = None
) -> bool:
    """Whether a point of the sweep changes nothing in the config but what every point changes.

    `became` has what the program took for options of the model, where that is known.
    """
    apart = set(always(config)) | set(dispatch(1))
    values = config.to_dict()
    values["model"] |= became or {}
    return all(
        values[name.split(".")[0]][name.split(".")[1]] == value
        for name, value in point.changes.items()
        if name not in apart
    )


def left_out(
    point: Point, config: ml_collections.ConfigDict, finished: Mapping[str, Mapping[str, Any]]
) -> str:
    """Why a point is not measured, or "".

    `finished` has the entries of the points before, by name, "matrix product" among them.
    """
    if point.absent or point.what == "device":
        return point.absent
    device = finished["matrix product"]["result"]
    if point.options.get("attention") == "cudnn":
        return device["refused"][point.what]
    if point.what == "peer":
        return device["torch"]
    if point.what == "kernels" and device["platform"] == "cpu":
        return "the trace of a CPU has no kernels"
    if point.what == "train" and point.options:
        for name, entry in finished.items():
            if not name.startswith("train, the recipe") or "result" not in entry:
                continue
            found = entry["result"]
            known = [x for x in ("remat", "unroll") if x in point.options and x in found]
            became = {option: found[option] for option in known}
            if same_as_recipe(point, config, became):
                return f"it is the recipe's own training, which took{in_words(became)[1:]}"
    return ""
