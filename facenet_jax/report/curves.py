"""The charts of a run: training, retrieval, pairs, the gallery as a map."""

import dataclasses
import functools
import itertools

import numpy as np

from data_tfds.samples import Protocol
from facenet_jax import retrieval
from facenet_jax.report import charts
from facenet_jax.report.blocks import Block, Chart, Table, Text, percent
from facenet_jax.report.finished import Finished
from facenet_jax.retrieval import Embeddings, compare, missing, verification
from facenet_jax.runtime import form
from facenet_jax.runtime.workdir import damaged

POINTS = 300
"""Of a line of training."""

MOST_MAPPED = 1000
"""Gallery rows of the map, taken evenly."""

MOST_CELLS = 2_000_000
"""Query-gallery pairs of one cell of the table of modalities; beyond it every n-th query."""


def training(run: Finished) -> list[Block]:
    """Losses, scores, rates, norms and speed over the steps."""
    rows = [row for row in run.metrics if "train/loss" in row]
    scored = [row for row in run.metrics if any(key.endswith("/mAP") for key in row)]
    if not rows:
        return [Text("The run has no metrics.jsonl.")]
    steps = np.array([row["step"] for row in rows])
    names = [key for key in rows[-1] if key.startswith("train/")]

    def line(key: str) -> tuple[np.ndarray, np.ndarray]:
        values = np.array([row.get(key, np.nan) for row in rows], np.float64)
        return mean_line(steps, values)

    losses = {key.removeprefix("train/"): line(key) for key in names if "/loss" in key}
    charted = [
        Chart(
            charts.lines(losses, f"{run.folder} losses", "step", "loss"),
            "Every loss, weight times term",
        )
    ]
    if scored:
        kinds = sorted({key for row in scored for key in row if key.endswith(("/mAP", "/R1"))})
        series = {
            key.replace("/", " "): tuple(
                np.array([[row["step"], 100 * row[key]] for row in scored if key in row]).T
            )
            for key in kinds
        }
        chart = charts.lines(series, f"{run.folder} scores", "step", "per cent")
        charted.append(Chart(chart, "Scores in training"))
    for key, words in (
        ("train/learning_rate", "Learning rate"),
        ("train/gradient_norm", "Norm of the gradient"),
        ("train/parameter_norm", "Norm of the parameters"),
        ("perf/samples_per_second", "Samples per second"),
    ):
        if any(key in row for row in rows):
            chart = charts.lines({words: line(key)}, f"{run.folder} {key}", "step", words.lower())
            charted.append(Chart(chart, words))
    return charted


def mean_line(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line of POINTS points at most: means over neighbouring steps."""
    cuts = np.unique(np.linspace(0, len(steps), min(len(steps), POINTS) + 1).astype(int))
    parts = list(itertools.pairwise(cuts.tolist()))
    return (
        np.array([steps[a:b].mean() for a, b in parts]),
        np.array([values[a:b].mean() for a, b in parts]),
    )


def ranks(run: Finished) -> list[Block]:
    """The CMC, the ROC, and how angles of pairs are spread."""
    of = run.ranking.trials[0]
    if not len(of.query):
        return [Text("No query has a match in the gallery.")]
    upto = np.arange(1, min(50, of.gallery) + 1)
    shares = np.array([[(t.first_match <= r).mean() for r in upto] for t in run.ranking.trials])
    cmc = {"": (upto, 100 * shares.mean(axis=0))}
    blocks: list[Block] = [
        Chart(
            charts.lines(cmc, f"{run.folder} cmc", "rank", "queries with a match so far, %"),
            "CMC: how many queries have their first match up to a rank",
        )
    ]
    if not run.curve.measurable:
        return [*blocks, Text("Without pairs of both kinds there is no ROC.")]
    equal, place = run.curve.equal_error()
    grid = np.unique(np.searchsorted(run.curve.fpr, np.geomspace(1e-6, 1, 400)).clip(1))
    grid = grid[grid < len(run.curve.fpr)]
    line = {"": (run.curve.fpr[grid], 100 * run.curve.tpr[grid])}
    marks = [(equal, 100 * (1 - equal))]
    chart = charts.lines(
        line, f"{run.folder} roc", "false positive rate", "true positive rate, %", True, marks=marks
    )
    genuine, impostors = run.curve.pairs
    words = f"ROC of {genuine} genuine pairs and {impostors} impostors; the point is the EER, "
    blocks.append(Chart(chart, f"{words}{percent(equal)} %"))
    return [*blocks, histogram(run, run.curve.cosine(place))]


def histogram(run: Finished, threshold: float) -> Chart:
    """The cosines of genuine pairs and of impostors."""
    angles = verification.largest_angle(np.maximum(run.curve.bin[1:], 0)).astype(np.float64)
    counts = {"genuine": run.curve.genuine, "impostor": run.curve.impostor}
    used = 1 - angles
    edges = np.linspace(used.min(), max(used.max(), used.min() + 1e-9), 61)
    groups = {}
    for name, accepted in counts.items():
        number = np.histogram(used, edges, weights=np.diff(accepted))[0]
        groups[name] = (edges, number / max(number.sum(), 1))
    centre = " less the gallery's mean" if run.config.evaluate.centre else ""
    key = f"{run.folder} cosines"
    return Chart(charts.shares(groups, key, f"cosine{centre}", threshold), "Cosines of the pairs")


def gallery_map(run: Finished) -> list[Block]:
    """The gallery in two dimensions by t-SNE on cosines, in colours of identities."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    gallery = run.sides[1]
    some = np.unique(np.linspace(0, len(gallery) - 1, min(len(gallery), MOST_MAPPED)).astype(int))
    if len(some) < 5:
        return [Text("The gallery has too few rows for a map.")]
    rows = gallery.embedding[some]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(some) - 1) / 4)
    with threadpool_limits(1):  # threads that wait for each other are slow on a busy machine
        place = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(rows)
    _, number = np.unique(gallery.identity[some], return_inverse=True)
    words = f"{len(some)} of {len(gallery)} gallery rows by t-SNE (perplexity {perplexity:g}); "
    words += f"colours repeat over {number.max() + 1} identities"
    return [Chart(charts.points(place, number, f"{run.folder} map"), words)]


