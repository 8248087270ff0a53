"""k-reciprocal re-ranking (Zhong et al. 2017) in blocks: no matrix of all pairs is ever held.

Every point, query or gallery, is described by its k-reciprocal neighbours with the weights
exp(-distance), and two points are near if their descriptions overlap (the Jaccard distance). The
descriptions are sparse matrices; distances are computed block by block, three times over instead of
stored.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from data_tfds.errors import UserError
from facenet_jax.retrieval.distances import checked_pair

_DISTANCE_BYTES = 64 * 2**20  # distances held at a time


def rerank(
    query: np.ndarray,
    gallery: np.ndarray,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    block: int | None = None,
) -> Iterator[np.ndarray]:
    """Blocks [b, G] float32 of re-ranked distances, the queries in order.

    `query` [Q, E], `gallery` [G, E], L2-normalised here. The distance is (1 - lambda_) Jaccard +
    lambda_ squared Euclidean, the latter divided by the query's largest to any point. `k1`
    neighbours define reciprocity, and each description is the mean over the `k2` nearest points.
    A point is its own first neighbour; of neighbours at equal distance the one comes first whose
    bits do, see `order_by_bits`. Rows that are equal in every bit get one and the same distance. So
    the distances do not depend on the order of the gallery, and to the last bit not on that of
    queries in `order_by_bits`.
    Memory beside the arguments: two copies of both, about k1 k2 numbers per point, and
    `block` rows of distances, by default as many as fit into 64 MiB.
    UserError as in `per_query`, and if the parameters do not fit the number of points.
    """
    query, gallery = checked_pair(query, gallery)
    total = len(query) + len(gallery)
    _check_parameters(k1, k2, lambda_, total)
    points, queries = _normalised(query, gallery), len(query)
    order = _order(points[:queries]), _order(points[queries:])
    points = np.concatenate([points[:queries][order[0]], points[queries:][order[1]]])
    block = max(1, _DISTANCE_BYTES // (4 * total)) if block is None else block
    return _rerank(points, order, k1, k2, lambda_, block)


def order_by_bits(embedding: np.ndarray) -> np.ndarray:
    """The rows of `embedding` [N, E] sorted by the bits of their normalised values, [N]."""
    embedding, _ = checked_pair(embedding, embedding[:1])
    return _order(_normalised(embedding, embedding[:0]))


def _order(points):
    """The rows of `points` sorted by their bits."""
    return np.argsort(points.view(np.dtype((np.void, 4 * points.shape[1]))).ravel(), kind="stable")


def _firsts(points):
    """For each of the sorted `points` the first that equals it in every bit, [N]."""
    differs = np.ones(len(points), bool)
    differs[1:] = (points[1:] != points[:-1]).any(axis=1)
    return np.maximum.accumulate(np.where(differs, np.arange(len(points)), 0))


def _rerank(points, order, k1, k2, lambda_, block):
    """The blocks of `rerank`; `points` are the queries and the gallery, each in its `order`."""
    queries = len(order[0])
    neighbours, largest = _neighbours(points, max(k1 + 1, k2), block)
    described = _averaged(_descriptions(points, neighbours, largest, k1, block), neighbours[:, :k2])
    of_gallery = described[queries:].tocsc()
    same, columns = _firsts(points[:queries]), _firsts(points[queries:])
    place = np.empty(queries, int)
    place[order[0]] = np.arange(queries)

    before, jaccard = -1, np.empty(len(columns), np.float32)
    for first in range(0, queries, block):
        rows = same[place[first : first + block]]
        distances = _to_gallery(points, rows, queries)
        found = np.empty_like(distances)
        for row, out, point in zip(distances, found, rows, strict=True):
            if point != before:  # else it is a copy of the query before it
                part = slice(*described.indptr[point : point + 2])
                shared = _shared(described.indices[part], described.data[part], of_gallery)
                jaccard[:] = 1 - shared / (2 - shared)
                nearness = (1 - lambda_) * jaccard + lambda_ / largest[point] * row
                nearness, before = nearness[columns], point
            out[order[1]] = nearness
        yield found


def _to_gallery(points, rows, queries):
    """Squared distances [b, G] of the `rows` of `points` to those behind the `queries`."""
    gallery, few = points[queries:], points[rows]
    distances = few @ gallery.T
    distances *= -2
    distances += np.einsum("ij,ij->i", gallery, gallery)
    distances += np.einsum("ij,ij->i", few, few)[:, None]
    return np.maximum(distances, 0, out=distances)


def _neighbours(points, count, block):
    """Each point's `count` nearest, itself first, [N, count]; its largest distance to any, [N]."""
    neighbours = np.empty((len(points), count), np.int32)
    largest = np.empty(len(points), np.float32)
    for first, distances in _distance_blocks(points, block, len(points)):
        for point, row in enumerate(distances, start=first):
            largest[point] = max(row.max(), 1e-12)
            row[point] = -1.0
            # A partial sort alone would leave it to chance which of several equal rows are in.
            close = np.flatnonzero(row <= np.partition(row, count - 1)[count - 1])
            neighbours[point] = close[np.argsort(row[close], kind="stable")[:count]]
    return neighbours, largest


