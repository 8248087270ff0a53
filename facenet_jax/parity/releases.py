"""What the comparisons with the releases of other systems share.

Their golden directories store no weights: these follow by a rule from the names of the release's
tensors. The numbers were computed in float64 and stored as float32.
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from facenet_jax.models import clip, resnet
from facenet_jax.parity.rows import Row, compared, verdict

ARRAYS, NUMBERS = 2e-6, 1e-6  # of the largest reference value, in float64
OF_LARGEST_NORM = 1e-9  # besides, for gradients of pure rounding
TOKENS = (
    *("cls_token", "pos_embed", "sie_embed", "register_tokens", "storage_tokens", "mask_token"),
    *("class_embedding", "positional_embedding"),
)
"""Last parts of the names of tensors that are 0.2 times normal numbers."""
FLOAT32 = (2e-5, 10)  # at least, and times the release's own error in float32


def filled(shapes: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """The tensors of the state dict with these shapes, by the rule of the golden directories."""
    return {name: tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One tensor of that rule: normal numbers of a generator seeded by its name, scaled."""
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    generator = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    z = generator.standard_normal(shape)
    if last == "running_mean":
        z = 0.1 * z
    elif last == "running_var":
        z = 1 + 0.1 * np.abs(z)
    elif last in TOKENS:
        z = 0.2 * z
    elif len(shape) == 1:
        z = 0.05 * z if name.endswith("bias") else 1 + 0.1 * z
    else:
        z = z / np.sqrt(np.prod(shape[1:])) * (0.3 if name.startswith("NL_") else 1.0)
    return z.astype(np.float32)


def pictures(grids: np.ndarray, meta: Mapping[str, Any]) -> np.ndarray:
    """Images [M, B, H, W, 3] float32, normalised, of grids [B, M, rows, columns, 3] of squares."""
    height, width = meta["image"]
    images = grids.repeat(meta["block"], axis=2).repeat(meta["block"], axis=3)
    images = images[:, :, :height, :width].swapaxes(0, 1) / 255.0
    mean, std = {
        "imagenet": (resnet.IMAGENET_MEAN, resnet.IMAGENET_STD),
        "half": ((0.5,) * 3, (0.5,) * 3),
        "clip": (clip.MEAN, clip.STD),
    }[meta["normalise"]]
    return ((images - np.array(mean)) / np.array(std)).astype(np.float32)


def forward_rows(
    mode: str,
    values: Mapping[str, jax.Array],
    reference: Mapping[str, np.ndarray],
    errors: Mapping[str, float] | None = None,
    words: str = "",
) -> Iterator[Row]:
    """Rows of "eval" or "train"; with `errors` of the release, those of float32."""
    for name in (name for name in reference if name.startswith(f"{mode}_")):
        tolerance = ARRAYS
        if errors is not None:
            tolerance = max(FLOAT32[0], FLOAT32[1] * errors.get(name, 0.0))
        ours = values.get(name.removeprefix(f"{mode}_"), np.nan)
        yield compared(name + words, ours, reference[name], tolerance)


def norm_rows(
    kind: str,
    ours: Mapping[str, float],
    reference: Mapping[str, float | None],
    limit: float = NUMBERS,
    of_largest: float = OF_LARGEST_NORM,
) -> Iterator[Row]:
    """A row for every norm of the reference, within `limit` of it; null: there must be none.

    `of_largest`, a share of the largest norm, is allowed besides, for gradients of pure rounding.
    """
    floor = of_largest * max(value for value in reference.values() if value is not None)
    for name, value in reference.items():
        if value is None:
            yield compared(f"{kind} {name} (none)", ours.get(name, 0.0), 0.0, 0.0)
            continue
        error = abs(ours.get(name, np.nan) - value)
        relative = max(error - floor, 0.0) / value if value else error
        relative = relative if np.isfinite(error) else np.nan  # max() loses a NaN
        yield Row(f"{kind} {name}", error, relative, limit, verdict(relative, limit))
