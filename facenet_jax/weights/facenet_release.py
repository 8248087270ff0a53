"""FACENet checkpoints of the authors' PyTorch release <-> our variables, by one table.

`used_rows` lists every tensor that takes part in the release's computation, under its name there,
with its place in our tree; `unused_tensors` the rest, which an import leaves out and an export
fills, since its loader wants them. Nothing is computed: what is imported and exported again is
equal bit by bit (docs/fidelity.md).
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.files import as_float32
from facenet_jax.weights.merge import flatten
from facenet_jax.weights.messages import listed, shown
from facenet_jax.weights.torch_rows import Row, block, linear, neck, norm, to_ours, trunk

TRUNKS = ("base", "base1", "base2")  # of visible, near-infrared, thermal
SUFFIXES = ("", "N", "T")  # of the layers of visible, near-infrared, thermal
CROSS = ("cross_att.cross_att", "cross_att.cross_att1")  # queries: visible, near-infrared
FLARE_LABELS = ("R", "N")  # whose flare label a head predicts: visible, near-infrared
CLASSES_OF_FC = 1000  # an ImageNet classifier that the release keeps in each trunk


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of a release checkpoint say about its model."""

    width: int
    depth: int  # blocks, the last one included
    patch: int  # pixels
    tokens: int  # patches of an image
    hidden: int  # width inside the MLP
    identities: int
    mfmp_heads: int
    mfmp_head_width: int
    threshold: float  # of the hard mask M > threshold; the release never moves it from 0


def used_rows(depth: int) -> Iterator[Row]:
    """(their name, our path, index into its leading axes, layout) of every tensor that counts."""
    for m, (base, suffix) in enumerate(zip(TRUNKS, SUFFIXES, strict=True)):
        yield from trunk(base, m, depth - 1)
        yield from block(f"b1{suffix}.0", "params/last/block", (m,))
        yield from norm(f"b1{suffix}.1", "params/last/norm", (m,))
        yield from neck(f"bottleneck{suffix}", "neck", (m,))
        yield from linear(f"classifier{suffix}", "params/classifier", (m,), bias=False)
    for a, (cross, label) in enumerate(zip(CROSS, FLARE_LABELS, strict=True)):
        yield from norm(f"{cross}.fn.norm", "params/mfmp/norm", (a,))
        yield from norm(f"{cross}.fn.fn.norm", "params/mfmp/norm2", (a,))
        for part in ("query", "key", "value"):
            yield from linear(f"{cross}.fn.fn.{part}_proj", f"params/mfmp/{part}", (a,), False)
        yield from linear(f"{cross}.fn.fn.out_proj", "params/mfmp/out", (a,))
        yield from block(f"b_{label}_label.0", "params/flare_head/block", (a,))
        yield from norm(f"b_{label}_label.1", "params/flare_head/norm", (a,))
        yield from neck(f"bottleneck_{label}_label", "flare_head/neck", (a,))
        yield from linear(f"classifier_{label}_label", "params/flare_head/classifier", (a,), False)


