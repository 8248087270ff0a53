"""The position embedding of a file, resized to the grid of the model, by the rule of a publisher.

Each publisher resizes the native grid in its own way, and the tokens of an image differ by 1 to 7
% between them, so the rule is part of what a weight file means. 1-D weights per axis, applied to
rows and columns; the row of the class token is kept.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.names.vit import Recognised

RULES = ("bilinear", "size_antialias", "size", "meta")
"""bilinear: triangle, no antialiasing, borders clamped: every re-ID release.
size_antialias: cubic with a = -0.5, widened where it shrinks: timm, open_clip, and of DINOv2 with
registers Meta and Hugging Face, too.
size: cubic with a = -0.75, no antialiasing, borders clamped: Hugging Face's DINOv2.
meta: as size, from coordinates a little off: Meta's DINOv2 without registers."""

CUBIC = -0.75  # a of the cubic kernel of `size` and `meta`
OFFSET = 0.1  # what Meta's code adds to the number of rows and columns


def publishers_rule(found: Recognised) -> str:
    """The rule of whoever named the tensors of a file."""
    own = {"Meta": "meta", "Hugging Face": "size"}
    if found.family != "dinov2" or "registers" in found.canonical:
        return "size_antialias"
    return own.get(found.publisher, "size_antialias")


def fit_position(
    position: np.ndarray, grid: tuple[int, int], source: str, rule: str = "bilinear"
) -> tuple[np.ndarray, str]:
    """(position embedding [1+n, D] for `grid`, what was done to it); the source is a square grid.

    An embedding of no square number of positions is taken as it is where their number is that of
    `grid`. Raises UserError where it is another.
    """
    count, wanted = len(position) - 1, math.prod(grid)
    side = math.isqrt(count)
    if count == wanted and (side * side != count or grid == (side, side)):
        return position, f"position embedding of {count} tokens as it is"
    if side * side != count:
        raise UserError(
            f"{source} has {count} positions, which form no square to resize to the "
            f"{grid[0]} x {grid[1]} tokens of the model; take a file of that or a square size"
        )
    note = f"position embedding resized from {side} x {side} to {grid[0]} x {grid[1]} ({rule})"
    return resize_position(position, (side, side), grid, rule), note


def resize_position(
    position: np.ndarray,
    grid_from: tuple[int, int],
    grid_to: tuple[int, int],
    rule: str = "bilinear",
) -> np.ndarray:
    """Position embedding [1+n', D] for the grid (rows, columns) `grid_to`, from one [1+n, D].

    By one of `RULES`; the class token's row is kept, and so is all of it on the same grid.
    """
    if math.prod(grid_from) != len(position) - 1:
        raise ValueError(f"{len(position) - 1} positions are no grid of {grid_from}")
    if grid_from == grid_to:
        return position
    width = position.shape[1]
    patches = position[1:].reshape(*grid_from, width)
    if rule == "bilinear":  # in float32, as all runs before the other rules came were started
        patches = np.asarray(resized(patches, grid_to, rule))
    else:
        with jax.enable_x64(True):
            patches = np.asarray(resized(patches.astype(np.float64), grid_to, rule))
    patches = patches.reshape(-1, width).astype(position.dtype)
    return np.concatenate([position[:1], patches])


def resized(patches: jax.Array, grid: tuple[int, int], rule: str) -> jax.Array:
    """[rows, columns, D] to [*grid, D] in its own type, differentiable."""
    shape = (*grid, patches.shape[-1])
    if rule == "bilinear":
        return jax.image.resize(patches, shape, "bilinear", antialias=False)
    if rule == "size_antialias":
        return jax.image.resize(patches, shape, "cubic", antialias=True)
    extra = OFFSET if rule == "meta" else 0.0
    rows, columns = (
        jnp.asarray(cubic_weights(*sides, extra), patches.dtype)
        for sides in zip(patches.shape, grid, strict=False)
    )
    return jnp.einsum("ir,jc,rcd->ijd", rows, columns, patches, precision="highest")


def cubic_weights(source: int, target: int, extra: float) -> np.ndarray:
    """[target, source] weights of an axis: four neighbours, those beyond a border at the border."""
    at = (np.arange(target) + 0.5) * source / (target + extra) - 0.5
    first = np.floor(at).astype(int)
    weights = np.zeros((target, source))
    for offset in (-1, 0, 1, 2):
        tap = first + offset
        place = np.clip(tap, 0, source - 1)
        np.add.at(weights, (np.arange(target), place), cubic(np.abs(at - tap)))
    return weights


def cubic(t: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel at distances t >= 0 (Keys 1981)."""
    a = CUBIC
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
