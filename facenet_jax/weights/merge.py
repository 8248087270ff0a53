"""Weights of a file -> the parameters of a model, by a table that the model gives.

`fill` knows no model: it takes {path in the parameters: array or tree of arrays}. For a ViT in
canonical names (`names/vit.py`) `vit_parts` cuts out what such a table is made of. A model writes

    canonical, ignored = to_canonical(read_checkpoint(path), path)
    parts, note = vit_parts(canonical, grid, path, depth=12, width=768, patch=16)
    table = {"trunk": parts["tokens"], "last": parts["head"]}
    params, report = fill(params, table, ("neck/", "classifier/"), path, ignored, note)
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.files import as_float32, read_checkpoint
from facenet_jax.weights.messages import listed, shown
from facenet_jax.weights.names.vit import to_canonical
from facenet_jax.weights.positions import fit_position

__all__ = [
    "fill",
    "fill_collections",
    "read_checkpoint",
    "to_canonical",
    "vit_parts",
]

Params = dict[str, Any]  # nested; leaves are arrays


@dataclasses.dataclass(frozen=True)
class Report:
    """Which names were loaded, kept and ignored, for the log."""

    source: str
    loaded: tuple[str, ...]  # parameter paths of the model
    kept: tuple[str, ...]  # parameter paths that stay as initialised
    ignored: tuple[str, ...]  # names of the file that the model does not need
    note: str = ""  # what was done to the position embedding

    def __str__(self) -> str:
        lines = [f"Pretrained weights from {self.source}" + (self.note and f"; {self.note}")]
        for title in ("loaded", "kept", "ignored"):
            names = getattr(self, title)
            tops = sorted({re.split(r"[./]", name)[0] for name in names})
            lines.append(
                f"  {title:8} {len(names):4}: {listed(list(map(shown, tops)), ', ') or '-'}"
            )
        return "\n".join(lines)


def fill(
    params: Params,
    table: Mapping[str, Any],
    kept: Sequence[str] = (),
    source: str = "the checkpoint",
    ignored: Iterable[str] = (),
    note: str = "",
) -> tuple[Params, Report]:
    """(`params` with the arrays of `table` in their places, report).

    Args:
        params: nested dict of arrays: the parameters as initialised. It is not changed.
        table: {path with slashes: array, or nested dict of arrays below that path}. An array may
            lack leading axes of its parameter (stacked modalities, directions): it is copied over
            them. An entry of which the model has no parameter at all is left out, so that one table
            serves a model with and without an optional part.
        kept: beginnings of the paths that may stay as initialised, "neck/".
        source: where the arrays are from, for messages.
        ignored: names of the file that are not needed, for the report.
        note: added to the first line of the report.

    Raises UserError for mismatches, naming both sides of each (a parameter outside `kept` that
    nothing fills, an array that has no place, other shapes), and for arrays that are not finite
    floating numbers.
    """
    ours = flatten(params)
    entries = {path: flatten({path: value}) for path, value in table.items()}
    theirs = {
        path: array
        for entry, arrays in entries.items()
        if any(path == entry or path.startswith(entry + "/") for path in ours)
        for path, array in arrays.items()
    }
    theirs = as_float32(theirs, source)
    filled, stay, problems = {}, [], []
    for path, leaf in ours.items():
        filled[path] = leaf
        if path not in theirs:
            stay.append(path)
            if not path.startswith(tuple(kept)):
                problems.append(f"nothing in it fills {path}")
            continue
        value = theirs[path]
        lead = len(leaf.shape) - value.ndim
        if lead < 0 or leaf.shape[lead:] != value.shape:
            problems.append(f"{path} is {list(leaf.shape)}, the file has {list(value.shape)}")
        else:
            filled[path] = np.broadcast_to(value, leaf.shape).astype(leaf.dtype)
    problems += [f"the model has no place for {shown(path)}" for path in theirs if path not in ours]
    if problems:
        raise UserError(f"{source} does not fit the model: {listed(problems)}")
    loaded = tuple(path for path in ours if path in theirs)
    return nest(filled), Report(source, loaded, tuple(stay), tuple(ignored), note)


def fill_collections(
    variables: Mapping[str, Params],
    tables: Mapping[str, Mapping[str, Any]],
    kept: Sequence[str] = (),
    source: str = "the checkpoint",
    ignored: Iterable[str] = (),
    note: str = "",
) -> tuple[dict[str, Params], Report]:
    """`fill` for each collection of a model's variables: "params", "batch_stats", ...

    `tables` has a table for each collection that the file knows; other collections stay as they
    are. The report names what belongs to collections other than "params" as "collection/path".
    """
    filled, reports = dict(variables), []
    for collection, table in tables.items():
        filled[collection], report = fill(
            variables.get(collection, {}), table, kept, source, ignored, note
        )
        if collection != "params":
            paths = {
                field: tuple(f"{collection}/{path}" for path in getattr(report, field))
                for field in ("loaded", "kept")
            }
            report = dataclasses.replace(report, **paths)
        reports.append(report)
    if not any(report.loaded for report in reports):
        raise UserError(f"{source} fills nothing of the model's {', '.join(variables)}.")
    return filled, Report(
        source,
        tuple(path for report in reports for path in report.loaded),
        tuple(path for report in reports for path in report.kept),
        tuple(ignored),
        note,
    )


def vit_parts(
    canonical: Mapping[str, np.ndarray],
    grid: tuple[int, int],
    source: str = "the checkpoint",
    *,
    depth: int,
    width: int,
    patch: int,
    registers: int = 0,
    projection: int = 0,
    rule: str = "bilinear",
) -> tuple[dict[str, Params], str]:
    """(the two parts of a ViT as parameter trees, what was done to its position embedding).

    "tokens" is the tree of `models/trunk.Trunk`: patch/kernel [p * p * 3, D], patch/bias [D],
    class_token [1, D], position [1+n, D] and blocks/... [L-1, ...], the first L-1 blocks stacked,
    and registers [R, D], norm_before/... where the file has some; "head" is that of
    `models/trunk.LastBlock`: block/..., the last block, norm/... and, asked for, projection/kernel.

    Args:
        canonical: one ViT, as `to_canonical` gives it.
        grid: (rows, columns) of the model's patches.
        source: where the arrays are from, for messages.
        depth: number of blocks of the model, the last one included.
        width: D of the model.
        patch: side of the model's patches in pixels.
        registers: number of registers of the model.
        projection: columns of the model's projection behind the last norm, 0 where it has none.
        rule: how positions are resized, one of `positions.RULES`.

    Raises UserError where a size of the model is not that of the file, naming both, and where the
    positions can not be resized.
    """
    sizes = {
        "depth": (depth, depth_of(canonical)),
        "width": (width, canonical["class_token"].shape[-1]),
        "patch": (patch, canonical["patch/kernel"].shape[0]),
        "registers": (registers, len(canonical.get("registers", ()))),
    }
    if projection:
        theirs = canonical.get("projection/kernel", np.zeros((width, 0))).shape[1]
        sizes["projection"] = (projection, theirs)
    different = [
        f"{what} {theirs} where the model has {ours}"
        for what, (ours, theirs) in sizes.items()
        if ours != theirs
    ]
    if different:
        raise UserError(
            f"{source} has {', '.join(different)}; set config.model.variant and the patch size to "
            "those of the file (and registers, projection, where the backbone has such options)"
        )
    canonical, note = dict(canonical), ""
    if "position" in canonical:
        canonical["position"], note = fit_position(canonical["position"], grid, source, rule)
    tokens = trunk_parameters(canonical, depth - 1)
    head = {
        **{f"block/{k}": array for k, array in _inside(f"blocks/{depth - 1}/", canonical).items()},
        **{name: canonical[name] for name in ("norm/scale", "norm/bias")},
    }
    if projection:
        head["projection/kernel"] = canonical["projection/kernel"]
    return {"tokens": tokens, "head": nest(head)}, note


OUTSIDE_BLOCKS = (
    "patch/bias",
    "class_token",
    "registers",
    "position",
    "norm_before/scale",
    "norm_before/bias",
)
"""What a trunk may have beside the patch kernel and its blocks."""


def trunk_parameters(canonical: Mapping[str, np.ndarray], blocks: int) -> Params:
    """The tree of a `models/trunk.Trunk` of the first `blocks` blocks of a canonical ViT."""
    kernel = canonical["patch/kernel"]
    flat = {
        "patch/kernel": kernel.reshape(-1, kernel.shape[-1]),  # rows (y, x, channel)
        **{name: canonical[name] for name in OUTSIDE_BLOCKS if name in canonical},
    }
    for leaf in _inside("blocks/0/", canonical) if blocks else ():
        layers = [canonical[f"blocks/{i}/{leaf}"] for i in range(blocks)]
        flat[f"blocks/{leaf}"] = np.stack(layers)
    return nest(flat)


def _inside(prefix: str, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}


def depth_of(canonical: Mapping[str, np.ndarray]) -> int:
    """The number of blocks of a ViT in canonical names."""
    return 1 + max(int(name.split("/")[1]) for name in canonical if name.startswith("blocks/"))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
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
