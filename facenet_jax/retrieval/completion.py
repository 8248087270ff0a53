"""Parts of an embedding that its own image does not give, taken from similar gallery rows.

Where a modality is blinded by flare, or its image is missing, that part of an embedding says little
of the vehicle. It is replaced by that of the gallery rows that look most alike otherwise and whose
own image of this modality can be relied on:

    x_p' = sum_i w_i g_ip / sum_i w_i,     w_i = max(cosine(x, g_i), 0) ^ alpha

over the k nearest such rows g_i, the cosines those of whole embeddings as they were. Queries and
gallery rows are completed alike, and a row never takes from itself, for it is blinded where it
takes. Ours, in no paper: query expansion (`retrieval.expansion`) only of what is blinded. As there,
no identity or camera is looked at.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.retrieval.distances import DISTANCE_BYTES, Euclidean, checked_pair
from facenet_jax.retrieval.embeddings import Embeddings
from facenet_jax.retrieval.expansion import check, nearest


class Completion(NamedTuple):
    """What to complete, and from how many rows."""

    neighbours: int
    alpha: float  # 0: all neighbours count alike
    of_query: np.ndarray  # bool [Q, P], True where a part is to be replaced
    of_gallery: np.ndarray  # bool [G, P]


def blinded(query: Embeddings, gallery: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Which parts of the query [Q, P] and of the gallery [G, P] are blinded, or lack their image.

    Parts that are no modality never are. UserError where the sides have other parts, and where one
    does not say which of its modalities are flared.
    """
    if not query.parts or list(query.parts) != list(gallery.parts):
        raise UserError(
            f"The query has the parts {', '.join(query.parts) or 'none'}, the gallery "
            f"{', '.join(gallery.parts) or 'none'}: only parts that both have can be completed; "
            "set config.evaluate.complete to ()."
        )
    found = []
    for side in (query, gallery):
        flared, present = side.by_part("flare"), side.by_part("present", other=True)
        if flared is None:
            raise UserError(
                "To complete embeddings, the label flare [N, M] of the modalities "
                f"{', '.join(side.label_modalities) or '(none)'} is needed, which "
                f"{side.origin or 'a side'} lacks; set config.evaluate.complete to ()."
            )
        found.append(flared if present is None else flared | ~present)
    return found[0], found[1]


def complete(
    query: np.ndarray, gallery: np.ndarray, parts: Mapping[str, tuple[int, int]], how: Completion
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides [Q, E] and [G, E] float32, with the parts replaced that `how` names.

    Args:
        query, gallery: embeddings.
        parts: the columns start, stop of the P parts of both.
        how: which parts of which rows, and from how many neighbours.

    Memory beside the arguments: a copy of both, and DISTANCE_BYTES. UserError for arrays that do
    not fit, and where fewer gallery rows than neighbours have a part that can be relied on.
    """
    query, gallery = checked_pair(query, gallery)
    check("completion", how.neighbours, how.alpha, len(gallery))
    wanted = how.of_query.any(axis=0) | how.of_gallery.any(axis=0)
    for part, needed, there in zip(parts, wanted, (~how.of_gallery).sum(axis=0), strict=True):
        if needed and there < how.neighbours:
            raise UserError(
                f"The completion with {how.neighbours} neighbours needs as many gallery rows whose "
                f"part {part} is neither blinded nor missing; there are {there}."
            )
    sides = ((query, how.of_query), (gallery, how.of_gallery))
    return tuple(_completed(side, of, gallery, list(parts.values()), how) for side, of in sides)


def _completed(side, of_side, gallery, spans, how):
    """One side [N, E], its parts replaced where `of_side` [N, P] says so."""
    distances = Euclidean(side, gallery)
    found, order = side.copy(), distances.order
    unreliable = how.of_gallery[order]
    # The gallery's own rows in the order of their bits too: products depend on what else is there.
    rows = order if side is gallery else np.arange(len(side))
    rows = rows[of_side[rows].any(axis=1)]
    block = max(1, DISTANCE_BYTES // (4 * len(gallery)))
    for row, angles in zip(rows, distances.angles(rows, block), strict=True):
        for part in np.flatnonzero(of_side[row]):
            usable = np.where(unreliable[:, part], np.inf, angles)
            close = nearest(usable, how.neighbours)
            weights = np.maximum(1.0 - usable[close].astype(np.float64), 0) ** how.alpha
            if not weights.any():  # nothing points the same way: all count alike
                weights[:] = 1
            columns = slice(*spans[part])
            found[row, columns] = weights @ gallery[order[close], columns] / weights.sum()
    return found
