"""Pretrained weights: file -> flat arrays -> one ViT in canonical names -> our parameters.

Three steps, three functions: `read_checkpoint`, `to_canonical` and `merge_vit`; `load_pretrained`
is all of them.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.names.vit import to_canonical

__all__ = ["load_pretrained", "merge_vit", "read_checkpoint", "resize_position", "to_canonical"]

Params = dict[str, Any]  # nested; leaves are arrays

KEPT_AT_INITIALISATION = (
    "neck/",
    "classifier/",
    "mfmp/",
    "flare_head/neck/",
    "flare_head/classifier/",
)
"""What no ViT can fill. Every other parameter must come from the file."""


def resize_position(
    position: np.ndarray, grid_from: tuple[int, int], grid_to: tuple[int, int]
) -> np.ndarray:
    """Position embedding [1+n', D] for the grid (rows, columns) `grid_to`, from one [1+n, D].

    Bilinear, half-pixel centres, borders clamped and no antialiasing, as the release does it
    (spec facenet-official 4.1); the class token's row is kept, and an embedding that has as many
    tokens as wanted is returned untouched, whatever its shape was.
    """
    if math.prod(grid_from) != len(position) - 1:
        raise ValueError(f"{len(position) - 1} positions are no grid of {grid_from}")
    if math.prod(grid_from) == math.prod(grid_to):
        return position
    rows, columns = (_interpolation(*sizes) for sizes in zip(grid_from, grid_to, strict=True))
    patches = position[1:].reshape(*grid_from, -1)
    resized = np.einsum("Yy,Xx,yxd->YXd", rows, columns, patches, optimize=True)
    return np.concatenate([position[:1], resized.reshape(-1, position.shape[1])])


def _interpolation(size_from: int, size_to: int) -> np.ndarray:
    """Matrix [to, from] of one-dimensional linear interpolation between pixel centres."""
    centre = (np.arange(size_to) + 0.5) * (size_from / size_to) - 0.5
    centre = np.clip(centre, 0, size_from - 1)
    low = np.floor(centre).astype(int)
    high = np.minimum(low + 1, size_from - 1)
    matrix = np.zeros((size_to, size_from))
    np.add.at(matrix, (np.arange(size_to), low), 1 - (centre - low))
    np.add.at(matrix, (np.arange(size_to), high), centre - low)
    return matrix.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every name, for the log."""

    source: str
    loaded: tuple[str, ...]  # parameter paths of the model
    kept: tuple[str, ...]  # parameter paths that stay as initialised
    ignored: tuple[str, ...]  # names of the file that the model does not need
    position: str  # what was done to the position embedding

    def __str__(self) -> str:
        lines = [f"Pretrained weights from {self.source}; {self.position}"]
        for title in ("loaded", "kept", "ignored"):
            names = getattr(self, title)
            tops = sorted({re.split(r"[./]", name)[0] for name in names})
            lines.append(f"  {title:8} {len(names):4}: {', '.join(tops) or '-'}")
        return "\n".join(lines)


def load_pretrained(
    path: str | os.PathLike[str], params: Params, grid: tuple[int, int]
) -> tuple[Params, Report]:
    """(parameters that start from the ViT in the file at `path`, report); see `merge_vit`."""
    source = os.fspath(path)
    canonical, ignored = to_canonical(read_checkpoint(path), source)
    return merge_vit(params, canonical, grid, ignored, source)


def merge_vit(
    params: Params,
    canonical: Mapping[str, np.ndarray],
    grid: tuple[int, int],
    ignored: tuple[str, ...] | list[str] = (),
    source: str = "the checkpoint",
) -> tuple[Params, Report]:
    """(parameters with one ViT in every branch, report); the rest of `params` stays as it is.

    `params` is the tree of a FACENet whose tokens form `grid` (rows, columns). Blocks 0..L-2 go to
    `trunk`, block L-1 and the final norm to `last` and `flare_head`, each copied over the leading
    axes (bands, directions) that the parameter has. Raises `UserError` where depth, width, patch or
    any shape differ, naming both values, and where a parameter outside `KEPT_AT_INITIALISATION`
    would stay unfilled.
    """
    canonical = dict(canonical)
    ours = flatten(params)
    _compare_sizes(ours, canonical, source)
    canonical["position"], note = fit_position(canonical["position"], grid, source)
    head = _head_parameters(canonical)
    trunk = trunk_parameters(canonical, depth_of(canonical) - 1)
    theirs = flatten({"trunk": trunk, "last": head, "flare_head": head})
    filled, kept, problems = {}, [], []
    for path, leaf in ours.items():
        if path.startswith(KEPT_AT_INITIALISATION):
            filled[path] = leaf
            kept.append(path)
            continue
        if path not in theirs:
            problems.append(f"nothing in it fills {path}")
            continue
        value = theirs[path]
        if leaf.shape[leaf.ndim - value.ndim :] != value.shape:
            problems.append(f"{path} is {list(leaf.shape)}, the file has {list(value.shape)}")
        else:
            filled[path] = np.broadcast_to(value, leaf.shape).astype(leaf.dtype)
    if problems:
        raise UserError(f"{source} does not fit the model: {'; '.join(problems)}")
    loaded = tuple(path for path in ours if path not in kept)
    return nest(filled), Report(source, loaded, tuple(kept), tuple(ignored), note)


def trunk_parameters(canonical: Mapping[str, np.ndarray], blocks: int) -> Params:
    """The tree of a trunk of the first `blocks` blocks of a ViT, without leading axes."""
    kernel = canonical["patch/kernel"]
    flat = {
        "patch/kernel": kernel.reshape(-1, kernel.shape[-1]),  # rows (y, x, channel)
        **{name: canonical[name] for name in ("patch/bias", "class_token", "position")},
    }
    for leaf in _inside("blocks/0/", canonical) if blocks else ():
        layers = [canonical[f"blocks/{i}/{leaf}"] for i in range(blocks)]
        flat[f"blocks/{leaf}"] = np.stack(layers)
    return nest(flat)


def _head_parameters(canonical: Mapping[str, np.ndarray]) -> Params:
    """The tree of the last block and the final norm of a ViT, without leading axes."""
    last = f"blocks/{depth_of(canonical) - 1}/"
    flat = {f"block/{leaf}": array for leaf, array in _inside(last, canonical).items()}
    return nest(flat | {name: canonical[name] for name in ("norm/scale", "norm/bias")})


def _inside(prefix: str, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}


def depth_of(canonical: Mapping[str, np.ndarray]) -> int:
    """The number of blocks of a ViT in canonical names."""
    return 1 + max(int(name.split("/")[1]) for name in canonical if name.startswith("blocks/"))


def _compare_sizes(ours: Params, theirs: Mapping[str, np.ndarray], source: str) -> None:
    rows, width = ours["trunk/patch/kernel"].shape[-2:]
    first = ours.get("trunk/blocks/norm1/scale")  # a model of one block has none in its trunk
    trunk_depth = 0 if first is None else first.shape[-2]
    sizes = {
        "depth": (1 + trunk_depth, depth_of(theirs)),
        "width": (width, theirs["class_token"].shape[-1]),
        "patch": (math.isqrt(rows // 3), theirs["patch/kernel"].shape[0]),
    }
    different = [
        f"{what} {theirs_} where the model has {ours_}"
        for what, (ours_, theirs_) in sizes.items()
        if ours_ != theirs_
    ]
    if different:
        raise UserError(
            f"{source} has {', '.join(different)}; set config.model.variant and the patch size to "
            "those of the file"
        )


def fit_position(
    position: np.ndarray, grid: tuple[int, int], source: str
) -> tuple[np.ndarray, str]:
    """(position embedding [1+n, D] for `grid`, what was done to it); the source is a square grid.

    Raises `UserError` where it has another number of positions that is no square.
    """
    count, wanted = len(position) - 1, math.prod(grid)
    if count == wanted:
        return position, f"position embedding of {count} tokens as it is"
    side = math.isqrt(count)
    if side * side != count:
        raise UserError(
            f"{source} has {count} positions, which form no square to resize to the "
            f"{grid[0]} x {grid[1]} tokens of the model; take a file of that or a square size"
        )
    note = f"position embedding resized from {side} x {side} to {grid[0]} x {grid[1]}"
    return resize_position(position, (side, side), grid), note


def flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    """{path with slashes: leaf} of a nested dict."""
    flat = {}
    for key, value in tree.items():
        path = prefix + key
        flat |= flatten(value, path + "/") if isinstance(value, Mapping) else {path: value}
    return flat


def nest(flat: Mapping[str, Any]) -> Params:
    """The nested dict of {path with slashes: leaf}, the inverse of `flatten`."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
