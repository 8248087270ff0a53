"""Visible and infrared images in one space: a stem for each modality, then shared layers.

Plain JAX, without Flax. Besides parameters and statistics the model keeps a running prototype of
each identity, and it looks at a label: the view.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from facenet_jax.models import Group, Model
from facenet_jax.options import Option, at_least, between, text, whole
from facenet_jax.types import Batch, DataSpec, Outputs
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.merge import fill_collections

BLOCK = 8  # pixels that are averaged, in each direction

LOSSES = {
    "id": {"term": "id", "label_smoothing": 0.1},
    "prototype": {"term": "prototype", "weight": 0.5},
}

NAMES = {"rgb": "visible", "ir": "infrared"}
"""How the stems are called in weight files."""


def options(choices: Mapping[str, Any]) -> dict[str, Option]:
    """What config.model holds besides the name."""
    del choices
    return {
        "width": Option(12, "of the shared space", whole(1)),
        "view_width": Option(3, "of the embedding of a view", whole(1)),
        "keep": Option(0.8, "of a prototype in each step", between(0, 1)),
        "pretrained": Option("none", "an .npz of stems and statistics, or 'none'", text()),
    }


def prototype(
    outputs: Outputs, batch: Batch, *, radius: Annotated[float, at_least(0)] = 0.1
) -> jax.Array:
    """Squared distance to the identity's prototype beyond `radius`, trusted more as time goes."""
    del batch
    pulls = [
        jnp.mean(
            jnp.maximum(jnp.sum(jnp.square(x - outputs.extras["prototype"]), -1) - radius, 0.0)
        )
        for x in outputs.features.values()
    ]
    return outputs.extras["trust"] * sum(pulls)


TERMS = {"prototype": prototype}


def problems(config) -> list[str]:
    """What does not fit together in a config."""
    if min(config.data.image_size) < BLOCK:
        return [f"config.data.image_size must be {BLOCK} pixels or more in each direction"]
    return []


def build(config, spec: DataSpec) -> Model:
    """The model for data like `spec`, which must know views."""
    width, views = config.width, spec.labels["view"]
    pixels = 3 * (spec.image_size[0] // BLOCK) * (spec.image_size[1] // BLOCK)

    def init(key: jax.Array) -> dict[str, Any]:
        keys = iter(jax.random.split(key, 4 + len(spec.modalities)))

        def noise(*shape: int) -> jax.Array:
            return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

        params = {m: {"kernel": noise(pixels, width)} for m in spec.modalities}
        params |= {
            "shared": {"kernel": noise(width, width), "bias": jnp.zeros(width)},
            "view": {"kernel": noise(views, config.view_width)},
            "classifier": {"kernel": noise(width + config.view_width, spec.identities)},
        }
        neck = {"mean": jnp.zeros(width), "var": jnp.ones(width)}
        prototypes = {"identity": jnp.zeros((spec.identities, width))}
        return {"params": params, "batch_stats": {"neck": neck}, "prototypes": prototypes}

    def apply(variables, batch, *, train, modalities=None, progress=0.0, key=None):
        del key
        params, names = variables["params"], modalities or spec.modalities
        pairs = zip(names, batch.images, strict=True)
        x = jnp.stack([features(params, name, image) for name, image in pairs])
        x, neck = normalised(x, variables["batch_stats"]["neck"], train)  # [M, B, width]
        one_hot = jax.nn.one_hot(batch.labels["view"], views)  # an unknown view gives zeros
        view = one_hot @ params["view"]["kernel"]
        joint = jnp.concatenate([x, view], -1) @ params["classifier"]["kernel"]
        extras, changed = {}, {}
        if train:
            table, rows = variables["prototypes"]["identity"], batch.identity
            extras = {"prototype": table[rows], "trust": jnp.float32(progress)}
            moved = config.keep * table[rows] + (1 - config.keep) * x.mean(0)
            table = table.at[rows].set(jax.lax.stop_gradient(moved))
            changed = {"batch_stats": {"neck": neck}, "prototypes": {"identity": table}}
        end = width + config.view_width
        outputs = Outputs(
            features=dict(zip(names, x, strict=True)),
            logits=dict(zip(names, joint, strict=True)),
            embedding=jnp.concatenate([x.mean(0), view.mean(0)], -1),
            parts={"appearance": (0, width), "view": (width, end)},
            extras=extras,
        )
        return outputs, changed

    def load(variables, path: str):
        arrays = read_checkpoint(path)
        table = {
            "params": {f"{ours}/kernel": arrays.pop(theirs) for theirs, ours in NAMES.items()},
            "batch_stats": {
                f"neck/{name}": arrays.pop(f"running.{name}") for name in ("mean", "var")
            },
        }
        kept = ("shared/", "view/", "classifier/")
        return fill_collections(variables, table, kept, path, ignored=arrays)

    return Model(
        init=init,
        apply=apply,
        spec=spec,
        pixel_mean=(0.485, 0.456, 0.406),
        pixel_std=(0.229, 0.224, 0.225),
        groups={"stems": Group("(visible|infrared)/", 0.1)},
        load=load,
    )


def features(params: Mapping[str, Any], modality: str, images: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] to [B, width]."""
    batch, height, width, _ = images.shape
    rows, columns = height // BLOCK, width // BLOCK
    x = images[:, : rows * BLOCK, : columns * BLOCK]
    x = x.reshape(batch, rows, BLOCK, columns, BLOCK, 3).mean((2, 4)).reshape(batch, -1)
    x = jnp.tanh(x @ params[modality]["kernel"])
    return jnp.tanh(x @ params["shared"]["kernel"] + params["shared"]["bias"][None])


def normalised(x: jax.Array, neck: Mapping[str, jax.Array], train: bool):
    """(x over its statistics, the running ones after it)."""
    mean, var = neck["mean"], neck["var"]
    if train:
        mean, var = x.mean((0, 1)), x.var((0, 1))
        old, new = jax.tree.map(lambda v: 0.9 * v, neck), {"mean": 0.1 * mean, "var": 0.1 * var}
        neck = jax.tree.map(jnp.add, old, new)
    return (x - mean[None, None]) * jax.lax.rsqrt(var + 1e-5)[None, None], neck
