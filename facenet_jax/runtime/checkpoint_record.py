"""What is written beside the arrays of a checkpoint: scores, the best so far, and digests."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from data_tfds.errors import UserError
from data_tfds.paths import Place, as_os_error

SELECT = "select"
"""In older checkpoints the key, beside the scores, of the name of the score that ranks them."""

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged JSON file raises."""

_DIGITS = 32  # hexadecimal digits of a digest
_THREADS = 8


def selected(scores: Mapping[str, Any], select: str) -> float:
    """The score that names the best checkpoint: "mAP", "mINP", or a CMC rank as "R1"."""
    return scores["cmc"][select[1:]] if select.startswith("R") else scores[select]


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of a step, and which of them ranks checkpoints."""

    step: int
    select: str
    scores: Mapping[str, Any]

    @functools.cached_property
    def value(self) -> float:
        """The score that ranks checkpoints."""
        return selected(self.scores, self.select)


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of a checkpoint."""

    step: int
    scored: Scored | None
    best: Scored | None  # of all checkpoints up to this one
    digests: Mapping[str, str]  # of each array, by its path

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values, with a digest of itself."""
        values = {
            "step": self.step,
            "scored": self.scored and dataclasses.asdict(self.scored),
            "best": self.best and dataclasses.asdict(self.best),
            "digests": dict(self.digests),
        }
        return {**values, "seal": seal(values)}


def seal(values: Mapping[str, Any]) -> str:
    """The digest of JSON values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def read(path: Place) -> Record | None:
    """The record in Orbax's file of a checkpoint; None where there is none, as of older versions.

    Raises UserError for a damaged file.
    """
    try:
        with as_os_error(path):
            if not path.exists():
                return None
            values = json.loads(path.read_text())["custom_metadata"]
        if not values:
            return None
        values = dict(values)
        if values.pop("seal") != seal(values):
            raise ValueError("its content does not fit its digest")
        scored, best = (each and Scored(**each) for each in (values.pop("scored"), values["best"]))
        return Record(values["step"], scored, best, values["digests"])
    except DAMAGED as error:
        raise UserError(
            f"{path} is damaged ({error or type(error).__name__}); restore it, or remove this one "
            "file: then this checkpoint is used without a check of its arrays."
        ) from error


def read_old(folder: Place, step: int, select: str) -> Scored | None:
    """The scores of a checkpoint of an older version, None where it has none.

    Raises UserError for a damaged file.
    """
    path = folder / str(step) / "metrics" / "metrics"
    try:
        with as_os_error(path):
            if not path.exists():
                return None
            scores = json.loads(path.read_text())
        found = Scored(step, scores.pop(SELECT, select), scores)
        float(found.value)
        return found
    except DAMAGED as error:
        raise UserError(
            f"{path}, the scores of the checkpoint of step {step}, is damaged "
            f"({error or type(error).__name__}); restore it, or remove this one file: then this "
            "checkpoint counts as not evaluated."
        ) from error


def digests_of(state: Any) -> dict[str, str]:
    """The digest of each array of a pytree, by its path.

    Arrays that are divided over several hosts have none: no host has the whole of them.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(_digest, [leaf for _, leaf in leaves])
        paths = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
        return {path: each for path, each in zip(paths, found, strict=True) if each}


def _digest(leaf: Any) -> str:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            return ""
        leaf = leaf.addressable_data(0)
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()[:_DIGITS]


def changed(record: Record, state: Any) -> list[str]:
    """The paths of the arrays of `state` that are not what the record says."""
    found = digests_of(state)
    return [path for path in found if record.digests.get(path, found[path]) != found[path]]
