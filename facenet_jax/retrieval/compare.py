"""Two runs on the same queries: the difference of their scores, and how sure it is."""

from typing import Any, NamedTuple

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.retrieval import breakdown, intervals
from facenet_jax.retrieval.embeddings import Embeddings
from facenet_jax.retrieval.metrics import CMC_RANKS
from facenet_jax.retrieval.scoring import Result

NAMES = ("mAP", "mINP", *(f"R{rank}" for rank in CMC_RANKS))


class Pair(NamedTuple):
    """The queries that are valid in both runs, and their values."""

    name: np.ndarray  # str [V]
    identity: np.ndarray  # [V]
    first: dict[str, np.ndarray]  # {"mAP", "mINP", "R1", ...: [V]} of the first run
    second: dict[str, np.ndarray]


def pair(first: Result, second: Result, first_query: Embeddings, second_query: Embeddings) -> Pair:
    """Both rankings query by query, matched by name and identity.

    UserError where the runs were ranked by different protocols or have other queries.
    """
    if first.protocol.name != second.protocol.name:
        raise UserError(
            f"One run is ranked by {first.protocol.name}, the other by {second.protocol.name}; "
            "only scores of one protocol can be compared."
        )
    keys = [
        list(zip(side.identity.tolist(), side.name.tolist(), strict=True))
        for side in (first_query, second_query)
    ]
    if len(set(keys[0])) < len(keys[0]) or set(keys[0]) != set(keys[1]):
        shared = len(set(keys[0]) & set(keys[1]))
        raise UserError(
            f"The runs have {len(keys[0])} and {len(keys[1])} queries, of which {shared} agree in "
            "name and identity; only scores of the same queries can be compared."
        )
    place = {key: i for i, key in enumerate(keys[0])}
    order = np.array([place[key] for key in keys[1]])  # row of the first run for each of the second
    found: list[dict[str, np.ndarray]] = []
    for result, rows_of in ((first, np.arange(len(order))), (second, order)):
        columns = {}
        for name in NAMES:
            rows, values = breakdown.values(result, name)
            column = np.full(len(order), np.nan)
            column[rows_of[rows]] = values
            columns[name] = column
        found.append(columns)
    valid = np.flatnonzero(np.isfinite(found[0]["mAP"]) & np.isfinite(found[1]["mAP"]))
    one, other = ({name: x[valid] for name, x in columns.items()} for columns in found)
    return Pair(first_query.name[valid], first_query.identity[valid], one, other)


def differences(of: Pair, **options: Any) -> dict[str, dict[str, float]]:
    """{score: {"first", "second", "difference", "low", "high"}}, the difference first - second.

    The interval is that of `intervals.paired` over identities.
    """
    found = {}
    for name in NAMES:
        ends = intervals.paired(of.first[name], of.second[name], of.identity, **options)
        found[name] = {
            "first": float(of.first[name].mean()),
            "second": float(of.second[name].mean()),
            "difference": ends.mean,
            "low": ends.low,
            "high": ends.high,
        }
    return found


def table(found: dict[str, dict[str, float]], first: str, second: str, queries: int) -> str:
    """The differences in per cent points, as text."""
    width = max(len(first), len(second), 8)
    lines = [
        f"{queries} queries; difference {first} - {second}, 95 % over query identities",
        f"      {first:>{width}} {second:>{width}}  difference",
    ]
    for name, row in found.items():
        sure = "" if row["low"] <= 0 <= row["high"] else "  *"
        lines.append(
            f"{name:5} {100 * row['first']:{width}.1f} {100 * row['second']:{width}.1f}  "
            f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            f"{sure}"
        )
    return "\n".join([*lines, "* the interval excludes 0; it says nothing of other seeds"])