def _descriptions(points, neighbours, largest, k1, block):
    """Weights of each point's expanded k-reciprocal neighbours, sparse [N, N]; rows sum to 1."""
    near, half = neighbours[:, : k1 + 1], neighbours[:, : round(k1 / 2) + 1]
    mutual, mutual_half = _mutual(near, block), _mutual(half, block)
    reciprocal = np.zeros(len(points), bool)
    columns, weights = [], []
    for first, distances in _distance_blocks(points, block, len(points)):
        for point, row in enumerate(distances, start=first):
            own = near[point][mutual[point]]
            reciprocal[own] = True
            # A neighbour whose own reciprocal set lies for more than two thirds within the
            # point's brings that set along.
            theirs, counts = half[own], mutual_half[own]
            inside = (reciprocal[theirs] & counts).sum(axis=1)
            welcome = 3 * inside > 2 * counts.sum(axis=1)
            reciprocal[own] = False
            expanded = np.unique(np.append(own, theirs[counts & welcome[:, None]]))
            weight = np.exp(-row[expanded] / largest[point])
            columns.append(expanded)
            weights.append(weight / weight.sum())
    start = np.cumsum([0, *(len(column) for column in columns)])
    return _sparse(np.concatenate(weights), np.concatenate(columns), start)


def _averaged(described, nearest):
    """The mean of the descriptions of each point's `nearest` [N, k2], sparse [N, N]."""
    points, count = nearest.shape
    start = np.arange(points + 1) * count
    mean = _sparse(np.ones(nearest.size, np.float32), nearest.ravel(), start) @ described
    mean.data /= count
    return mean


def _sparse(values, columns, start):
    """The square matrix whose row i has `values[start[i]:start[i + 1]]` at `columns` alike."""
    # scipy keeps the wider of the two index types, and int64 would double the memory of indices.
    start = start.astype(np.int32 if start[-1] < 2**31 else np.int64)
    parts = values, columns.astype(start.dtype, copy=False), start
    return sparse.csr_array(parts, shape=(len(start) - 1, len(start) - 1))


def _shared(columns, weights, of_gallery):
    """Sum over `columns` of the smaller weight of a query and each gallery row, [G] float64."""
    theirs = of_gallery[:, columns]
    ours = np.repeat(weights, np.diff(theirs.indptr))
    return np.bincount(theirs.indices, np.minimum(ours, theirs.data), minlength=of_gallery.shape[0])


def _mutual(neighbours, block):
    """Whether each neighbour of a point has the point among its own neighbours, [N, k]."""
    mutual = np.empty(neighbours.shape, bool)
    for start in range(0, len(neighbours), block):
        part = neighbours[start : start + block]
        points = np.arange(start, start + len(part))
        mutual[start : start + block] = (neighbours[part] == points[:, None, None]).any(axis=2)
    return mutual


def _distance_blocks(points, block, stop):
    """(first row, squared distances [b, N]) for blocks of the rows before `stop`."""
    square = np.einsum("ij,ij->i", points, points)
    for first in range(0, stop, block):
        rows = slice(first, min(first + block, stop))
        distances = points[rows] @ points.T
        distances *= -2
        distances += square
        distances += square[rows, None]
        yield first, np.maximum(distances, 0, out=distances)


def _normalised(query, gallery):
    """Queries and gallery below each other, L2-normalised, float32 [Q + G, E]."""
    points = np.concatenate([query, gallery])
    for start in range(0, len(points), 256):
        part = points[start : start + 256]
        norm = np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True)
        part[:] = part / np.maximum(norm, 1e-12) + 0.0  # so that no zero has a sign
    return points


def _check_parameters(k1, k2, lambda_, total):
    """UserError unless the parameters make sense for `total` points."""
    if k1 < 1 or k2 < 1 or max(k1 + 1, k2) > total:
        raise UserError(
            f"Re-ranking with k1 = {k1} and k2 = {k2} does not fit {total} query and gallery "
            f"rows: k1 must lie in 1..{total - 1} and k2 in 1..{total}."
        )
    if not 0 <= lambda_ <= 1:
        raise UserError(f"Re-ranking with lambda = {lambda_}: it must lie in 0..1.")
