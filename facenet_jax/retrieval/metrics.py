"""Retrieval scores: mAP, mINP and CMC, exact, streaming over queries, in NumPy alone.

The rules. A row of the gallery with the query's identity is a match, unless it shares the query's
group as well (its camera or scene, as the protocol says): then it is junk and leaves the list.
Queries without a match are skipped and counted. Ties are pessimistic: a non-match at the same
distance as a match ranks before it.

What ties mean in floating point. Distances are float32. Gallery rows are multiplied in an order
given by their bits, and rows that are equal in every bit get one and the same distance, whatever
block or tile of the matrix product they fell into. So the scores do not depend on the order of the
gallery, bit for bit. Rows are scaled by powers of two and divided by their norm after the product,
so vectors of small integers (one-hot, +-1) tie exactly where they should. Two other vectors whose
true distances differ by less than the rounding of the product (about 1e-7) rank as that rounding
says; it depends on the BLAS and the block.

How. The rank of a match is the number of distances up to its own, looked up in the sorted row.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from data_tfds.errors import UserError

CMC_RANKS = (1, 5, 10, 20)
_FLOOR = 1e-12  # the smallest norm that a row is divided by
_DISTANCE_BYTES = 128 * 2**20  # distances held at a time: the fewer queries, the slower the product
_ROWS = 64  # rows squared at a time
_TILE = 2048  # gallery rows multiplied at a time


@dataclasses.dataclass(frozen=True)
class PerQuery:
    """One ranking's result for each valid query; subsets of it are scored by `metrics`."""

    query: np.ndarray  # [V] row of the query, ascending
    average_precision: np.ndarray  # [V] mean precision at the matches, whole kept list
    inverse_negative_penalty: np.ndarray  # [V] number of matches / rank of the last one
    first_match: np.ndarray  # [V] rank of the first match, from 1
    queries: int  # all queries, valid or not
    gallery: int

    def metrics(self, keep: np.ndarray | None = None) -> dict:
        """Means over the valid queries, or over those of the rows where `keep` [Q] is true.

        A dict of `mAP`, `mINP`, `cmc` {"1", "5", "10", "20"} as fractions, and of the counts
        `queries`, `valid_queries`, `gallery`. UserError if no query is valid.
        """
        keep = np.ones(self.queries, bool) if keep is None else np.asarray(keep, bool)
        chosen = keep[self.query]
        queries, valid = int(keep.sum()), int(chosen.sum())
        if not valid:
            raise UserError(
                f"None of the {queries} queries has a match among the {self.gallery} gallery rows: "
                "check the identities, and whether the protocol's junk rule removes every match."
            )
        first = self.first_match[chosen]
        return {
            "mAP": float(self.average_precision[chosen].mean()),
            "mINP": float(self.inverse_negative_penalty[chosen].mean()),
            "cmc": {str(rank): float((first <= rank).mean()) for rank in CMC_RANKS},
            "queries": queries,
            "valid_queries": valid,
            "gallery": self.gallery,
        }


def retrieval(query: np.ndarray, gallery: np.ndarray, *labels, **options) -> dict:
    """The scores of a ranking by Euclidean distance: `PerQuery.metrics` of `per_query`'s result."""
    return per_query(query, gallery, *labels, **options).metrics()


