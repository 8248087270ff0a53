"""From a protocol and labels to the gallery rows that match, are junk or are ignored, by trial.

A gallery row of the query's identity is a match, unless it has the query's value of the protocol's
junk label as well: then it is junk and leaves the list. Ignored rows leave the list whatever their
identity. A query without a match is not valid: it is counted, and no score knows of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from data_tfds.door import find
from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax.retrieval.embeddings import Embeddings


class Relevance:
    """Which gallery rows match each query, and which leave its list.

    Identities and groups are integers [Q] and [G]; a gallery row of the query's identity and group
    is junk, and without groups none is. Of each pair (bool [Q], bool [G]) in `ignored`, the rows of
    the second leave the lists of the queries of the first. Gallery rows are counted in `order` [G]
    here. `valid` [V] are the queries with a match, ascending. UserError where labels are no
    integers, or not as many as `queries` and the length of `order`.
    """

    def __init__(
        self,
        query_identity: np.ndarray,
        gallery_identity: np.ndarray,
        query_group: np.ndarray | None = None,
        gallery_group: np.ndarray | None = None,
        *,
        queries: int,
        order: np.ndarray,
        ignored: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ):
        self.queries, self.gallery = queries, len(order)
        if (query_group is None) != (gallery_group is None):
            raise UserError("Only one of query and gallery has groups: give both or none.")
        if query_group is None:  # no query shares its group with a gallery row
            query_group, gallery_group = np.zeros(queries, int), np.ones(len(order), int)
        self._query_group = _integers("query groups", query_group, queries)
        self._gallery_group = _integers("gallery groups", gallery_group, len(order))[order]
        query_identity = _integers("query identities", query_identity, queries)
        gallery_identity = _integers("gallery identities", gallery_identity, len(order))[order]
        query_identity, gallery_identity = _comparable(query_identity, gallery_identity)
        self._ignored = [(query, gallery[order]) for query, gallery in ignored if query.any()]

        self.by_identity = np.argsort(gallery_identity, kind="stable")
        identities = gallery_identity[self.by_identity]
        self._start = np.searchsorted(identities, query_identity, side="left")
        self._stop = np.searchsorted(identities, query_identity, side="right")
        self.first_of_identity = np.flatnonzero(np.diff(identities, prepend=identities[:1] - 1))
        self.valid = np.array([row for row in range(queries) if not self.of(row)[1].all()], int)

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Gallery rows of the query's identity that are not ignored, and whether each is junk."""
        members = self.by_identity[self._start[query] : self._stop[query]]
        for queries, gallery in self._ignored:
            if queries[query]:
                members = members[~gallery[members]]
        return members, self._gallery_group[members] == self._query_group[query]

    def ignored(self, query: int) -> np.ndarray | None:
        """Whether each gallery row leaves the query's list whatever its identity; None: none."""
        found = [gallery for queries, gallery in self._ignored if queries[query]]
        return np.logical_or.reduce(found) if found else None


def relevance(
    protocol: Protocol, query: Mapping, gallery: Mapping, queries: int, order: np.ndarray
) -> Relevance:
    """What the protocol says of labels: arrays [Q] and [G] by name, "identity" among them."""
    labels = [query["identity"], gallery["identity"]]
    if protocol.junk != "none":
        labels += [query[protocol.junk], gallery[protocol.junk]]
    ignored = [
        (query[label] == query_value, gallery[label] == gallery_value)
        for label, query_value, gallery_value in protocol.ignore
    ]
    return Relevance(*labels, queries=queries, order=order, ignored=ignored)


def trials(protocol: Protocol, gallery: Mapping, rows: int) -> list[np.ndarray | None]:
    """The gallery rows of each trial, of all `rows`; None are all of them.

    UserError if the protocol's function gives no trial, or rows that are not different integers
    from 0 to `rows` - 1.
    """
    if protocol.trials is None:
        return [None]
    chosen = [np.asarray(trial) for trial in protocol.trials(gallery)]
    if not chosen:
        raise UserError(f"The protocol {protocol.name} draws no trial from this gallery.")
    for number, trial in enumerate(chosen):
        integers = trial.ndim == 1 and len(trial) and np.issubdtype(trial.dtype, np.integer)
        if not integers or trial.min() < 0 or trial.max() >= rows:
            raise UserError(
                f"Trial {number} of the protocol {protocol.name} must be a list of gallery rows "
                f"from 0 to {rows - 1}, at least one, and is {trial.dtype} {list(trial.shape)}."
            )
        if len(np.unique(trial)) < len(trial):
            raise UserError(f"Trial {number} of the protocol {protocol.name} has a row twice.")
    return chosen


