"""Distances that listen less to parts that cannot be relied on, such as a modality behind flare.

The similarity of query q and gallery row g is the weighted mean of the cosines of their parts,

    s(q, g) = sum_p w_p cos(q_p, g_p) / sum_p w_p        w_p = min(reliability of q_p, of g_p),

and the distance 1 - s. Every part counts alike, however long its feature is.
"""

from collections.abc import Iterator

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.retrieval.embeddings import Embeddings

BLOCK = 256
"""Queries that are compared at a time."""


def blocks(
    query: Embeddings, gallery: Embeddings, of_query: np.ndarray, of_gallery: np.ndarray
) -> Iterator[np.ndarray]:
    """Distances float32 [b, G], the queries in order.

    `of_query` [Q, P] and `of_gallery` [G, P] are the reliabilities, above 0 and up to 1, of the P
    parts, which both sides have in the same order. UserError where they do not fit.
    """
    sides = ((query, of_query), (gallery, of_gallery))
    for side, given in sides:
        if given.shape != (len(side), len(side.parts)) or not ((given > 0) & (given <= 1)).all():
            raise UserError(
                f"Reliabilities must be above 0 and up to 1, for {len(side)} embeddings of "
                f"{len(side.parts)} parts; they are an array {list(given.shape)}."
            )
    if list(query.parts) != list(gallery.parts):
        raise UserError(
            f"The parts {', '.join(query.parts)} of the query and {', '.join(gallery.parts)} of "
            "the gallery differ, so their reliability cannot be weighed."
        )
    (mine, own), (theirs, other) = ((unit_parts(x), np.float32(w)) for x, w in sides)
    for start in range(0, len(query), BLOCK):
        rows = slice(start, start + BLOCK)
        total = np.zeros((len(own[rows]), len(other)), np.float32)
        weights = np.zeros_like(total)
        for p, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            weight = np.minimum(own[rows, p, None], other[None, :, p])
            total += weight * (a[rows] @ b.T)
            weights += weight
        yield 1 - total / weights


def unit_parts(side: Embeddings) -> list[np.ndarray]:
    """The columns of each part [N, D], of unit length; a part of zeros stays 0."""
    columns = [side.embedding[:, slice(*span)] for span in side.parts.values()]
    return [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in columns]


def of_flare(
    query: Embeddings, gallery: Embeddings, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Reliabilities [Q, P] and [G, P] of parts: `weight` where the modality is flared, else 1.

    UserError where a side does not say which of its modalities are flared.
    """
    found = []
    for side in (query, gallery):
        flared = side.by_part("flare")
        if flared is None:
            raise UserError(
                f"A flare weight below 1 needs the label flare [N, M] of the modalities "
                f"{', '.join(side.label_modalities) or '(none)'}, which "
                f"{side.origin or 'a side'} lacks; set it to 1."
            )
        found.append(np.where(flared, weight, 1.0))
    return found[0], found[1]