def per_query(
    query: np.ndarray,
    gallery: np.ndarray,
    query_identity: np.ndarray,
    gallery_identity: np.ndarray,
    query_group: np.ndarray | None = None,
    gallery_group: np.ndarray | None = None,
    *,
    normalise: bool = True,
    block: int | None = None,
) -> PerQuery:
    """Each valid query's result for a ranking by Euclidean distance.

    `query` [Q, E], `gallery` [G, E]; rows are L2-normalised (norm floor 1e-12) unless `normalise`
    is false. Identities and groups are integers [Q] and [G]; without groups nothing is junk.
    `block` queries are compared at a time; by default as many as keep the distances in 128 MiB.
    Memory beside the arguments: that block, its queries, and 2,048 rows of the gallery.
    UserError for empty, mismatched, NaN or infinite arrays.
    """
    query, gallery, *peaks = check_embeddings(query, gallery)
    labels = query_identity, gallery_identity, query_group, gallery_group
    order = np.argsort(_as_bytes(gallery), kind="stable")
    relevance = _Relevance(*labels, len(query), len(gallery), order)
    exponents = _exponents(*peaks, normalise)
    rows = _distance_rows(query, gallery, exponents, relevance.valid, order, normalise, block)
    return _rank(rows, relevance)


def per_query_of_distances(
    distances: Iterable[np.ndarray],
    query_identity: np.ndarray,
    gallery_identity: np.ndarray,
    query_group: np.ndarray | None = None,
    gallery_group: np.ndarray | None = None,
) -> PerQuery:
    """Each valid query's result for given distances, such as re-ranked ones.

    `distances` are blocks [b, G] that hold the queries' rows in order; labels as in `per_query`.
    UserError for a NaN or infinite distance, or if rows and labels do not agree.
    """
    queries, gallery = len(query_identity), len(gallery_identity)
    labels = query_identity, gallery_identity, query_group, gallery_group
    relevance = _Relevance(*labels, queries, gallery, np.arange(gallery))
    return _rank(_given_rows(distances, queries, gallery, relevance.valid), relevance)


def check_embeddings(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, ...]:
    """Both as contiguous float32 [rows, E], and each row's largest absolute value, [Q] and [G].

    UserError for an empty, NaN or infinite embedding and for two different widths.
    """
    query, query_peak = _checked("query", query)
    gallery, gallery_peak = _checked("gallery", gallery)
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"The query embeddings are {query.shape[1]} wide and the gallery's "
            f"{gallery.shape[1]}: both must come from the same model and the same bands."
        )
    return query, gallery, query_peak, gallery_peak


class _Relevance:
    """Which gallery rows, counted in `order`, belong to a query, and which of them are junk."""

    def __init__(self, query_identity, gallery_identity, query_group, gallery_group, q, g, order):
        if (query_group is None) != (gallery_group is None):
            raise UserError("Only one of query and gallery has groups: give both or none.")
        if query_group is None:  # no query shares its group with a gallery row
            query_group, gallery_group = np.zeros(q, int), np.ones(g, int)
        self._query_group = _labels("query groups", query_group, q)
        self._gallery_group = _labels("gallery groups", gallery_group, g)[order]
        query_identity = _labels("query identities", query_identity, q)
        gallery_identity = _labels("gallery identities", gallery_identity, g)[order]

        self._by_identity = np.argsort(gallery_identity, kind="stable")
        identities = gallery_identity[self._by_identity]
        self._start = np.searchsorted(identities, query_identity, side="left")
        self._stop = np.searchsorted(identities, query_identity, side="right")
        self.queries, self.gallery = q, g
        self.valid = np.array([row for row in range(q) if not self.of(row)[1].all()], int)

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Gallery rows of the query's identity, and whether each is junk."""
        members = self._by_identity[self._start[query] : self._stop[query]]
        return members, self._gallery_group[members] == self._query_group[query]


def _rank(rows: Iterator[np.ndarray], relevance: _Relevance) -> PerQuery:
    """Scores of the valid queries, whose distances [G] come in order from `rows`."""
    found = [
        _match_ranks(row, *relevance.of(query))
        for query, row in zip(relevance.valid, rows, strict=True)
    ]
    ranks, count = np.concatenate([[], *found]), np.array([len(part) for part in found], np.int64)
    stop = np.cumsum(count)
    start = stop - count
    hits = np.arange(1, len(ranks) + 1) - np.repeat(start, count)
    return PerQuery(
        query=relevance.valid,
        average_precision=np.add.reduceat(hits / ranks, start) / count if len(count) else ranks,
        inverse_negative_penalty=count / ranks[stop - 1],
        first_match=ranks[start].astype(np.int64),
        queries=relevance.queries,
        gallery=relevance.gallery,
    )