def check(protocol: Protocol, query: Embeddings, gallery: Embeddings) -> None:
    """UserError if a side lacks a label that the protocol needs, or does not know some values.

    A label is an integer [N]; a negative value means that it is not known.
    """
    sides = ("query", query), ("gallery", gallery)
    needed = [label for label, *_ in protocol.ignore]
    if protocol.junk != "none":
        needed.insert(0, protocol.junk)
    for label in needed:
        for side, rows in sides:
            lack = _lack(rows, label)
            if lack:
                names = [name for name in query.labels if not any(_lack(x, name) for _, x in sides)]
                fits = " and ".join(filter(None, [", ".join(names), "none"]))
                raise UserError(
                    f"{rows.origin or f'The {side} side'} has no {label} {lack}, so the protocol "
                    f"{protocol.name} does not belong to this data; {fits} would."
                )


def _lack(rows: Embeddings, label: str) -> str:
    """What keeps a label from being ranked by, "" where nothing does."""
    if label not in rows.labels:
        return f"among its labels ({', '.join(rows.labels) or 'it has none'})"
    values = rows.labels[label]
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        return f"that is an integer [N], but {values.dtype} {list(values.shape)}"
    unknown = np.flatnonzero(values < 0)
    if len(unknown):
        return f"for {len(unknown)} rows, first for row {unknown[0]} ({rows.name[unknown[0]]})"
    return ""


def by_name(name: str) -> Protocol:
    """The protocol that a word means: a label, a data set's protocol, or a user's.

    "camera" (or any label): gallery rows of the query's identity and camera are junk; "none":
    nothing is. "wmveid863/official": that of the data set. "my_package.my_protocol": the object
    `Protocol` at that import path. UserError where there is no such thing.
    """
    if "/" in name:
        from data_tfds.prepare import lookup  # TFDS takes a second to load

        builder, config = lookup(name)
        return next(each.protocol for each in builder.BUILDER_CONFIGS if each.name == config)
    if "." not in name:
        return Protocol(name, junk=name)
    found = find(name, "data_tfds.sets", "protocol")
    if not isinstance(found, Protocol):
        raise UserError(
            f"The protocol {name} is a {type(found).__name__}, not a data_tfds.samples.Protocol."
        )
    return found


def refuse_own_rows(protocol: Protocol, query: Embeddings, gallery: Embeddings) -> None:
    """UserError where each query finds itself: its own row is in the gallery, as a match.

    Where some do, a warning says how many. A row is the same with its name, identity and embedding.
    """
    if query.embedding.shape[1] != gallery.embedding.shape[1]:
        return  # the distances say what is wrong
    rows: dict[tuple, list[int]] = {}
    for row, key in enumerate(zip(gallery.name.tolist(), gallery.identity.tolist(), strict=True)):
        rows.setdefault(key, []).append(row)
    of = relevance(
        protocol, query.by_name, gallery.by_name, len(query), np.arange(len(gallery.embedding))
    )
    found = 0
    for i, key in enumerate(zip(query.name.tolist(), query.identity.tolist(), strict=True)):
        same = [
            j for j in rows.get(key, ()) if np.array_equal(query.embedding[i], gallery.embedding[j])
        ]
        if same:
            members, junk = of.of(i)
            found += bool(np.isin(members[~junk], same).any())
    if not found:
        return
    where = f"{query.origin or 'the query side'} are in {gallery.origin or 'the gallery'}"
    text = f"{found} of {len(query)} rows of {where} too, with the same name and embedding"
    if found == len(query):
        raise UserError(
            f"{text}, and the protocol {protocol.name} counts them as matches, so that every query "
            "finds itself; name a protocol that leaves them out, such as camera, or other files."
        )
    logging.warning("%s: these queries find themselves, so that the scores are too high.", text)


def _comparable(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays of integers in one type that holds all of their values.

    NumPy would compare int64 with uint64 as float64, in which neighbours beyond 2^53 are equal.
    """
    if np.issubdtype(np.promote_types(one.dtype, other.dtype), np.integer):
        return one, other
    if max(one.max(initial=0), other.max(initial=0)) < 2**63:
        return one.astype(np.int64), other.astype(np.int64)
    both = np.concatenate([one.astype(object), other.astype(object)])  # slow, exact
    numbered = np.unique(both, return_inverse=True)[1]
    return numbered[: len(one)], numbered[len(one) :]


def _integers(name: str, labels: np.ndarray, rows: int) -> np.ndarray:
    """Labels as an integer array [rows]."""
    labels = np.asarray(labels)
    if labels.shape != (rows,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"The {name} are {labels.dtype} of shape {labels.shape}, not {rows} integers."
        )
    return labels
