"""Images of query and gallery in, embeddings out: the sides of a protocol on the devices."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from data_tfds.errors import UserError
from data_tfds.samples import Protocol, Side, Split
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.inputs.device import DeviceSplit
from facenet_jax.inputs.stream import OnDiskSplit, open_reader
from facenet_jax.models import Model
from facenet_jax.retrieval import Embeddings
from facenet_jax.run import Run, on_devices
from facenet_jax.runtime.mesh import replicated
from facenet_jax.runtime.progress import Bar
from facenet_jax.step import State, embedding_batch, embedding_parts, is_divided, make_extract

Embedded = tuple[Embeddings, Embeddings]
"""Query and gallery."""


@dataclasses.dataclass(frozen=True)
class Half:
    """One side of a score: its samples, and their images on the devices or on disk."""

    split: Split
    data: DeviceSplit | OnDiskSplit
    rows: np.ndarray  # [M, N] image rows in `data`


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """Query and gallery for the devices. Both have the same `data` where their modalities agree."""

    query: Half
    gallery: Half
    protocol: Protocol


def make_set(run: Run, query: Split, gallery: Split, protocol: Protocol) -> EvalSet:
    """Both splits, on the devices or to be streamed."""
    if query.modalities != gallery.modalities:
        halves = [Half(split, *on_devices(run, split)) for split in (query, gallery)]
        return EvalSet(*halves, protocol)
    data, rows = on_devices(run, query, gallery)
    first, second = rows[:, : len(query)], rows[:, len(query) :]
    return EvalSet(Half(query, data, first), Half(gallery, data, second), protocol)


def test_set(run: Run) -> EvalSet:
    """The sides of the data set's protocol."""
    protocol = run.dataset.protocol
    query = side(run.dataset, protocol.query)
    same = protocol.query == protocol.gallery or (
        run.dataset.splits.get("query") is run.dataset.splits.get("gallery")
        and protocol.query.modalities == protocol.gallery.modalities
    )
    return make_set(run, query, query if same else side(run.dataset, protocol.gallery), protocol)


def side(dataset: Dataset, wanted: Side) -> Split:
    """The samples of one side that have at least one of its modalities."""
    split = dataset.split(wanted.split)
    named = wanted.modalities or [m for m in split.modalities if len(split.images[m])]
    unknown = set(named) - set(split.modalities)
    if unknown:
        raise UserError(
            f"The protocol {dataset.protocol.name} compares {', '.join(named)} of the split "
            f"{wanted.split}, which has {', '.join(split.modalities)}."
        )
    modalities = tuple(m for m in split.modalities if m in named)
    chosen = [split.modalities.index(modality) for modality in modalities]
    has = (split.rows[chosen] >= 0).any(axis=0)
    if has.all() and modalities == split.modalities:
        return split
    return split.subset(modalities).take(has)


def validation_set(run: Run) -> EvalSet | None:
    """The identities left out of training, both as queries and as gallery; None without any."""
    left_out = run.dataset.splits.get("validation")
    if left_out is None:
        return None
    protocol, splits = run.dataset.protocol, {"query": left_out, "gallery": left_out}
    of_validation = dataclasses.replace(run.dataset, splits=splits)
    query, gallery = (
        side(of_validation, Side(name, each.modalities))
        for name, each in (("query", protocol.query), ("gallery", protocol.gallery))
    )
    return make_set(run, query, gallery, dataclasses.replace(protocol, trials=None))


def embed(run: Run, state: State, of: EvalSet, modalities: tuple[str, ...] = ()) -> Embedded:
    """The embeddings of query and gallery, from the named modalities alone (all for ()).

    Where both are in one array of images they are embedded together, the queries first.
    """
    query, gallery = of.query, of.gallery
    if query.data is not gallery.data:
        return tuple(embed_half(run, state, half, modalities) for half in (query, gallery))
    rows, count = np.concatenate([query.rows, gallery.rows], axis=1), len(query.split)
    array, parts = embed_rows(run, whole(run, state), query, rows, modalities)
    mixed = mixed_parts(run.model, parts)
    return (
        as_embeddings(array[:count], parts, query.split, mixed),
        as_embeddings(array[count:], parts, gallery.split, mixed),
    )


