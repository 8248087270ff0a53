"""Euclidean distances for ranking: float32, in blocks, the same whatever the gallery's order.

What ties mean in floating point. Gallery rows are multiplied in an order given by their bits, and
rows that are equal in every bit get one and the same distance, whatever block or tile of the matrix
product they fell into. So the distances do not depend on the order of the gallery, bit for bit.
Rows are scaled by powers of two and divided by their norm after the product, so vectors of small
integers (one-hot, +-1) tie exactly where they should. Two other vectors whose true distances differ
by less than the rounding of the product (about 1e-7) rank as that rounding says; it depends on the
BLAS and the block.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from data_tfds.errors import UserError

DISTANCE_BYTES = 128 * 2**20
"""Size of the distances held at a time: the fewer queries, the slower the product."""

_FLOOR = 1e-12  # the smallest norm that a row is divided by
_ROWS = 64  # rows squared at a time
_TILE = 2048  # gallery rows multiplied at a time


def checked_pair(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both embeddings as contiguous float32 [rows, E].

    UserError for an empty, NaN or infinite embedding and for two different widths.
    """
    return _pair(query, gallery)[:2]


class Euclidean:
    """The distances of `query` [Q, E] to `gallery` [G, E], row by row.

    Vectors are L2-normalised (norm floor 1e-12) unless `normalise` is false. `order` [G] are the
    gallery's rows sorted by their bytes: the order of the columns. UserError as in `checked_pair`.
    """

    def __init__(self, query: np.ndarray, gallery: np.ndarray, normalise: bool = True):
        self.query, self.gallery, *peaks = _pair(query, gallery)
        self.normalise = normalise
        self._exponents = _exponents(*peaks, normalise)
        as_bytes = np.dtype((np.void, 4 * self.gallery.shape[1]))
        self.order = np.argsort(self.gallery.view(as_bytes).ravel(), kind="stable")

    def rows(self, wanted: np.ndarray, block: int | None = None) -> Iterator[np.ndarray]:
        """For each of the `wanted` queries a row [G] that grows with the distance.

        A row is valid until the next one is asked for. Memory beside the arguments: `block` queries
        and their rows, by default as many as fit into DISTANCE_BYTES, and 2,048 gallery rows.
        """
        return (row for row, _ in self._rows(wanted, block))

    def angles(self, wanted: np.ndarray, block: int | None = None) -> Iterator[np.ndarray]:
        """For each of the `wanted` queries a row [G] of 1 - cosine, float32 in 0..2.

        Unlike those of `rows` they compare over queries too; memory and validity are as there.
        A query too short to normalise is 1 from every row, such a gallery row 0.5 from others.
        """
        if not self.normalise:
            raise ValueError("angles are those of normalised vectors")
        for row, length in self._rows(wanted, block):
            row /= np.float32(length)
            row += np.float32(1)
            yield np.clip(row, 0, 2, out=row)

    def _rows(self, wanted, block):
        """(row of `rows`, length of its query as the row is scaled).

        Half the squared distance of normalised vectors is 1 - q.g; without normalising it is, up to
        a constant of the query, |g|^2 / 2 - q.g. A vector too short to normalise (all zero, say)
        has |g| < 1, hence the offset.
        """
        query, gallery, order = self.query, self.gallery, self.order
        copies, originals = _copies(gallery, order)
        query_factor, square_of_query, query_floor = _scale(query, wanted, self._exponents[0])
        factor, square, floor = _scale(gallery, order, self._exponents[1])
        slope, offset, length = np.full(len(order), -1.0), square / 2, np.ones(len(wanted))
        if self.normalise:
            norm = np.maximum(np.sqrt(square), floor)
            slope, offset = -1 / norm, (square / norm**2 - 1) / 2
            offset[np.sqrt(square) >= floor] = 0.0  # else the rounding of square / norm^2
            length = np.maximum(np.sqrt(square_of_query), query_floor)
        slope, plain = slope.astype(np.float32), not offset.any()

        # A copy of the whole gallery in order would cost more in new memory than its parts again.
        rows = max(1, DISTANCE_BYTES // (4 * len(order))) if block is None else block
        rows = max(1, min(rows, len(wanted)))
        product = np.empty((rows, len(order)), np.float32)
        queries, tile = (np.empty((n, query.shape[1]), np.float32) for n in (rows, _TILE))
        for start in range(0, len(wanted), rows):
            few = slice(start, start + rows)
            left = _gather(query, wanted[few], query_factor[few], queries)
            for first in range(0, len(order), _TILE):
                some = slice(first, first + _TILE)
                right = _gather(gallery, order[some], factor[some], tile)
                np.matmul(left, right.T, out=product[: len(left), some])
            for row, scale in zip(product, length[few], strict=False):
                row *= slope
                if not plain:
                    row += (offset * scale).astype(np.float32)
                row[copies] = row[originals]
                yield row, scale


def given_rows(
    distances: Iterable[np.ndarray], queries: int, gallery: int, wanted: np.ndarray
) -> Iterator[np.ndarray]:
    """The rows [G] of the `wanted` queries out of blocks [b, G] that hold all queries' in order.

    UserError for a NaN or infinite distance, or where the blocks are not `queries` x `gallery`.
    """
    keep = np.zeros(queries, bool)
    keep[wanted] = True
    seen = 0
    for part in distances:
        if part.ndim != 2 or part.shape[1] != gallery or seen + len(part) > queries:
            raise UserError(
                f"A block of distances has the shape {part.shape} after {seen} rows, where labels "
                f"say {queries} queries x {gallery} gallery rows."
            )
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            raise UserError(f"The distances of query {seen + finite.argmin()} are not all finite.")
        for row in part[keep[seen : seen + len(part)]]:
            yield row.astype(np.float64)
        seen += len(part)
    if seen != queries:
        raise UserError(f"There are distances of {seen} queries, but labels of {queries}.")


def _gather(embedding, rows, factor, buffer):
    """The `rows` of `embedding` times `factor`, at the start of `buffer`."""
    part = buffer[: len(rows)]
    np.take(embedding, rows, axis=0, out=part, mode="clip")  # mode "raise" would take a copy
    if (factor != 1).any():
        part *= factor[:, None]
    return part


def _scale(embedding, rows, exponent):
    """Of the `rows`: 2^-exponent, and scaled by it the squared norms and the norm floor."""
    factor = np.ldexp(np.float32(1), -exponent)[rows]
    wide = factor.astype(np.float64)
    square, buffer = np.empty(len(embedding)), np.empty((_ROWS, embedding.shape[1]))
    for start in range(0, len(embedding), _ROWS):
        part = buffer[: min(_ROWS, len(embedding) - start)]
        part[:] = embedding[start : start + _ROWS]
        square[start : start + _ROWS] = np.einsum("ij,ij->i", part, part)
    return factor, square[rows] * wide**2, _FLOOR * wide


def _exponents(query_peak, gallery_peak, normalise):
    """Powers of two that bring rows near 1: each row its own, or all rows the same.

    0, that is 2^0, while no row is so far from 1 that a product of two could lose digits: a scaling
    by powers of two changes no bit of what it is undone in.
    """
    peaks = [query_peak, gallery_peak]
    if not normalise:
        largest = max(query_peak.max(), gallery_peak.max())
        peaks = [np.full_like(peak, largest) for peak in peaks]
    if all(peak.min() > 2.0**-20 and peak.max() < 2.0**20 for peak in peaks):
        return [np.zeros(len(peak), int) for peak in peaks]
    # The factors 2^-exponent must themselves be float32 numbers without loss.
    return [np.clip(np.frexp(peak)[1], -126, 126) for peak in peaks]


def _copies(gallery, order):
    """Places in `order` of rows that repeat an earlier one bit for bit, and where that one is."""
    bits = gallery.view(np.uint32)
    equal = np.zeros(len(order), bool)
    equal[1:] = (bits[order[1:], :8] == bits[order[:-1], :8]).all(axis=1)
    for row in np.flatnonzero(equal):
        equal[row] = np.array_equal(bits[order[row]], bits[order[row - 1]])
    first = np.maximum.accumulate(np.where(equal, 0, np.arange(len(order))))
    return np.flatnonzero(equal), first[equal]


def _pair(query, gallery):
    """Both embeddings of `checked_pair`, and each row's largest absolute value, [Q] and [G]."""
    (query, query_peak), (gallery, gallery_peak) = (
        _checked("query", query),
        _checked("gallery", gallery),
    )
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"The query embeddings are {query.shape[1]} wide and the gallery's "
            f"{gallery.shape[1]}: both must come from the same model and the same modalities."
        )
    return query, gallery, query_peak, gallery_peak


def _checked(name, embedding):
    """The embedding as contiguous float32 [N, E], and each row's largest absolute value [N]."""
    with np.errstate(over="ignore"):
        embedding = np.ascontiguousarray(embedding, np.float32)
    if embedding.ndim != 2 or 0 in embedding.shape:
        raise UserError(
            f"The {name} embeddings have the shape {embedding.shape}, not [rows, width] with at "
            "least one of each."
        )
    peak = np.maximum(embedding.max(axis=1), -embedding.min(axis=1))
    broken = np.flatnonzero(~np.isfinite(peak))
    if len(broken):
        raise UserError(
            f"The {name} embeddings hold a NaN or an infinite value in {len(broken)} rows, the "
            f"first of them row {broken[0]}: such rows cannot be ranked."
        )
    return embedding, peak
