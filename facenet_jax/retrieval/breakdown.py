"""Scores of a ranking with their intervals, and by the labels of the queries."""

from typing import Any

import numpy as np

from data_tfds.samples import Protocol
from facenet_jax.retrieval import intervals, verification
from facenet_jax.retrieval.embeddings import Embeddings
from facenet_jax.retrieval.metrics import CMC_RANKS
from facenet_jax.retrieval.scoring import Result, aligned, centred

LABELS = ("camera", "view", "scene", "night")
"""Labels that scores are told apart by, where they are known; and identity and flare."""


def values(result: Result, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows [V] of the valid queries, their values [V]) of "mAP", "mINP", "R1", "R5", ...

    Where a protocol has several trials, the mean over those in which the query is valid.
    """
    total, count = np.zeros(result.trials[0].queries), np.zeros(result.trials[0].queries)
    for trial in result.trials:
        if name in ("mAP", "mINP"):
            fields = {"mAP": trial.average_precision, "mINP": trial.inverse_negative_penalty}
            of_query = fields[name]
        else:
            of_query = trial.first_match <= int(name.removeprefix("R"))
        total[trial.query] += of_query
        count[trial.query] += 1
    rows = np.flatnonzero(count)
    return rows, total[rows] / count[rows]


def ends(
    result: Result, query: Embeddings, keep: np.ndarray | None = None, **options: Any
) -> dict[str, Any]:
    """[low, high] of `mAP`, `mINP` and each rank of `cmc`, over query identities, of 95 %.

    Of the queries where `keep` [Q] is true; `options` are those of `intervals.bootstrap`.
    UserError where none of them is valid.
    """

    def interval(name: str) -> list[float]:
        rows, of_query = values(result, name)
        chosen = np.ones(len(rows), bool) if keep is None else keep[rows]
        found = intervals.bootstrap(of_query[chosen], query.identity[rows[chosen]], **options)
        return [found.low, found.high]

    cmc = {str(rank): interval(f"R{rank}") for rank in CMC_RANKS}
    return {"mAP": interval("mAP"), "mINP": interval("mINP"), "cmc": cmc}


def groups(query: Embeddings) -> dict[str, dict[str, np.ndarray]]:
    """{label: {value: its queries, bool [Q]}} of the labels that are known.

    Flare has the value "none", a modality or several joined by "+"; night "day" and "night".
    """
    found = {}
    for label in LABELS:
        column = query.labels.get(label, np.full(len(query), -1))
        known = np.unique(column[column >= 0])
        if len(known):
            names = {0: "day", 1: "night"} if label == "night" else {}
            found[label] = {names.get(int(n), str(n)): column == n for n in known}
    flare = query.labels.get("flare")
    if flare is not None and flare.any() and len(query.parts) == flare.shape[1]:
        found["flare"] = _flare(flare, list(query.parts))
    named = query.labels.get("identity_name", query.identity.astype(str))
    found["identity"] = {str(n): named == n for n in np.unique(named)}
    return found


def _flare(flare: np.ndarray, modalities: list[str]) -> dict[str, np.ndarray]:
    """The queries by which of their images are flared, those of none first."""
    patterns, place = np.unique(flare, axis=0, return_inverse=True)
    joined = ["+".join(np.array(modalities)[pattern]) or "none" for pattern in patterns]
    return {name: place == i for i, name in enumerate(joined)}


def by_label(result: Result, query: Embeddings, draws: int = 1000) -> dict[str, dict[str, Any]]:
    """{label: {value: scores}} with the `intervals` of each; None without a valid query.

    Of one identity there is no interval over identities, so scores of identities have none.
    """
    found: dict[str, dict[str, Any]] = {}
    for label, parts in groups(query).items():
        found[label] = {}
        for value, keep in parts.items():
            scores = result.subset(keep)
            if scores and label != "identity":
                scores["intervals"] = ends(result, query, keep, draws=draws)
            found[label][value] = scores
    return found


def details(
    query: Embeddings, gallery: Embeddings, protocol: Protocol, result: Result
) -> dict[str, Any]:
    """`intervals` of the scores of a ranking, `verification`, and `by_label`.

    `result` is the ranking of these sides. `verification` is that of plain cosines, centred ones if
    the ranking is, also where neighbours were averaged or the ranking was re-ranked.
    """
    sides = (centred if result.centred else aligned)(query, gallery)
    whole = verification.roc(*sides, protocol)
    ends_of_rates = verification.bootstrap(whole, *sides, protocol)
    return {
        "intervals": ends(result, query),
        "verification": whole.metrics() | {"intervals": ends_of_rates},
        "by_label": by_label(result, query),
    }
