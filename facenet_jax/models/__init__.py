"""Models behind one interface: `build(config, ...)` gives `init` and `apply`, free of Flax.

This folder is the only one that knows Flax. Everything else sees plain nested dicts of arrays,
{"params": ..., "batch_stats": ...}, and two pure functions.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from data_tfds.errors import UserError
from data_tfds.samples import BANDS
from facenet_jax.models import vit
from facenet_jax.models.facenet import FACENet
from facenet_jax.types import Batch, Outputs

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as two pure functions.

    init(key) -> variables
    apply(variables, batch, *, train, bands, progress, key) -> (Outputs, changed collections)

    `bands` names the spectra in `batch.images`, in the order of `BANDS`. `progress` in 0..1 and
    `key` matter in training only. The changed collections are all but "params".
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., tuple[Outputs, Variables]]
    bands: tuple[str, ...]
    image_size: tuple[int, int]  # H, W in pixels
    patch_grid: tuple[int, int]  # rows, columns of patches
    part_width: int  # width of one band's part of the embedding


def build(config: ml_collections.ConfigDict, image_size: Sequence[int], identities: int) -> Model:
    """The model that `config` (the section `model` of configs/common.py) describes.

    Raises UserError for a field with a value that no model has.
    """
    if config.name != "facenet":
        raise UserError(f"config.model.name is '{config.name}'; the only model is 'facenet'.")
    return facenet(config, (image_size[0], image_size[1]), identities)


def check_choice(section: str, config: Mapping, **choices: Sequence) -> None:
    """Raise UserError when a field of `config` is none of its `choices`."""
    for field, allowed in choices.items():
        if config[field] not in allowed:
            names = ", ".join(repr(value) for value in allowed)
            raise UserError(
                f"config.{section}.{field} is {config[field]!r}; it must be one of {names}."
            )


def checked_size(config: ml_collections.ConfigDict) -> dict[str, int]:
    """The ViT's {"width", "depth", "heads"}; raises UserError for a value that no model has."""
    check_choice(
        "model",
        config,
        variant=(*vit.VARIANTS, ""),
        neck_feature=("before", "after"),
        remat=tuple(vit.REMAT),
        attention=("xla", "cudnn"),
        dtype=("float32", "bfloat16"),
    )
    check_choice(
        "model.mfmp",
        config.mfmp,
        split=("heads", "windows"),
        norms=(1, 2),
        initializer=("zero_out", "torch"),
    )
    check_choice(
        "model.fce",
        config.fce,
        mask=("soft", "hard", "straight_through"),
        keep=("own", "near_infrared"),
        gate=("sample", "batch"),
    )
    size = (
        vit.VARIANTS[config.variant]
        if config.variant
        else {"width": config.width, "depth": config.depth, "heads": config.heads}
    )
    if min(size.values()) < 1 or size["width"] % size["heads"]:
        raise UserError(
            f"config.model has width {size['width']}, depth {size['depth']} and {size['heads']} "
            "heads; it needs a depth of at least 1 and a width that the heads divide."
        )
    return size


def facenet(
    config: ml_collections.ConfigDict, image_size: tuple[int, int], identities: int
) -> Model:
    """FACENet with its parameters as named in docs/architecture.md."""
    size = checked_size(config)
    stride = config.stride or config.patch
    patch_grid = vit.grid(image_size, config.patch, stride)
    if min(patch_grid) < 1:
        raise UserError(
            f"config.data.image_size {tuple(image_size)} holds no patch of config.model.patch "
            f"{config.patch} pixels."
        )

    mfmp, fce = config.mfmp.to_dict(), config.fce.to_dict()
    use_mfmp, use_fce = mfmp.pop("enabled"), fce.pop("enabled")
    mfmp["head_width"] = mfmp["head_width"] or size["width"]
    network = FACENet(
        identities=identities,
        **size,
        patch=config.patch,
        stride=stride,
        drop_path=config.drop_path,
        shared_trunk=config.shared_trunk,
        mfmp=mfmp if use_mfmp else None,
        fce=fce if use_fce else None,
        flare_heads=config.flare_heads,
        classifier_std=config.classifier_std,
        neck_feature=config.neck_feature,
        dtype=jnp.dtype(config.dtype),
        attention=config.attention,
        remat=config.remat,
        unroll=config.unroll,
    )

    def init(key: jax.Array) -> Variables:
        images = jnp.zeros((len(BANDS), 1, *image_size, 3), jnp.float32)
        flare = jnp.zeros((1, 2), bool)
        return network.init({"params": key}, images, flare, BANDS, False)

    def apply(
        variables: Variables,
        batch: Batch,
        *,
        train: bool,
        bands: tuple[str, ...] = BANDS,
        progress: jax.Array | float = 0.0,
        key: jax.Array | None = None,
    ) -> tuple[Outputs, Variables]:
        del progress  # FACENet does not change with it; other models do
        if tuple(bands) != BANDS:
            variables = select_bands(variables, [BANDS.index(band) for band in bands], config)
        return network.apply(
            variables,
            batch.images,
            batch.flare,
            tuple(bands),
            train,
            rngs={"dropout": key} if train else None,
            mutable=["batch_stats"] if train else [],
        )

    return Model(init, apply, BANDS, image_size, patch_grid, size["width"])


def select_bands(
    variables: Variables, rows: Sequence[int], config: ml_collections.ConfigDict
) -> Variables:
    """`variables` with the rows of the given bands alone in everything that is kept per band."""
    per_band = {"last", "neck", "classifier"} | (set() if config.shared_trunk else {"trunk"})
    index = jnp.asarray(rows)

    def take(name: str, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[index], tree) if name in per_band else tree

    return {
        collection: {name: take(name, tree) for name, tree in trees.items()}
        for collection, trees in variables.items()
    }
