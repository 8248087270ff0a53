"""Retrieval scores from distances: average precision, CMC and inverse negative penalty, exact.

Ranks count from 1 in the list of a query, which has lost its junk and ignored rows. Ties are
pessimistic: a non-match at the same distance as a match ranks before it. With the n matches of a
query at the ranks r_1 < ... < r_n,

    AP = (1/n) sum_j j / r_j        INP = n / r_n        CMC_k = 1 if r_1 <= k else 0,

and mAP, mINP and CMC are their means over the valid queries: those with a match.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.retrieval.distances import Euclidean, given_rows
from facenet_jax.retrieval.protocols import Relevance

CMC_RANKS = (1, 5, 10, 20)


@dataclasses.dataclass(frozen=True)
class PerQuery:
    """One ranking's result for each valid query; subsets of it are scored by `metrics`."""

    query: np.ndarray  # [V] row of the query, ascending
    average_precision: np.ndarray  # [V] mean precision at the matches, whole kept list
    inverse_negative_penalty: np.ndarray  # [V] number of matches / rank of the last one
    first_match: np.ndarray  # [V] rank of the first match; of its identity, if collapsed
    queries: int  # all queries, valid or not
    gallery: int

    def of_rows(self, order: np.ndarray) -> "PerQuery":
        """The same results where query i is row `order[i]`, [Q], of the queries."""
        rows = order[self.query]
        sort = np.argsort(rows)
        return dataclasses.replace(
            self,
            query=rows[sort],
            average_precision=self.average_precision[sort],
            inverse_negative_penalty=self.inverse_negative_penalty[sort],
            first_match=self.first_match[sort],
        )

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
                "check the identities, and whether the protocol's rules remove every match."
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
    is false. Identities and groups are integers [Q] and [G]; gallery rows of the query's identity
    and group are junk, and without groups none is. `block` queries are compared at a time, as in
    `Euclidean.rows`, which says what memory it takes.
    UserError for empty, mismatched, NaN or infinite arrays.
    """
    distances = Euclidean(query, gallery, normalise)
    labels = query_identity, gallery_identity, query_group, gallery_group
    relevance = Relevance(*labels, queries=len(distances.query), order=distances.order)
    return rank(distances.rows(relevance.valid, block), relevance)


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
    relevance = Relevance(*labels, queries=queries, order=np.arange(gallery))
    return rank(given_rows(distances, queries, gallery, relevance.valid), relevance)


def rank(rows: Iterator[np.ndarray], relevance: Relevance, collapse: bool = False) -> PerQuery:
    """Each valid query's result for its distances [G], which come in order from `rows`.

    With `collapse`, `first_match` counts identities by their nearest row, not rows.
    """
    found, nearest = [], []
    for query, row in zip(relevance.valid, rows, strict=True):
        members, junk = relevance.of(query)
        ignored = relevance.ignored(query)
        found.append(match_ranks(row, members, junk, ignored))
        if collapse:
            nearest.append(identity_rank(row, members, junk, ignored, relevance))
    ranks, count = np.concatenate([[], *found]), np.array([len(part) for part in found], np.int64)
    stop = np.cumsum(count)
    start = stop - count
    hits = np.arange(1, len(ranks) + 1) - np.repeat(start, count)
    return PerQuery(
        query=relevance.valid,
        average_precision=np.add.reduceat(hits / ranks, start) / count if len(count) else ranks,
        inverse_negative_penalty=count / ranks[stop - 1],
        first_match=np.array(nearest, np.int64) if collapse else ranks[start].astype(np.int64),
        queries=relevance.queries,
        gallery=relevance.gallery,
    )


def match_ranks(
    row: np.ndarray, members: np.ndarray, junk: np.ndarray, ignored: np.ndarray | None
) -> np.ndarray:
    """Ranks of the matches in the kept list, ascending, from 1, pessimistic in ties.

    `row` [G] are distances, `members` the rows of the query's identity that are not ignored, `junk`
    says which of them are no matches. The rank of a match is the number of distances up to its own.
    """
    matches = members[~junk]
    matches = matches[np.argsort(row[matches])]
    distances = row[matches]
    kept = row if ignored is None else row[~ignored]
    # Up to a match's own distance: everything, less its identity's rows, is the non-matches.
    own = np.searchsorted(np.sort(row[members]), distances, side="right")
    # Sorting everything sounds wasteful, and NumPy's vectorised sort beats a histogram twofold.
    return np.searchsorted(np.sort(kept), distances, side="right") - own + 1 + np.arange(len(own))


def identity_rank(
    row: np.ndarray,
    members: np.ndarray,
    junk: np.ndarray,
    ignored: np.ndarray | None,
    relevance: Relevance,
) -> int:
    """Rank of the query's identity when each identity counts once, at its nearest kept row."""
    kept = row.astype(np.float64)
    kept[members[junk]] = np.inf
    if ignored is not None:
        kept[ignored] = np.inf
    nearest = np.minimum.reduceat(kept[relevance.by_identity], relevance.first_of_identity)
    return int((nearest <= kept[members].min()).sum())
