"""Ranked lists of queries as pictures of all modalities, each framed by whether it is right."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from facenet_jax.evaluate import pixels
from facenet_jax.report.blocks import Block, Text, Tile, Tiles, percent, picture
from facenet_jax.report.finished import Finished
from facenet_jax.retrieval import protocols
from facenet_jax.retrieval.distances import Euclidean

SHOWN = 10
"""Gallery rows of a list."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """The list of a query: why it is shown, what is said of it, and the query before its rows."""

    why: str
    caption: str
    shown: Sequence[tuple[Sequence[np.ndarray], str, str]]  # images of all modalities, label, frame


def lists(run: Finished) -> list[Block]:
    """The best, the worst and some random queries, clean ones and flared ones apart if told."""
    if words := nothing(run):
        return [Text(words)]
    blocks: list[Block] = []
    if run.config.evaluate.flare_weight < 1:
        blocks.append(Text("Scored with evaluate.flare_weight; the lists are by plain distance."))
    if run.config.evaluate.complete:
        words = "Parts of flared modalities come from similar gallery rows (evaluate.complete)."
        blocks.append(Text(words))
    for each in with_images(run):
        tiles = [Tile(picture(images), label, frame) for images, label, frame in each.shown]
        blocks.append(Tiles(each.caption, tiles))
    return blocks


def nothing(run: Finished) -> str:
    """Why there is no list; "" where there are some."""
    if isinstance(run.splits, str):
        return run.splits
    return "" if len(run.ranking.trials[0].query) else "No query has a match in the gallery."


def with_images(run: Finished) -> Iterator[Ranked]:
    """The lists of a run that has some, see `nothing`."""
    of, images = run.ranking.trials[0], [pixels(split) for split in run.splits]
    precision = dict(zip(of.query.tolist(), of.average_precision.tolist(), strict=True))
    for words, row in chosen(run):
        shown = [([one[row] for one in images[0]], "query", "query")]
        for rank, (place, kind) in enumerate(ranked(run, row), start=1):
            label = f"{rank} {kind} · {described(run, place)}"
            shown.append(([one[place] for one in images[1]], label, kind))
        named = run.query.labels.get("identity_name", run.query.identity)[row]
        caption = f"{words}: identity {named}, {run.query.name[row]}, AP {percent(precision[row])}"
        yield Ranked(words, caption, shown)


def chosen(run: Finished) -> Iterator[tuple[str, int]]:
    """(why, query row) of the lists that are shown; ties go to the first row."""
    of = run.ranking.trials[0]
    rows, order = of.query, np.argsort(of.average_precision, kind="stable")
    taken: set[int] = set()

    def some(words: str, candidates: np.ndarray, count: int) -> Iterator[tuple[str, int]]:
        free = [row for row in candidates.tolist() if row not in taken][:count]
        taken.update(free)
        yield from ((words, row) for row in free)

    random = np.random.default_rng(0).permutation(len(rows))
    flared = run.query.flared
    groups = {"": np.ones(len(run.query), bool)}
    if flared is not None and flared.any() and not flared.all():
        groups = {", clean": ~flared, ", flared": flared}
    for words, keep in groups.items():
        inside = keep[rows]
        yield from some(f"Worst{words}", rows[order[inside[order]]], 3)
        yield from some(f"Best{words}", rows[order[inside[order]][::-1]], 2)
        yield from some(f"Random{words}", rows[random[inside[random]]], 3)


def ranked(run: Finished, row: int) -> list[tuple[int, str]]:
    """The first gallery rows of a query's list: (row, "right", "wrong" or "junk").

    Junk is shown at its place, though it does not count. Of the first trial, where there are more.
    """
    query, gallery = run.sides
    (trial, *_) = protocols.trials(run.protocol, gallery.by_name, len(gallery))
    places = np.arange(len(gallery)) if trial is None else trial
    labels = {name: values[places] for name, values in gallery.by_name.items()}
    distances = Euclidean(query.embedding[[row]], gallery.embedding[places])
    order = distances.order
    one = {name: values[[row]] for name, values in query.by_name.items()}
    of = protocols.relevance(run.protocol, one, labels, 1, order)
    (values,) = distances.rows(np.array([0]))
    kinds = np.full(len(order), "wrong", "<U5")
    members, junk = of.of(0)
    kinds[members] = np.where(junk, "junk", "right")
    ignored = of.ignored(0)
    found = np.lexsort((kinds == "right", values))  # of equal ones those that are wrong come first
    if ignored is not None:
        found = found[~ignored[found]]
    return [(int(places[order[i]]), str(kinds[i])) for i in found[:SHOWN]]


def described(run: Finished, row: int) -> str:
    """Identity and camera of a gallery row."""
    labels = run.gallery.labels
    words = f"id {labels.get('identity_name', run.gallery.identity)[row]}"
    known = "camera" in labels and labels["camera"][row] >= 0
    return f"{words}, cam {labels['camera'][row]}" if known else words
