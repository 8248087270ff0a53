"""A folder of images into a database: in windows, each written whole, so that it goes on."""

import concurrent.futures
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_tfds.errors import UserError
from facenet_jax.runtime.progress import Bar
from facenet_jax.search.database import Database
from facenet_jax.search.listing import Sample, samples

WINDOW = 256
"""Samples that are embedded and written together: what a kill costs at most, twice."""
TIDIED = 400
"""Windows after which small files are joined: until then each makes the next one slower."""
READERS = 2
"""Windows in work at a time: while one is on the device the images of the next are decoded."""


class Indexed(NamedTuple):
    """What was done."""

    added: int
    updated: int
    unchanged: int


def index_folder(
    database: Database,
    folder: str | os.PathLike[str],
    *,
    modality: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    part: tuple[int, int] = (1, 1),
    batch: int = 64,
) -> Indexed:
    """Add the samples below a folder, see `listing.samples`; update those that have changed.

    What is there with the same files and labels is not embedded again: after a kill the same call
    goes on. Memory: the names of all samples, and READERS windows of embeddings. `part` (i, n) is
    for n processes on as many devices. UserError for what no image is, and for modalities that the
    network does not know; the windows before it stay.
    """
    found = samples(pathlib.Path(folder), modality, labels and pathlib.Path(labels), part)
    known = database.network.model.spec.modalities
    for sample in found:
        unknown = sorted(set(sample.files) - set(known))
        if unknown:
            raise UserError(
                f"{sample.files[unknown[0]]} is a {unknown[0]} image, but the network was trained "
                f"with {', '.join(known)}."
            )
    before, changed, written = len(database), 0, 0
    with Bar("indexing", len(found), "samples") as bar:
        for window, todo, joint in embedded(database, found, batch):
            if todo:
                database.put(todo, joint)
                written += 1
                if written % TIDIED == 0:
                    database.table.tidy()
            changed += len(todo)
            bar.update(len(window))
    if changed:
        database.table.tidy()
    added = len(database) - before
    return Indexed(added, changed - added, len(found) - changed)


def embedded(
    database: Database, found: Sequence[Sample], batch: int
) -> Iterator[tuple[Sequence[Sample], list[Sample], object]]:
    """(window, those of it that must be written, their embeddings) of all windows in order."""

    def work(window):
        there = database.stamps([sample.name for sample in window])
        todo = [sample for sample in window if there.get(sample.name) != sample.stamp()]
        return window, todo, database.embed(todo, batch)

    windows = (found[i : i + WINDOW] for i in range(0, len(found), WINDOW))
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        waiting = [pool.submit(work, each) for each in itertools.islice(windows, READERS)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(work, each) for each in itertools.islice(windows, 1)]
        finally:
            for each in waiting:
                each.cancel()