def unused_tensors(
    state: Mapping[str, np.ndarray], width: int, depth: int
) -> dict[str, np.ndarray]:
    """{name: values} of the tensors that the release keeps and never uses, fit for `state`.

    Its `blocks.{L-1}`, `norm` and `b2*` are copies of the branch's own last block and norm, as when
    the release builds them; classifiers and projections that nothing calls are zero.
    """
    filled = {}
    for base, suffix in zip(TRUNKS, SUFFIXES, strict=True):
        for name in [name for name in state if name.startswith(f"b1{suffix}.")]:
            tail = name.removeprefix(f"b1{suffix}.")
            filled[f"b2{suffix}.{tail}"] = state[name]
            own = f"norm.{tail[2:]}" if tail.startswith("1.") else f"blocks.{depth - 1}.{tail[2:]}"
            filled[f"{base}.{own}"] = state[name]
        filled[f"{base}.fc.weight"] = np.zeros((CLASSES_OF_FC, width), np.float32)
        filled[f"{base}.fc.bias"] = np.zeros(CLASSES_OF_FC, np.float32)
    for cross in CROSS:
        out = f"{cross}.fn.fn.out_proj.weight"
        filled[f"{cross}.fn.fn.to_out.0.weight"] = np.zeros_like(state[out])
        filled[f"{cross}.fn.fn.to_out.0.bias"] = np.zeros(width, np.float32)
    necks = [f"bottleneck{suffix}" for suffix in SUFFIXES]
    necks += [f"bottleneck_{label}_label" for label in FLARE_LABELS]
    for name in necks:
        filled[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
    return filled


def is_release(state: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of a FACENet of the release."""
    return any(re.match(r"(module\.)?(base1?\.|b1N\.)", name) for name in state)


def import_release(
    state: Mapping[str, np.ndarray], source: str = "the checkpoint"
) -> tuple[dict[str, Any], Sizes]:
    """({"params": ..., "batch_stats": ...} float32, sizes) of a state dict of the release.

    Raises UserError for mismatches, naming both sides of each, and for arrays that are not finite
    floating numbers.
    """
    state = {name.removeprefix("module."): array for name, array in state.items()}
    if not is_release(state):
        raise UserError(f"{source} is no FACENet of the PyTorch release: it has no base1.* tensors")
    blocks = [re.match(r"base\.blocks\.(\d{1,3})\.", name) for name in state]
    depth = 1 + max((int(match[1]) for match in blocks if match), default=0)
    rows = list(used_rows(depth))
    missing = sorted({"threshold", *(row[0] for row in rows)} - set(state))
    if missing:
        raise UserError(f"{source} lacks {listed(missing, ', ')}")
    sizes = _sizes(state, depth, source)
    used = {name: state[name] for name, *_ in rows}
    expected = {"threshold", *used, *unused_tensors(used, sizes.width, depth)}
    problems = [f"it lacks {name}" for name in sorted(expected - set(state))]
    problems += [f"there is no place for {shown(name)}" for name in sorted(set(state) - expected)]
    problems += _wrong_shapes(state, sizes)
    if problems:
        raise UserError(f"{source} is not the release's FACENet: {listed(problems)}")
    used = as_float32({**used, "threshold": state["threshold"]}, source)
    return to_ours(used, rows), sizes


def _sizes(state: Mapping[str, np.ndarray], depth: int, source: str) -> Sizes:
    try:
        inner, width = state[f"{CROSS[0]}.fn.fn.query_proj.weight"].shape
        identities, _ = state["classifier.weight"].shape
        hidden, _ = state["b1.0.mlp.fc1.weight"].shape
        _, tokens, _ = state["base.pos_embed"].shape
        _, _, _, patch = state["base.patch_embed.proj.weight"].shape
        (threshold,) = map(float, state["threshold"])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{source} has tensors of other ranks than the release's FACENet"
        ) from error
    if width < 1 or inner % width:
        raise UserError(
            f"{source} has an MFMP of {inner} features, no multiple of its width {width}"
        )
    heads = inner // width  # its attention is scaled by 1 / sqrt(D): one head has the width D
    return Sizes(width, depth, patch, tokens - 1, hidden, identities, heads, width, threshold)


def _wrong_shapes(state: Mapping[str, np.ndarray], s: Sizes) -> list[str]:
    inner = s.mfmp_heads * s.mfmp_head_width
    by_ending = {
        "cls_token": (1, 1, s.width),
        "pos_embed": (1, 1 + s.tokens, s.width),
        "patch_embed.proj.weight": (s.width, 3, s.patch, s.patch),
        "attn.qkv.weight": (3 * s.width, s.width),
        "attn.qkv.bias": (3 * s.width,),
        "attn.proj.weight": (s.width, s.width),
        "mlp.fc1.weight": (s.hidden, s.width),
        "mlp.fc1.bias": (s.hidden,),
        "mlp.fc2.weight": (s.width, s.hidden),
        "query_proj.weight": (inner, s.width),
        "key_proj.weight": (inner, s.width),
        "value_proj.weight": (inner, s.width),
        "out_proj.weight": (s.width, inner),
        "_label.weight": (2, s.width),
    }
    problems = []
    for name, *_ in used_rows(s.depth):
        shape = (s.width,)
        if re.fullmatch(r"classifier[NT]?\.weight", name):
            shape = (s.identities, s.width)
        elif not name.startswith("bottleneck"):
            shape = next((v for end, v in by_ending.items() if name.endswith(end)), shape)
        if state[name].shape != shape:
            problems.append(f"{name} is {list(state[name].shape)} instead of {list(shape)}")
    return problems


def export_release(variables: Mapping[str, Any], threshold: float = 0.0) -> dict[str, np.ndarray]:
    """The state dict of the release that `variables` of the `official` preset amount to.

    `threshold` is that of the hard mask, M > threshold.

    Raises UserError where the tree is not that of the `official` preset with MFMP and flare heads,
    naming the differences.
    """
    ours = flatten({key: variables[key] for key in ("params", "batch_stats")})
    blocks = ours.get("params/trunk/blocks/qkv/bias")
    depth = 1 if blocks is None else 1 + blocks.shape[-2]
    rows = list(used_rows(depth))
    wanted = {row[1] for row in rows}
    problems = [f"it has no {path}" for path in sorted(wanted - set(ours))]
    problems += [f"the release has no {path}" for path in sorted(set(ours) - wanted)]
    if not problems and ours["params/trunk/position"].ndim != 3:
        problems.append("its three modalities share one trunk, the release has three")
    if problems:
        raise UserError(f"Only the official preset can be exported: {listed(problems)}.")
    state = {
        name: np.ascontiguousarray(layout.theirs(np.asarray(ours[path], np.float32)[index]))
        for name, path, index, layout in rows
    }
    state["threshold"] = np.full(1, threshold, np.float32)
    return state | unused_tensors(state, ours["params/neck/scale"].shape[-1], depth)