def embed_half(run: Run, state: State, half: Half, modalities: tuple[str, ...] = ()) -> Embeddings:
    """The embeddings of one side alone, from the named modalities (all for ())."""
    array, parts = embed_rows(run, whole(run, state), half, half.rows, modalities)
    return as_embeddings(array, parts, half.split, mixed_parts(run.model, parts))


def whole(run: Run, state: State) -> Mapping[str, Any]:
    """The variables of a state, on every device: once for all batches, so that no activation is
    moved.
    """
    if not is_divided(run.config, run.mesh):
        return state.variables
    return replicated(state.variables, run.mesh)


def embed_rows(
    run: Run,
    variables: Mapping[str, Any],
    half: Half,
    rows: np.ndarray,
    modalities: tuple[str, ...],
) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    """(embeddings [N, E] float32 of image rows [M, N], the columns of each part)."""
    has = half.split.modalities
    chosen = [i for i, modality in enumerate(has) if not modalities or modality in modalities]
    names = tuple(has[i] for i in chosen)
    data, rows = only(half.data, chosen), rows[chosen]
    batch, total = embedding_batch(run.config, run.mesh.size), rows.shape[1]
    index = np.arange(-(-total // batch) * batch).reshape(-1, batch)
    # The last batch is filled up with the last sample.
    plan = np.ascontiguousarray(rows[:, np.minimum(index, total - 1)].swapaxes(0, 1))  # [S, M, B]
    labels = data.labels if isinstance(data, DeviceSplit) else data.labels.labels
    types = {name: columns[0].dtype for name, columns in labels.items()}
    parts, _ = embedding_parts(run.model, names, types)
    extract, found = make_extract(run.model, run.mesh, names), []
    reader = open_reader(data, plan, 1, run.mesh, workers=run.config.data.workers)
    with reader as read, Bar("embedding", total, "samples") as bar:
        for i in range(len(plan)):
            real = jnp.asarray(index[i] < total)
            found.append(extract(variables, read(1), jnp.asarray(plan[i]), real))
            if i >= 2:  # no more windows of a stream in device memory than two
                found[i - 2].block_until_ready()
                bar.update(batch)
    embedding = np.concatenate([np.asarray(part) for part in found])[:total]
    if not np.isfinite(embedding).all():
        raise UserError("The network gives embeddings that are not finite; its training diverged.")
    return embedding, parts


def only(data: DeviceSplit | OnDiskSplit, chosen: list[int]) -> DeviceSplit | OnDiskSplit:
    """The split with some of its modalities alone."""
    if isinstance(data, OnDiskSplit):
        return OnDiskSplit(only(data.labels, chosen), tuple(data.images[i] for i in chosen))
    return dataclasses.replace(
        data,
        images=tuple(data.images[i] for i in chosen) if data.images else (),
        identity=tuple(data.identity[i] for i in chosen),
        labels={name: tuple(columns[i] for i in chosen) for name, columns in data.labels.items()},
    )


def mixed_parts(model: Model, parts: Iterable[str]) -> tuple[str, ...]:
    """The parts of an embedding that in some rows hold something of other modalities."""
    parts = tuple(parts)
    whole = set(model.spec.modalities) <= set(parts)  # of fewer, each is seen by its own branch
    return tuple(part for part in parts if part in model.mixes) if whole else ()


def as_embeddings(
    embedding: np.ndarray,
    parts: Mapping[str, tuple[int, int]],
    split: Split,
    mixed: tuple[str, ...] = (),
) -> Embeddings:
    """Embeddings with the labels of their samples."""
    labels = dict(split.labels) | {"identity_name": split.identity_name}
    for statistic in ("flare_fraction", "histogram_ratio"):
        labels.pop(statistic, None)
    if not split.complete:
        labels["present"] = (split.rows >= 0).T
    return Embeddings(
        *(embedding, dict(parts), split.identity, split.name, labels),
        mixed=mixed,
        label_modalities=tuple(split.modalities),
    )
