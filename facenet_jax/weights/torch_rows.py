"""The tensors of a ViT in the releases of TransReID and FACENet, and their places in our variables.

A row says where a tensor lies in our tree and in which layout; nothing is computed.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from facenet_jax.weights.merge import nest


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array goes from torch's layout to ours, and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


def _patch_rows(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))  # [D,3,p,p] -> [p*p*3, D]


def _patch_image(kernel: np.ndarray) -> np.ndarray:
    patch = math.isqrt(len(kernel) // 3)
    return kernel.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)
TOKENS = Layout(lambda x: x[0], lambda x: x[None])
PATCH = Layout(_patch_rows, _patch_image)

Row = tuple[str, str, tuple[int, ...], Layout]  # their name, our path, index into it, layout


def linear(theirs: str, ours: str, index: tuple[int, ...], bias: bool = True) -> Iterator[Row]:
    """Rows of a Linear."""
    yield f"{theirs}.weight", f"{ours}/kernel", index, LINEAR
    if bias:
        yield f"{theirs}.bias", f"{ours}/bias", index, SAME


def norm(theirs: str, ours: str, index: tuple[int, ...]) -> Iterator[Row]:
    """Rows of a LayerNorm."""
    yield f"{theirs}.weight", f"{ours}/scale", index, SAME
    yield f"{theirs}.bias", f"{ours}/bias", index, SAME


def block(theirs: str, ours: str, index: tuple[int, ...]) -> Iterator[Row]:
    """Rows of a transformer block."""
    yield from norm(f"{theirs}.norm1", f"{ours}/norm1", index)
    yield from linear(f"{theirs}.attn.qkv", f"{ours}/qkv", index)
    yield from linear(f"{theirs}.attn.proj", f"{ours}/proj", index)
    yield from norm(f"{theirs}.norm2", f"{ours}/norm2", index)
    yield from linear(f"{theirs}.mlp.fc1", f"{ours}/fc1", index)
    yield from linear(f"{theirs}.mlp.fc2", f"{ours}/fc2", index)


def neck(theirs: str, ours: str, index: tuple[int, ...]) -> Iterator[Row]:
    """Rows of the BatchNorm of a BNNeck."""
    yield f"{theirs}.weight", f"params/{ours}/scale", index, SAME
    yield f"{theirs}.running_mean", f"batch_stats/{ours}/mean", index, SAME
    yield f"{theirs}.running_var", f"batch_stats/{ours}/var", index, SAME
    yield f"{theirs}.bias", f"batch_stats/{ours}/bias", index, SAME  # frozen, so no parameter


def trunk(base: str, branch: int, blocks: int) -> Iterator[Row]:
    """Rows of a branch's patch embedding, tokens and first `blocks` blocks."""
    yield f"{base}.cls_token", "params/trunk/class_token", (branch,), TOKENS
    yield f"{base}.pos_embed", "params/trunk/position", (branch,), TOKENS
    yield f"{base}.patch_embed.proj.weight", "params/trunk/patch/kernel", (branch,), PATCH
    yield f"{base}.patch_embed.proj.bias", "params/trunk/patch/bias", (branch,), SAME
    for i in range(blocks):
        yield from block(f"{base}.blocks.{i}", "params/trunk/blocks", (branch, i))


def to_ours(state: Mapping[str, np.ndarray], rows: Iterable[Row]) -> dict[str, Any]:
    """Our variables as a nested dict, of the tensors that `rows` name."""
    parts: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for name, path, index, layout in rows:
        parts.setdefault(path, {})[index] = layout.ours(state[name])
    return nest({path: stacked(pieces) for path, pieces in parts.items()})


def stacked(pieces: Mapping[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """One array of pieces by their index into its leading axes."""
    lead = tuple(
        1 + max(index[axis] for index in pieces) for axis in range(len(next(iter(pieces))))
    )
    values = np.stack([pieces[index] for index in np.ndindex(*lead)])
    return values.reshape(*lead, *values.shape[1:])
