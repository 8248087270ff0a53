"""The threshold on the cosine above which two embeddings are taken for the same vehicle."""

import dataclasses
from typing import Any

import numpy as np

from data_tfds.samples import Protocol
from facenet_jax.retrieval import verification
from facenet_jax.retrieval.embeddings import Embeddings
from facenet_jax.retrieval.scoring import aligned, centred

ROWS = 2000
"""Gallery rows that are compared with the whole gallery, at most; taken evenly."""


def calibrate(query: Embeddings, gallery: Embeddings, protocol: Protocol) -> dict[str, Any]:
    """Thresholds on cosines less the gallery's mean, and what they give on the queries.

    Found on pairs within the gallery that the protocol's rules keep, a row never with itself; where
    the protocol looks for other modalities than it has queries of, on query-gallery pairs. A dict:
    `pairs` says which; `rows` of so many rows on the left; `protocol`; `modalities`;
    `genuine_pairs`, `impostor_pairs`; `thresholds` {"eer", "0.001", "0.0001": {"cosine", "tpr",
    "fpr"} or None where it cannot be measured}; `on_queries`, the rates [tpr, fpr] of the same
    thresholds for query-gallery pairs.
    """
    query, gallery = centred(*aligned(query, gallery))
    whole = verification.roc(query, gallery, protocol)
    name, rows, found = "of query and gallery", len(query), whole
    if list(query.parts) == list(gallery.parts):
        rows = min(len(gallery), ROWS)
        some = np.unique(np.linspace(0, len(gallery) - 1, rows).round().astype(int))
        inside = dataclasses.replace(protocol, trials=None)
        within = verification.roc(gallery, gallery, inside, rows=some, own=True)
        if within.measurable:  # not where each identity has one image
            name, rows, found = "within the gallery", len(some), within
        else:
            rows = len(query)
    points = found.thresholds()
    return {
        "pairs": name,
        "rows": rows,
        "protocol": protocol.name,
        "modalities": list(gallery.parts),
        "genuine_pairs": found.pairs[0],
        "impostor_pairs": found.pairs[1],
        "thresholds": points,
        "on_queries": {
            name: point and whole.rates_at(point["cosine"]) for name, point in points.items()
        },
    }