def _match_ranks(row: np.ndarray, members: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Ranks of the matches in the kept list, ascending, from 1, pessimistic in ties."""
    matches = members[~junk]
    matches = matches[np.argsort(row[matches])]
    distances = row[matches]
    # Up to a match's own distance: everything, less its identity's rows, is the non-matches.
    own = np.searchsorted(np.sort(row[members]), distances, side="right")
    # Sorting everything sounds wasteful, and NumPy's vectorised sort beats a histogram twofold.
    return np.searchsorted(np.sort(row), distances, side="right") - own + 1 + np.arange(len(own))


def _distance_rows(query, gallery, exponents, valid, order, normalise, block):
    """For each valid query a row [G] that grows with the distance to the gallery in `order`.

    Half the squared distance of normalised rows is 1 - q.g; without normalising it is, up to a
    constant of the query, |g|^2 / 2 - q.g. A row too short to normalise (all zero, say) has
    |g| < 1, hence the offset.
    """
    copies, originals = _copies(gallery, order)
    query_factor, square_of_query, query_floor = _scale(query, valid, exponents[0])
    factor, square, floor = _scale(gallery, order, exponents[1])
    slope, offset, length = np.full(len(order), -1.0), square / 2, np.ones(len(valid))
    if normalise:
        norm = np.maximum(np.sqrt(square), floor)
        slope, offset = -1 / norm, (square / norm**2 - 1) / 2
        offset[np.sqrt(square) >= floor] = 0.0  # else the rounding of square / norm^2
        length = np.maximum(np.sqrt(square_of_query), query_floor)
    slope, plain = slope.astype(np.float32), not offset.any()

    # A copy of the whole gallery in order would cost more in new memory than its parts once more.
    rows = max(1, _DISTANCE_BYTES // (4 * len(order))) if block is None else block
    rows = max(1, min(rows, len(valid)))
    product = np.empty((rows, len(order)), np.float32)
    queries, tile = (np.empty((n, query.shape[1]), np.float32) for n in (rows, _TILE))
    for start in range(0, len(valid), rows):
        few = slice(start, start + rows)
        left = _gather(query, valid[few], query_factor[few], queries)
        for first in range(0, len(order), _TILE):
            some = slice(first, first + _TILE)
            right = _gather(gallery, order[some], factor[some], tile)
            np.matmul(left, right.T, out=product[: len(left), some])
        for row, scale in zip(product, length[few], strict=False):
            row *= slope
            if not plain:
                row += (offset * scale).astype(np.float32)
            row[copies] = row[originals]
            yield row


def _gather(embedding, rows, factor, buffer):
    """The `rows` of `embedding` times `factor`, at the start of `buffer`."""
    part = buffer[: len(rows)]
    np.take(embedding, rows, axis=0, out=part, mode="clip")  # mode "raise" would take a copy
    if (factor != 1).any():
        part *= factor[:, None]
    return part


def _given_rows(distances, queries, gallery, valid):
    """The rows of the valid queries out of blocks of all queries' distances."""
    keep = np.zeros(queries, bool)
    keep[valid] = True
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

    None, 2^0, while no row is so far from 1 that a product of two could lose digits: a scaling by
    powers of two changes no bit of what it is undone in.
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


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Each row as one opaque value, [N]; it sorts by its bytes."""
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()


def _checked(name: str, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _labels(name: str, labels: np.ndarray, rows: int) -> np.ndarray:
    """Labels as an integer array [rows]."""
    labels = np.asarray(labels)
    if labels.shape != (rows,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"The {name} are {labels.dtype} of shape {labels.shape}, not {rows} integers."
        )
    return labels
