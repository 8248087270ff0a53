"""One ResNet with bottleneck blocks in torchvision's or timm's names -> ours.

Canonical, float32: conv1/kernel [7, 7, 3, width], bn1/{scale, bias, mean, var}, and for each block
layer{1..4}_{i}/{conv1, conv2, conv3, shortcut_conv}/kernel [k, k, in, out] with
{bn1, bn2, bn3, shortcut_bn}/{scale, bias, mean, var}. mean and var are running statistics.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.messages import listed, shown
from facenet_jax.weights.names.tables import IGNORED, Row, image_kernel, same, translate

_PREFIX = r"(?:module\.)?(?:backbone\.|base\.)?"
_BLOCK = _PREFIX + r"layer([1-4])\.(\d{1,3})\."


def _norm(theirs: str, ours: str) -> list[Row]:
    """Rows of a torch BatchNorm; `theirs` is a pattern."""
    pairs = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    rows = [(rf"{theirs}\.{their}", f"{ours}/{our}", same) for their, our in pairs.items()]
    return [*rows, (theirs + r"\.num_batches_tracked", IGNORED, same)]


_ROWS: list[Row] = [
    (_PREFIX + r"conv1\.weight", "conv1/kernel", image_kernel),
    *_norm(_PREFIX + r"bn1", "bn1"),
    (_BLOCK + r"conv([123])\.weight", r"layer\1_\2/conv\3/kernel", image_kernel),
    *_norm(_BLOCK + r"bn([123])", r"layer\1_\2/bn\3"),
    (_BLOCK + r"downsample\.0\.weight", r"layer\1_\2/shortcut_conv/kernel", image_kernel),
    *_norm(_BLOCK + r"downsample\.1", r"layer\1_\2/shortcut_bn"),
    (_PREFIX + r"(fc|classifier)\..+", IGNORED, same),
]


def to_canonical(
    flat: Mapping[str, np.ndarray], source: str = "the checkpoint"
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(canonical arrays of one ResNet, names in `flat` that it does not need).

    Raises `UserError` for files of other networks, for arrays that are no finite floating numbers,
    and with everything that does not fit where the names are not those of one whole ResNet.
    """
    blocks = {match.groups() for name in flat if (match := re.match(_BLOCK, name))}
    if not blocks:
        vit = any("patch_embed" in name or "encoderblock" in name for name in flat)
        what = "a ViT and" if vit else "something else and"
        raise UserError(
            f"{source} holds {what} no ResNet in torchvision or timm names (its first names are "
            f"{', '.join(map(shown, list(flat)[:4]))}); take a ResNet file"
            + (", or set config.model.backbone = 'vit'" if vit else "")
        )
    canonical, ignored, problems, unknown = translate(flat, _ROWS, source)
    missing = [name for name in _needed(canonical) if name not in canonical]
    problems = [f"{source} lacks {name}" for name in missing] + problems + unknown
    if problems:
        raise UserError(f"{source} is not one ResNet with bottlenecks: {listed(problems)}")
    return canonical, ignored


def _needed(canonical: Mapping[str, np.ndarray]) -> list[str]:
    """The names of a whole ResNet with as many blocks as these arrays have."""
    layers = {"": [("conv1", "bn1")]}
    for stage, depth in enumerate(depths_of(canonical), start=1):
        for block in range(depth):
            layers[f"layer{stage}_{block}/"] = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        layers[f"layer{stage}_0/"].append(("shortcut_conv", "shortcut_bn"))
    return [
        name
        for prefix, pairs in layers.items()
        for conv, norm in pairs
        for name in (
            f"{prefix}{conv}/kernel",
            *(f"{prefix}{norm}/{leaf}" for leaf in ("scale", "bias", "mean", "var")),
        )
    ]


def depths_of(canonical: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """How many blocks layer1 to layer4 have, at least one each."""
    found = [re.match(r"layer(\d)_(\d+)/", name) for name in canonical]
    blocks = [(int(match[1]), int(match[2])) for match in found if match]
    return tuple(
        1 + max((i for at, i in blocks if at == stage), default=0) for stage in range(1, 5)
    )


def check_size(
    canonical: Mapping[str, np.ndarray], source: str, *, width: int, depths: Sequence[int]
) -> None:
    """Raise `UserError` where a ResNet has other sizes than the model, naming both."""
    theirs = (canonical["conv1/kernel"].shape[-1], depths_of(canonical))
    if theirs != (width, tuple(depths)):
        raise UserError(
            f"{source} has a stem of {theirs[0]} channels and {theirs[1]} blocks where the model "
            f"has {width} and {tuple(depths)}; set config.model.variant to that of the file"
        )
