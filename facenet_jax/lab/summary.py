"""What a table says: means over seeds, deviations, and paired intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.lab import scores
from facenet_jax.lab.runs import Job
from facenet_jax.lab.tables import Table
from facenet_jax.retrieval.intervals import bootstrap, paired
from facenet_jax.runtime.workdir import read_json


def summary(table: Table, jobs: Sequence[Job], draws: int = 2000) -> dict[str, Any]:
    """What the finished runs show: {title, published_on, rows}, and of each row its name, seeds,
    published, against and scores.

    `scores` is {subset of the modalities: {group of queries: {queries, mAP, R1, deviation, low,
    high, gain, gain_low, gain_high}}}, fractions. `deviation` is the standard deviation over seeds,
    None for one; low and high the ends of the interval of mAP over identities and seeds; `gain` is
    mAP less that of the row `against`, over the seeds that both have. A row without a finished run
    has no scores.
    """
    found = {row.name: {} for row in table.rows}
    for job in jobs:
        if job.done:
            found[job.row.name][job.seed] = read(job)
    rows = []
    for row in table.rows:
        own = found[row.name]
        against = row.against or table.rows[0].name
        rows.append(
            {
                "name": row.name,
                "seeds": sorted(own),
                "published": list(row.published),
                "against": against,
                "scores": compared(own, {} if against == row.name else found[against], draws),
            }
        )
    return {
        "title": table.title,
        "published_on": table.data,
        "rows": rows,
    }


def read(job: Job) -> dict[str, dict[str, np.ndarray]]:
    """{subset: arrays} of a finished run."""
    listed = scores.listed(job.folder, job.row.scored, job.which)
    subsets = read_json(listed, job.folder, [str])
    return {each: scores.read(job.folder, job.row.scored, each) for each in subsets}


def compared(own: Mapping[int, Any], first: Mapping[int, Any], draws: int) -> dict[str, Any]:
    """The scores of a row, {seed: {subset: arrays}}, and its gains over those of another row."""
    if not own:
        return {}
    some = next(iter(own.values()))
    return {subset: of_subset(own, first, subset, draws) for subset in some}


def of_subset(
    own: Mapping[int, Any], first: Mapping[int, Any], subset: str, draws: int
) -> dict[str, dict[str, Any]]:
    """The scores of a subset of the modalities by group of queries."""
    seeds, found = sorted(own), {}
    both = [seed for seed in seeds if subset in first.get(seed, {})]
    arrays = own[seeds[0]][subset]
    refuse_others([*own.values(), *first.values()], subset, arrays["identity"])
    for group, rows in scores.groups(arrays).items():
        identity = arrays["identity"][rows]
        precision = stacked(own, seeds, subset, "average_precision", rows)
        interval = bootstrap(precision, identity, draws=draws)
        deviation = float(precision.mean(1).std(ddof=1)) if len(seeds) > 1 else None
        found[group] = {
            "queries": int(rows.sum()),
            "mAP": interval.mean,
            "R1": float((stacked(own, seeds, subset, "first", rows) <= 1).mean()),
            "deviation": deviation,
            "low": interval.low,
            "high": interval.high,
        }
        if both:
            sides = (stacked(x, both, subset, "average_precision", rows) for x in (own, first))
            gain = paired(*sides, identity, draws=draws)
            found[group] |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    return found


def stacked(
    runs: Mapping[int, Any], seeds: Sequence[int], subset: str, name: str, rows: np.ndarray
) -> np.ndarray:
    """The values [S, Q] of some queries in the runs of these seeds."""
    return np.stack([runs[seed][subset][name][rows] for seed in seeds])


def refuse_others(runs: Sequence[Mapping[str, Any]], subset: str, identity: np.ndarray) -> None:
    """UserError where runs were not scored on the same queries."""
    for run in runs:
        if subset in run and not np.array_equal(run[subset]["identity"], identity):
            raise UserError("The runs of this table were scored on different queries.")


def text(said: Mapping[str, Any]) -> str:
    """The table for a terminal, all modalities: mAP, and gains with their intervals."""
    lines = [f"{said['title']}: mAP +- deviation over seeds [gain: its 95 % interval]"]
    for row in said["rows"]:
        done = f"seeds {', '.join(map(str, row['seeds']))}" if row["seeds"] else "no seed finished"
        lines.append(f"{row['name']} (against {row['against']}), {done}")
        if row["published"]:
            on = f" on {said['published_on']}" if said["published_on"] else ""
            lines.append(f"  published{on}: {' / '.join(map(str, row['published']))}")
        for subset, groups in row["scores"].items():
            cells = [f"{group} {cell(values)}" for group, values in groups.items()]
            lines.append(f"  {subset}: " + "; ".join(cells))
    return "\n".join(lines)


def cell(values: Mapping[str, Any]) -> str:
    """One score in per cent: 82.1 +- 0.7 [+1.2: -0.3 .. 2.5]."""
    deviation, gain = values["deviation"], values.get("gain")
    shown = f"{100 * values['mAP']:.1f}"
    shown += "" if deviation is None else f" +- {100 * deviation:.1f}"
    if gain is None:
        return shown
    ends = (100 * values["gain_low"], 100 * values["gain_high"])
    return shown + " [{:+.1f}: {:.1f} .. {:.1f}]".format(100 * gain, *ends)


def markdown(said: Mapping[str, Any], subset: str = scores.WHOLE) -> str:
    """The table of one subset of the modalities as Markdown."""
    scored = [row["scores"][subset] for row in said["rows"] if subset in row["scores"]]
    groups = list(dict.fromkeys(name for row in scored for name in row))
    published = any(row["published"] for row in said["rows"])
    on = f" ({said['published_on']})" if said["published_on"] else ""
    head = ["row", "against", "seeds", *groups, "R-1", *([f"published{on} mAP / R-1"] * published)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in said["rows"]:
        values = row["scores"].get(subset, {})
        cells = [cell(values[name]) if name in values else "" for name in groups]
        first = f"{100 * values['all']['R1']:.1f}" if values else ""
        seeds = ", ".join(map(str, row["seeds"]))
        own = [" / ".join(map(str, row["published"][:2]))] * published
        lines.append(f"| {' | '.join([row['name'], row['against'], seeds, *cells, first, *own])} |")
    return "\n".join(lines)