def identities(run: Finished) -> list[Block]:
    """MAP of each identity, the worst first."""
    found = {k: x for k, x in run.details["by_label"]["identity"].items() if x}
    ordered = dict(sorted(found.items(), key=lambda item: item[1]["mAP"]))
    chart = charts.bars(
        {name: 100 * x["mAP"] for name, x in ordered.items()}, f"{run.folder} identities", "mAP, %"
    )
    worst = ", ".join(f"{k} ({percent(x['mAP'])})" for k, x in list(ordered.items())[:5])
    return [Chart(chart, f"mAP of each of {len(ordered)} identities; the worst: {worst}")]


def modality_tables(run: Finished) -> list[Block]:
    """MAP of queries that show some modalities against a gallery that shows some."""
    measured = run.optional("modalities.json", form.MODALITIES)
    if measured:
        rows = measured["subsets"]["shared"]
        if any(row.keys() != rows.keys() for row in rows.values()):
            raise damaged(run.folder / "modalities.json")
        table = {name: {k: x and x["mAP"] for k, x in row.items()} for name, row in rows.items()}
        words = "The network saw nothing of the modalities that a side does not have."
        blocks: list[Block] = [square(table), Text(words)]
    else:
        blocks = by_columns(run)
    measured = run.optional("per_modality.json", form.PER_MODALITY)
    if measured:
        rows = [
            [name.replace("_", "-"), *(percent(row[key]) for key in ("all", "clean", "flared"))]
            for name, row in measured.items()
        ]
        head = ["only these images", "all queries", "clean", "flared"]
        blocks.append(Table(head, rows, "mAP where query and gallery have these images alone"))
    return blocks


def square(table: dict[str, dict[str, float | None]]) -> Table:
    """Modalities by modalities, as letters."""
    letters = {name: missing.short(name) for name in table}
    rows = [
        [letters[name], *(percent(row[other]) for other in table)] for name, row in table.items()
    ]
    single = [f"{x} {name.replace('_', '-')}" for name, x in letters.items() if "+" not in name]
    caption = f"Query (rows) by gallery (columns): {', '.join(single)}"
    return Table(["mAP", *letters.values()], rows, caption)


def by_columns(run: Finished) -> list[Block]:
    """The same by columns of the exported embeddings, which all modalities were seen for."""
    query, gallery = run.seen
    names = list(query.parts)
    if len(names) < 2 or names != list(gallery.parts) or len(names) > 3:
        return [Text("The embedding has no parts of two or three modalities on both sides.")]
    step = -(-len(query) * len(gallery) // MOST_CELLS)
    query = every(query, step)

    @functools.cache
    def cell(shared: tuple[str, ...]) -> float | None:
        return score(query, gallery, run.protocol, shared) if shared else None

    subsets = missing.subsets(names)
    table = {
        "+".join(left): {
            "+".join(right): cell(tuple(name for name in left if name in right))
            for right in subsets
        }
        for left in subsets
    }
    words = (
        "Compared are the columns of the embedding that both show; where they share none, nothing "
        "can be (-)."
    )
    if query.mixed:
        parts = " and ".join(query.mixed).replace("_", "-")
        words += (
            f" The network saw all modalities, and of flared samples the part of {parts} holds "
            f"something of the others; facenet modalities --workdir {run.folder} measures them "
            "with no image of the others."
        )
    if step > 1:
        words += f" Of every {step}th query."
    return [square(table), Text(words)]


def every(side: Embeddings, step: int) -> Embeddings:
    """Every `step`-th row."""
    labels = {name: values[::step] for name, values in side.labels.items()}
    fields = {name: getattr(side, name)[::step] for name in ("embedding", "identity", "name")}
    return dataclasses.replace(side, labels=labels, **fields)


def score(
    query: Embeddings, gallery: Embeddings, protocol: Protocol, parts: tuple[str, ...]
) -> float | None:
    """MAP by these parts; None without a valid query."""
    sides = (side.select(parts) for side in (query, gallery))
    found = retrieval.evaluate(*sides, protocol).subset(np.ones(len(query), bool))
    return found and found["mAP"]


def scatter(first: Finished, second: Finished) -> list[Block]:
    """The AP of each query in both runs, and the differences with their intervals."""
    both = compare.pair(first.ranking, second.ranking, first.query, second.query)
    place = np.stack([both.second["mAP"], both.first["mAP"]], axis=1)
    names = f"AP in B, {second.name}", f"AP in A, {first.name}"
    chart = charts.points(place, np.zeros(len(place), int), f"{first.folder} scatter", names)
    rows = [
        [
            name,
            percent(row["first"]),
            percent(row["second"]),
            f"{100 * row['difference']:+.1f}",
            f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
        ]
        for name, row in compare.differences(both).items()
    ]
    head = ["", "A", "B", "A - B", "95 % over query identities"]
    return [Chart(chart, f"{len(place)} queries; above the line A is better"), Table(head, rows)]
