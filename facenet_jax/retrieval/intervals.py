"""How sure a mean over queries is: bootstrap intervals over identities and over training seeds.

Queries of one identity succeed and fail together, so identities are drawn, each with all its
queries; where values of several training runs are given, runs are drawn too. Of n identities (and
of n runs) n - 1 are drawn with replacement: drawing n would make the variance too small by the
factor (n - 1) / n (Rao and Wu 1988), which matters for three seeds. The ends of an interval are
percentiles of the means of the draws.
"""

from typing import NamedTuple

import numpy as np

from data_tfds.errors import UserError


class Interval(NamedTuple):
    """A mean, and the ends of the interval around it."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def bootstrap(
    values: np.ndarray,
    identities: np.ndarray,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean of `values` and its interval.

    `values` [Q] are of the queries of one run, or [S, Q] of S runs, such as average precisions;
    `identities` [Q] integers. With one run the interval says nothing of other seeds. With one
    identity and one run nothing can be drawn, and both ends are the mean.
    UserError for arrays that do not fit each other, without a query, or not finite.
    """
    values = _checked(values, identities)
    weights, drawn = draw(len(np.unique(identities)), len(values), draws, seed)
    total, count = per_identity(values, identities)
    means = np.einsum("ds,di,si->d", drawn, weights, total) / (drawn.sum(1) * (weights @ count))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired(a: np.ndarray, b: np.ndarray, identities: np.ndarray, **options) -> Interval:
    """The mean of `a - b` and its interval: the same identities and runs are drawn of both.

    `a` and `b` are the values of the same queries, [Q], or [S, Q] with run s of both trained with
    the same seed. `options` and errors are those of `bootstrap`.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise UserError(
            f"Values {list(a.shape)} and {list(b.shape)} are no pairs: both must be of the same "
            "queries and of as many runs."
        )
    return bootstrap(a - b, identities, **options)


def draw(identities: int, runs: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each identity [draws, I] and each run [draws, S] is in each draw, as floats."""
    rng = np.random.default_rng(seed)

    def times(count: int) -> np.ndarray:
        if count == 1:
            return np.ones((draws, 1))
        return rng.multinomial(count - 1, np.full(count, 1 / count), draws).astype(np.float64)

    return times(identities), times(runs)


def per_identity(values: np.ndarray, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of `values` [S, Q] over the queries of each identity [S, I], and their number [I].

    Identities in ascending order.
    """
    _, place = np.unique(identities, return_inverse=True)
    count = np.bincount(place).astype(np.float64)
    return np.stack([np.bincount(place, row, len(count)) for row in values]), count


def _checked(values: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """`values` as float64 [S, Q]."""
    values = np.asarray(values, np.float64)
    identities = np.asarray(identities)
    if values.ndim not in (1, 2) or identities.shape != values.shape[-1:] or not values.size:
        raise UserError(
            f"An interval needs values [Q] or [S, Q] and identities [Q] of one or more queries, "
            f"not {list(values.shape)} and {list(identities.shape)}."
        )
    if not np.isfinite(values).all():
        raise UserError("An interval needs finite values; some are NaN or infinite.")
    return np.atleast_2d(values)
