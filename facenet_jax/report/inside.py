"""What a network looked at: its flare masks, and the attention of its class tokens.

Attention rollout: Abnar and Zuidema 2020. Of each layer A = (mean over heads of the weights + I) /
2; the product of all layers, in its row of the class token, says how much each patch reaches it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from PIL import Image

from facenet_jax import step
from facenet_jax.api import Network
from facenet_jax.evaluate import pixels
from facenet_jax.inputs.augment import normalise
from facenet_jax.models import vit
from facenet_jax.models.layers import plain_attention, plain_block
from facenet_jax.models.trunk import plain_tokens
from facenet_jax.report.blocks import Block, Text, Tile, Tiles, picture
from facenet_jax.report.finished import Finished
from facenet_jax.types import Batch, Outputs

SAMPLES = 3
NONE = "This model has no {}: it has no branch of a ViT for each modality, or its patches overlap."


def overlay(image: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The image uint8 [H, W, 3] under a map [rows, columns] whose values go from low to high."""
    height, width = image.shape[:2]
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    heat = Image.fromarray(np.uint8(255 * colormaps["inferno"](scaled)[..., :3]))
    heat = np.asarray(heat.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return np.uint8(0.45 * np.float32(image) + 0.55 * heat)


def outputs(network: Network, images: np.ndarray, labels: Mapping[str, np.ndarray]) -> Outputs:
    """What the network gives for uint8 images [M, B, H, W, 3] and labels [M, B]."""
    batch = Batch(None, jnp.zeros(images.shape[1], jnp.int32), labels)
    return program(network)(network.variables, images, batch)


@functools.cache
def program(network: Network) -> Callable[..., Outputs]:
    """The compiled network, once for both sections that look into it."""

    def apply(variables: Any, pixels: jax.Array, batch: Batch) -> Outputs:
        modalities = network.model.spec.modalities
        return step.outputs(network.model, variables, pixels, batch, modalities)

    return jax.jit(apply)


def chosen(run: Finished) -> tuple[np.ndarray, dict[str, np.ndarray], list[int]] | str:
    """(images [M, B, H, W, 3], labels [M, B], query rows) of queries, flared ones before others."""
    splits, network = run.splits, run.network
    for found in (splits, network):
        if isinstance(found, str):
            return found
    split, modalities = splits[0], network.model.spec.modalities
    if split.modalities != modalities:
        return "Queries do not have all modalities that the network was trained on."
    flare = split.labels.get("flare", np.zeros((len(split), len(modalities)), bool))
    complete = split.present.all(axis=0)
    order = np.argsort(-flare.sum(axis=1) - 2.0 * complete, kind="stable")
    people = np.unique(split.identity[order], return_index=True)[1]  # of an identity one
    rows = order[np.sort(people)][:SAMPLES]
    images = np.stack([each[rows] for each in pixels(split)])
    labels = {
        name: np.broadcast_to(split.labels[name][rows], images.shape[:2]).astype(np.int32)
        for name in network.model.spec.labels
        if split.labels[name].ndim == 1
    }
    return images, labels | {"flare": flare[rows].T}, rows.tolist()


def masks(run: Finished) -> list[Block]:
    """The flare masks of FACENet on flared queries, before and after MFMP."""
    found = chosen(run)
    if isinstance(found, str):
        return [Text(found)]
    images, labels, rows = found
    extras = outputs(run.network, images, labels).extras
    if "mfmp" not in extras or "trunk" not in extras:
        return [Text(NONE.format("flare masks"))]
    patches = extras["mfmp"].shape[2]
    bias, shape = run.config.model.fce.mask_bias, grid(run, patches)
    if shape is None:
        return [Text(NONE.format("flare masks"))]
    stages = {"before MFMP": extras["trunk"][:2, :, -patches:], "after MFMP": extras["mfmp"]}
    values = {
        name: np.asarray(jax.nn.sigmoid(x + bias).mean(axis=-1)).reshape(*x.shape[:2], *shape)
        for name, x in stages.items()
    }
    blocks: list[Block] = []
    for i, row in enumerate(rows):
        tiles = []
        for m, modality in enumerate(run.network.model.spec.modalities[:2]):
            flared = "flared" if labels["flare"][m, i] else "not flared"
            word = modality.replace("_", "-")
            tiles.append(Tile(picture([images[m, i]]), f"{word}, {flared}"))
            for name, of in values.items():
                low, high = of[m, i].min(), of[m, i].max()
                shown = picture([overlay(images[m, i], of[m, i], low, high)])
                tiles.append(Tile(shown, f"{name}: {low:.3f} to {high:.3f}"))
        blocks.append(Tiles(f"Query {run.query.name[row]}", tiles))
    words = (
        "The mean over the channels of a mask, 0: own tokens, 1: thermal ones. Each map on its own "
        "scale, dark the smaller number below it, bright the larger."
    )
    return [Text(words), *blocks]


def grid(run: Finished, patches: int) -> tuple[int, int] | None:
    """Rows and columns of the patches, None where they do not lie beside each other."""
    model, (height, width) = run.config.model, run.network.model.spec.image_size
    if "patch" not in model or model.stride not in (0, model.patch):
        return None
    shape = height // model.patch, width // model.patch
    return shape if shape[0] * shape[1] == patches else None


def attention(run: Finished) -> list[Block]:
    """Rollout of all layers, and the attention of the class token in the last one."""
    found = chosen(run)
    if isinstance(found, str):
        return [Text(found)]
    images, labels, rows = found
    params, spec = run.network.variables["params"], run.network.model.spec
    plain = run.config.model.get("backbone", "") == "vit"  # what `attention_maps` can compute
    whole = (
        plain and {"trunk", "last"} <= set(params) and {"patch", "blocks"} <= set(params["trunk"])
    )
    shape = whole and grid(run, params["trunk"]["position"].shape[-2] - 1)
    if not shape or "block" not in params["last"]:
        return [Text(NONE.format("maps of attention"))]
    extras = outputs(run.network, images, labels).extras
    shared = run.config.model.shared_trunk
    blocks: list[Block] = []
    maps = []
    for m in range(len(spec.modalities)):
        trunk = params["trunk"] if shared else row_of(params["trunk"], m)
        mixed = extras["fce"][m] if "fce" in extras and m < len(extras["fce"]) else None
        last = row_of(params["last"], m)["block"]
        size = vit.size(run.config.model)
        maps.append(
            attention_maps(
                trunk, last, normalised(run.network, images[m]), heads=size["heads"], mixed=mixed
            )
        )
    for i, row in enumerate(rows):
        tiles = []
        for m, modality in enumerate(spec.modalities):
            tiles.append(Tile(picture([images[m, i]]), modality.replace("_", "-")))
            for name, values in zip(("rollout", "class token"), maps[m], strict=True):
                one = np.asarray(values[i]).reshape(shape)
                shown = overlay(images[m, i], one, one.min(), one.max())
                tiles.append(Tile(picture([shown]), name))
        blocks.append(Tiles(f"Query {run.query.name[row]}", tiles))
    return [Text("Each map on its own scale: bright is where most of the attention is."), *blocks]


def normalised(network: Network, images: np.ndarray) -> jax.Array:
    """Images uint8 [B, H, W, 3] as the network takes them."""
    return normalise(images, network.model.pixel_mean, network.model.pixel_std)


def row_of(tree: Any, row: int) -> Any:
    """One modality of parameters that are stacked by modality."""
    return jax.tree.map(lambda leaf: leaf[row], tree)


@functools.partial(jax.jit, static_argnames="heads")
def attention_maps(
    trunk: Mapping[str, Any],
    last: Mapping[str, Any],
    images: jax.Array,
    *,
    heads: int,
    mixed: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(rollout [B, n], the class token's attention in the last block [B, n]) of one branch.

    `trunk` and `last` are the parameters of the branch, `images` [B, H, W, 3] normalised, `mixed`
    the tokens [B, 1+n, D] that the last block gets, where they are not the trunk's own.
    """
    x = plain_tokens({k: v for k, v in trunk.items() if k != "blocks"}, images, heads)
    rollout = jnp.eye(x.shape[1])[None]
    depth = len(trunk["blocks"]["norm1"]["scale"])
    for layer in range(depth):
        params = row_of(trunk["blocks"], layer)
        rollout = reached(plain_attention(params, x, heads)) @ rollout
        x = plain_block(params, x, heads)
    weights = plain_attention(last, x if mixed is None else mixed, heads)
    rollout = reached(weights) @ rollout
    return rollout[:, 0, 1:], weights.mean(axis=1)[:, 0, 1:]


def reached(weights: jax.Array) -> jax.Array:
    """(mean over heads + identity) / 2 of attention weights [B, heads, T, T]."""
    return (weights.mean(axis=1) + jnp.eye(weights.shape[-1])[None]) / 2
