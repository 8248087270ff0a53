"""Names of a file -> canonical names, by a table of which every key must meet exactly one row."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from facenet_jax.weights.files import as_float32
from facenet_jax.weights.messages import shown

IGNORED = ""  # the canonical name of what a file holds and a model does not need

Layout = Callable[[np.ndarray], np.ndarray]
Row = tuple[str, str, Layout]  # pattern of their name, canonical name, layout


def same(x: np.ndarray) -> np.ndarray:
    """The layout of what is stored alike."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """[out, in] to [in, out]."""
    return x.T


def image_kernel(x: np.ndarray) -> np.ndarray:
    """[out, in, rows, columns] to [rows, columns, in, out]."""
    return x.transpose(2, 3, 1, 0)


def translate(
    flat: Mapping[str, np.ndarray], rows: Sequence[Row], source: str
) -> tuple[dict[str, np.ndarray], list[str], list[str], list[str]]:
    """(canonical float32 arrays, names not needed, what does not fit, names without a row).

    The last two are clauses of a refusal. Raises `UserError` for arrays that are no finite floating
    numbers.
    """
    targets: dict[str, tuple[str, Layout]] = {}  # by the names that fill something
    ignored, problems, unknown = [], [], []
    for name in flat:
        found = ((re.fullmatch(pattern, name), ours, layout) for pattern, ours, layout in rows)
        match, ours, layout = next((row for row in found if row[0]), (None, "", same))
        if match is None:
            unknown.append(f"this model has no place for {shown(name)}")
        elif ours == IGNORED:
            ignored.append(name)
        else:
            targets[name] = (match.expand(ours), layout)
    canonical: dict[str, np.ndarray] = {}
    for name, array in as_float32({name: flat[name] for name in targets}, source).items():
        ours, layout = targets[name]
        if ours in canonical:
            problems.append(f"{shown(name)} is a second {ours}")
            continue
        try:
            canonical[ours] = layout(array)
        except (ValueError, IndexError, TypeError):
            problems.append(f"{shown(name)} has shape {list(array.shape)}")
    return canonical, ignored, problems, unknown
