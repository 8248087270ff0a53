"""Per-query scores of a trained workdir, by what is matched: files that a table reads.

WORKDIR/scores/KEY.npz has `average_precision` and `first` (rank of the first match) float64 [Q],
NaN where the query has no match in some trial, `identity` [Q], and `flare` [Q, M] where it is known
with `modalities` [M].
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_tfds.paths import Place, write_bytes
from facenet_jax import stored
from facenet_jax.embed import embed, test_set
from facenet_jax.evaluate import ranked, refined, refinements
from facenet_jax.lab.tables import changed
from facenet_jax.retrieval import Result, missing
from facenet_jax.retrieval.files import archive_of
from facenet_jax.run import open_run, saved_state
from facenet_jax.runtime.checkpoint import open_checkpoints
from facenet_jax.runtime.workdir import damaged
from facenet_jax.runtime.writers import write_json

WHOLE = "all"
"""All modalities that query and gallery have."""


def key(scored: Mapping[str, Any]) -> str:
    """A short name of options that were changed for scoring."""
    text = json.dumps(dict(scored), sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def path(workdir: Place, scored: Mapping[str, Any], subset: str) -> Place:
    """The file of a subset of the modalities, such as visible+thermal."""
    return workdir / "scores" / f"{subset}-{key(scored)}.npz"


def listed(workdir: Place, scored: Mapping[str, Any], which: str) -> Place:
    """The file that lists the subsets of `subsets_of(..., which)`, once all of them are scored."""
    return workdir / "scores" / f"{which}-{key(scored)}.json"


def subsets_of(modalities: Sequence[str], which: str) -> list[str]:
    """The subsets to score: "whole", "some" (each alone and the first two, too) or "every"."""
    names = tuple(modalities)
    proper = [each for each in missing.subsets(names) if each != names]
    some = [each for each in proper if len(each) == 1 or each == names[:2]]
    return [WHOLE, *("+".join(x) for x in {"whole": [], "some": some, "every": proper}[which])]


def write(workdir: Place, scored: Mapping[str, Any], which: str) -> None:
    """Score the last checkpoint of a workdir with the options `scored`; write what is missing.

    Where the options refine the ranking (expand, augment_gallery, rerank), the refined one counts.
    """
    config = stored.read_config(workdir)
    changed(config, scored, str(workdir))
    run = open_run(config, spec=stored.read_spec(workdir), training=False)
    checkpoints = open_checkpoints(workdir, run.dataset.protocol.select)
    state, of = saved_state(run, checkpoints, checkpoints.latest()), test_set(run)
    names = of.query.split.modalities
    same = of.query.data is of.gallery.data  # else one side lacks modalities of the other
    subsets = subsets_of(names, which if same else "whole")
    for subset in subsets:
        if path(workdir, scored, subset).exists():
            continue
        wanted = () if subset == WHOLE else tuple(subset.split("+"))
        rank = refined if refinements(run) else ranked
        result = rank(run, embed(run, state, of, wanted), of)
        file = io.BytesIO()
        np.savez(file, **of_queries(result, of.query.split))
        write_bytes(path(workdir, scored, subset), file.getvalue())
    write_json(listed(workdir, scored, which), subsets)
    checkpoints.close()


def of_queries(result: Result, split: Any) -> dict[str, np.ndarray]:
    """The arrays of a file: means over the trials of each query."""
    found = {}
    for name, values in (("average_precision", "average_precision"), ("first", "first_match")):
        rows = np.full((len(result.trials), len(split)), np.nan)
        for row, trial in zip(rows, result.trials, strict=True):
            row[trial.query] = getattr(trial, values)
        found[name] = rows.mean(0)
    found["identity"] = split.identity
    if "flare" in split.labels:
        found["flare"] = split.labels["flare"]
        found["modalities"] = np.array(split.modalities, np.str_)
    return found


def read(workdir: Place, scored: Mapping[str, Any], subset: str) -> dict[str, np.ndarray]:
    """The arrays of a file. UserError where it is missing or damaged."""
    file = path(workdir, scored, subset)
    found = archive_of(file, str(file))
    queries = len(found["identity"]) if found.get("identity", np.array(0)).ndim == 1 else -1
    wanted = {"average_precision": np.floating, "first": np.floating, "identity": np.integer}
    shapes = dict.fromkeys(wanted, (queries,))
    if "flare" in found:
        wanted |= {"flare": np.bool_, "modalities": np.str_}
        modalities = found.get("modalities", np.zeros(0)).size
        shapes |= {"flare": (queries, modalities), "modalities": (modalities,)}
    for name, kind in wanted.items():
        array = found.get(name)
        if array is None or array.shape != shapes[name] or not np.issubdtype(array.dtype, kind):
            raise damaged(file)
    return found


def groups(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name: which queries, bool [Q]}: all, clean, flared, and flared in just these modalities.

    Queries without a match belong to none.
    """
    valid = np.isfinite(scores["average_precision"])
    found = {"all": valid}
    if "flare" not in scores:
        return found
    flare = scores["flare"]
    found |= {"clean": valid & ~flare.any(1), "flared": valid & flare.any(1)}
    for pattern in np.unique(flare[flare.any(1)], axis=0):
        words = " + ".join(scores["modalities"][pattern])
        found[f"flared {words}"] = valid & (flare == pattern).all(1)
    return {name: rows for name, rows in found.items() if rows.any()}
