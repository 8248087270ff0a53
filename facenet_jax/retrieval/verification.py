"""Are two samples the same vehicle? ROC, equal error rate, rates at a threshold, and intervals.

A pair of a query and a gallery row that the protocol keeps is genuine where the row is a match, and
an impostor otherwise. It is accepted where its angle, 1 - cosine, is at most a threshold:

    TPR(t) = accepted genuine pairs / genuine pairs      FPR(t) = accepted impostors / impostors

Pairs are counted by their angle, rounded down to 17 significant binary digits, so memory does not
grow with them (27 MB). Every rate is exact for angles so rounded: for cosines above 0.992, which
float32 itself holds no finer, exact; elsewhere a threshold is known to one part in 65,536. Pairs of
equal (rounded) angle are accepted together.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_tfds.samples import Protocol
from facenet_jax.retrieval import intervals, protocols
from facenet_jax.retrieval.distances import Euclidean
from facenet_jax.retrieval.embeddings import Embeddings
from facenet_jax.runtime.progress import shown

FALSE_ACCEPTS = (1e-3, 1e-4)
"""The false positive rates that are reported."""

_SHIFT = 7  # of the 23 binary digits behind the point, those that are cut off
_BITS = np.uint32
_FIRST = int(np.float32(2.0**-24).view(_BITS)) >> _SHIFT  # the smallest angle of float32 but 0
BINS = (int(np.float32(2).view(_BITS)) >> _SHIFT) - _FIRST + 2
_AT_ONCE = 2**20  # impostors collected before they are counted
_GRID = 384  # thresholds at which the pairs of each identity are counted, for intervals


def bins(angles: np.ndarray) -> np.ndarray:
    """The bin 0..BINS - 1 of each angle, int64; it grows with the angle."""
    keys = np.asarray(angles, np.float32).view(_BITS) >> _SHIFT
    return np.maximum(keys.astype(np.int64) - _FIRST + 1, 0)


def largest_angle(bin_: np.ndarray | int) -> np.ndarray:
    """The largest angle of a bin, float32."""
    last = ((np.asarray(bin_, np.int64) + _FIRST) << _SHIFT) - 1
    return last.astype(_BITS).view(np.float32)


@dataclasses.dataclass(frozen=True)
class Curve:
    """The rates at every threshold that changes one, from none accepted to all.

    `bin` [T] ascending, -1 first; `genuine` and `impostor` [T] are how many are accepted there.
    """

    bin: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray

    @property
    def pairs(self) -> tuple[int, int]:
        """The number of genuine pairs and of impostors."""
        return int(self.genuine[-1]), int(self.impostor[-1])

    @property
    def measurable(self) -> bool:
        """Whether there are pairs of both kinds."""
        return all(self.pairs)

    @property
    def tpr(self) -> np.ndarray:
        """True positive rate [T]."""
        return self.genuine / max(self.pairs[0], 1)

    @property
    def fpr(self) -> np.ndarray:
        """False positive rate [T]."""
        return self.impostor / max(self.pairs[1], 1)

    def at_fpr(self, limit: float) -> int | None:
        """The place of the largest threshold whose FPR is not above `limit`.

        None where there are fewer impostors than 1 / limit: such a rate cannot be measured.
        """
        if not self.measurable or self.pairs[1] * limit < 1 - 1e-9:
            return None
        return int(np.flatnonzero(self.impostor <= limit * self.pairs[1] + 1e-9)[-1])

    def equal_error(self) -> tuple[float, int] | None:
        """(equal error rate, the place of the threshold nearest to it); None without pairs.

        Where no threshold has FPR = 1 - TPR, on the straight line between its two neighbours.
        """
        if not self.measurable:
            return None
        rate, after = equal_errors(self.tpr[None], self.fpr[None])
        place = int(after[0])
        gap = np.abs(1 - self.tpr - self.fpr)
        return float(rate[0]), place - int(place > 1 and gap[place - 1] < gap[place])

    def cosine(self, place: int) -> float:
        """The least cosine to accept at this place; above 1: accept none.

        Midway between the last pair that is accepted and the first that is not, so that rounding
        elsewhere does not turn a pair over.
        """
        if self.bin[place] < 0:
            return float(np.nextafter(np.float32(1), np.float32(2)))
        after = self.bin[min(place + 1, len(self.bin) - 1)]
        last = np.float64(largest_angle(self.bin[place]))
        first = np.float64(largest_angle(max(after - 1, 0)))
        return float(1 - (last + max(first, last)) / 2)

    def thresholds(self) -> dict[str, dict[str, float] | None]:
        """{"eer", "0.001", "0.0001": {cosine, tpr, fpr}} of the operating points."""
        places = {f"{limit:g}": self.at_fpr(limit) for limit in FALSE_ACCEPTS}
        equal = self.equal_error()
        places = {"eer": equal and equal[1], **places}
        return {
            name: None if place is None else self.point(place) for name, place in places.items()
        }

    def point(self, place: int) -> dict[str, float]:
        """The cosine and both rates at a place."""
        rates = {"tpr": float(self.tpr[place]), "fpr": float(self.fpr[place])}
        return {"cosine": self.cosine(place), **rates}

    def rates_at(self, cosine: float) -> dict[str, float]:
        """Both rates where pairs of at least this cosine are accepted."""
        bin_ = bins(np.float32([max(1 - cosine, 0)]))[0] if cosine <= 1 else -1
        place = int(np.searchsorted(self.bin, bin_, side="right")) - 1
        return {"tpr": float(self.tpr[place]), "fpr": float(self.fpr[place])}

    def area(self) -> float:
        """The area under the curve: how often a genuine pair is nearer, ties counted half."""
        return float(np.trapezoid(self.tpr, self.fpr))

    def metrics(self) -> dict[str, Any]:
        """`genuine_pairs`, `impostor_pairs`, `auc`, `eer` and `tpr_at_fpr`; None: not measurable.

        All but the counts are fractions.
        """
        places = {f"{limit:g}": self.at_fpr(limit) for limit in FALSE_ACCEPTS}
        equal = self.equal_error()
        return {
            "genuine_pairs": self.pairs[0],
            "impostor_pairs": self.pairs[1],
            "auc": self.area() if self.measurable else None,
            "eer": equal and equal[0],
            "tpr_at_fpr": {
                name: None if place is None else float(self.tpr[place])
                for name, place in places.items()
            },
        }


def equal_errors(tpr: np.ndarray, fpr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of curves [D, T]: the equal error rate [D], and the first place with FPR >= 1 - TPR [D]."""
    gap = 1 - tpr - fpr  # falls from 1 to -1
    after = np.maximum((gap <= 0).argmax(axis=1), 1)
    rows = np.arange(len(gap))
    above, below = gap[rows, after - 1], gap[rows, after]
    weight = above / np.maximum(above - below, 1e-300)
    low, high = fpr[rows, after - 1], fpr[rows, after]
    return low + weight * (high - low), after


