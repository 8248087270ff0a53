"""Query expansion and augmentation of the gallery: each row becomes a mean with its neighbours.

    x' = normalised(x + sum_i w_i g_i),     w_i = max(cosine(x, g_i), 0) ^ alpha

over the k nearest gallery rows g_i, all L2-normalised. alpha = 0 gives every neighbour the weight
1 (AQE, Chum et al. 2007); alpha > 0 is alpha-QE (Radenovic et al. 2019). The same done to each
gallery row, with its neighbours other than itself, is database augmentation (DBA, Arandjelovic and
Zisserman 2012). As in re-ranking, no label is looked at: rows that a protocol leaves out of a
query's list take part.
"""

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.retrieval.distances import DISTANCE_BYTES, Euclidean, checked_pair


def expand(
    query: np.ndarray, gallery: np.ndarray, neighbours: int, alpha: float = 0.0
) -> np.ndarray:
    """The queries [Q, E] float32, each a mean with its nearest gallery rows, L2-normalised.

    Of gallery rows at equal distance those come first whose bits do, so that the order of the
    gallery does not matter. Memory beside the arguments: a copy of both, and DISTANCE_BYTES.
    UserError for arrays that do not fit each other or are not finite, and for parameters that do
    not fit them.
    """
    query, gallery = checked_pair(query, gallery)
    check("expansion", neighbours, alpha, len(gallery))
    return _means(query, gallery, neighbours, alpha, own=False)


def augment(gallery: np.ndarray, neighbours: int, alpha: float = 0.0) -> np.ndarray:
    """The gallery [G, E] float32, each row a mean with its nearest other rows; see `expand`."""
    gallery, _ = checked_pair(gallery, gallery)
    check("augmentation of the gallery", neighbours, alpha, len(gallery) - 1)
    return _means(gallery, gallery, neighbours, alpha, own=True)


def check(what: str, neighbours: int, alpha: float, rows: int) -> None:
    """UserError unless the parameters make sense for so many rows to choose from."""
    if not 1 <= neighbours <= rows:
        raise UserError(
            f"The {what} with {neighbours} neighbours does not fit a gallery that has {rows} rows "
            f"to choose from: it must be 1..{rows}."
        )
    if not 0 <= alpha < np.inf:
        raise UserError(f"The {what} with alpha = {alpha}: it must be 0 or more, and finite.")


def nearest(distances: np.ndarray, neighbours: int) -> np.ndarray:
    """Where the smallest of [G] distances are, in rising order; the first of those that tie."""
    last = np.partition(distances, neighbours - 1)[neighbours - 1]
    close = np.flatnonzero(distances <= last)
    return close[np.argsort(distances[close], kind="stable")[:neighbours]]


def _means(query, gallery, neighbours, alpha, own):
    """Both of the above; with `own` row i of `query` is row i of `gallery`."""
    distances = Euclidean(query, gallery)
    unit = _normalised(gallery)[distances.order]
    found = _normalised(query)
    place = np.argsort(distances.order) if own else None
    block = max(1, DISTANCE_BYTES // (4 * len(gallery)))
    for row, angles in enumerate(distances.angles(np.arange(len(query)), block)):
        if own:
            angles[place[row]] = np.inf
        close = nearest(angles, neighbours)
        weights = np.maximum(1 - angles[close], 0) ** alpha
        found[row] += weights.astype(np.float32) @ unit[close]
    return _normalised(found)


def _normalised(rows):
    """The rows, L2-normalised with the norm floor 1e-12, as a new float32 array."""
    norm = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.maximum(norm, 1e-12)).astype(np.float32)