def curve(angles: Iterator[tuple[np.ndarray, np.ndarray]]) -> Curve:
    """The curve of pairs: the angles of genuine pairs and of impostors, any number at a time."""
    genuine, impostor = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    waiting, count = [], 0

    def flush():
        nonlocal count
        if waiting:
            impostor[:] += np.bincount(np.concatenate(waiting), minlength=BINS)
        waiting.clear()
        count = 0

    for same, others in angles:
        np.add.at(genuine, bins(same), 1)
        waiting.append(bins(others))
        count += len(others)
        if count >= _AT_ONCE:
            flush()
    flush()
    used = np.flatnonzero(genuine + impostor)
    accepted = [np.append(0, np.cumsum(counts[used])) for counts in (genuine, impostor)]
    return Curve(np.append(-1, used), *accepted)


def pairs(
    query: Embeddings,
    gallery: Embeddings,
    protocol: Protocol,
    rows: Sequence[int] | None = None,
    own: bool = False,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(query row, angles of its genuine pairs, angles of its impostors) of the queries `rows`.

    All queries by default, in each trial of the protocol. With `own` both sides are the same, and
    a row is not compared with itself.
    """
    wanted = np.arange(len(query)) if rows is None else np.asarray(rows)
    labels = gallery.by_name
    for trial in protocols.trials(protocol, labels, len(gallery)):
        of_trial = np.arange(len(gallery)) if trial is None else trial
        chosen = {name: values[of_trial] for name, values in labels.items()}
        distances = Euclidean(query.embedding, gallery.embedding[of_trial])
        order = distances.order
        of = protocols.relevance(protocol, query.by_name, chosen, len(query), order)
        found = shown(distances.angles(wanted), "comparing", len(wanted), "queries")
        for row, angles in zip(wanted, found, strict=True):
            members, junk = of.of(row)
            matches = members[~junk]
            ignored = of.ignored(row)
            keep = np.ones(len(angles), bool) if ignored is None else ~ignored
            keep[members] = False
            if own:
                keep[of_trial[order] == row] = False
                matches = matches[of_trial[order[matches]] != row]
            yield int(row), angles[matches], angles[keep]


def roc(query: Embeddings, gallery: Embeddings, protocol: Protocol, **which: Any) -> Curve:
    """The curve of the pairs that the protocol keeps; `which` as in `pairs`."""
    return curve((same, others) for _, same, others in pairs(query, gallery, protocol, **which))


def bootstrap(
    whole: Curve,
    query: Embeddings,
    gallery: Embeddings,
    protocol: Protocol,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Intervals (low, high) of `eer` and `tpr_at_fpr` over query identities, as of 95 %.

    `whole` is the curve of these pairs. In each draw the thresholds are found anew, among some 400
    of `whole`, which lie closest where few impostors are accepted. None: not measurable.
    """
    limits = [f"{limit:g}" for limit in FALSE_ACCEPTS if whole.at_fpr(limit) is not None]
    none = {f"{limit:g}": None for limit in FALSE_ACCEPTS}
    if not whole.measurable:
        return {"eer": None, "tpr_at_fpr": none}
    grid = whole.bin[_grid(whole)]
    names, place = np.unique(query.identity, return_inverse=True)
    accepted = np.zeros((2, len(names), len(grid)))
    for row, *kinds in pairs(query, gallery, protocol):
        for counts, angles in zip(accepted, kinds, strict=True):
            counts[place[row]] += np.searchsorted(np.sort(bins(angles)), grid, side="right")
    weights, _ = intervals.draw(len(names), 1, draws, seed)
    genuine, impostor = (weights @ counts for counts in accepted)
    usable = (genuine[:, -1] > 0) & (impostor[:, -1] > 0)
    genuine, impostor = genuine[usable], impostor[usable]
    tpr, fpr = genuine / genuine[:, -1:], impostor / impostor[:, -1:]
    found = {
        limit: tpr[np.arange(len(tpr)), (fpr <= float(limit) + 1e-12).sum(axis=1) - 1]
        for limit in limits
    }
    ends = {name: np.quantile(values, (0.025, 0.975)).tolist() for name, values in found.items()}
    eer = np.quantile(equal_errors(tpr, fpr)[0], (0.025, 0.975)).tolist()
    return {"eer": eer, "tpr_at_fpr": none | ends}


def _grid(whole: Curve) -> np.ndarray:
    """Places of `whole`, ascending: both ends, and steps even in log FPR, in FPR and in TPR."""
    count = _GRID // 3
    least = 1 / whole.pairs[1]
    wanted = np.concatenate([np.geomspace(least, 1, count), np.linspace(0, 1, count)])
    places = [
        np.searchsorted(whole.fpr, wanted),
        np.searchsorted(whole.tpr, np.linspace(0, 1, count)),
    ]
    last = len(whole.bin) - 1
    return np.unique(np.concatenate([*places, [0, last]]).clip(0, last))
