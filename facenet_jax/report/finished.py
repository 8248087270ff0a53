"""A run that is over, with all that its page tells of: read once, ranked once."""

import dataclasses
import functools
import json
from typing import Any

import ml_collections
import numpy as np

from data_tfds.errors import UserError
from data_tfds.paths import Place
from data_tfds.samples import Protocol, Split
from facenet_jax import api, retrieval, stored
from facenet_jax.embed import side
from facenet_jax.inputs import dataset as datasets
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.retrieval import Embeddings, breakdown, completion, protocols, verification
from facenet_jax.retrieval.scoring import completed, configured
from facenet_jax.runtime import form
from facenet_jax.runtime.workdir import read_json


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """A workdir with embeddings. Where data or checkpoint are gone, a sentence says so instead."""

    folder: Place
    config: ml_collections.ConfigDict
    result: dict[str, Any]
    environment: dict[str, Any]
    query: Embeddings
    gallery: Embeddings
    step: int  # of the checkpoint that the embeddings are of
    protocol: Protocol
    dataset: Dataset | str

    @property
    def name(self) -> str:
        """The last part of the folder."""
        return str(self.folder).rstrip("/").rpartition("/")[2]

    @functools.cached_property
    def ranking(self) -> retrieval.Result:
        """The ranking of all queries, as the config wants it."""
        return configured(self.query, self.gallery, self.protocol, self.config.evaluate)

    @functools.cached_property
    def seen(self) -> tuple[Embeddings, Embeddings]:
        """What the network saw in both sides, centred if the config says so."""
        make = retrieval.scoring.centred if self.config.evaluate.centre else lambda q, g: (q, g)
        return make(*retrieval.scoring.aligned(self.query, self.gallery))

    @functools.cached_property
    def sides(self) -> tuple[Embeddings, Embeddings]:
        """What is compared: `seen`, its blinded parts completed if the config says so.

        Where a protocol draws galleries, completed from the whole one.
        """
        query, gallery = self.seen
        how = completed(query, gallery, self.config.evaluate)
        if how is None:
            return query, gallery
        both = completion.complete(query.embedding, gallery.embedding, query.parts, how)
        return tuple(
            dataclasses.replace(side, embedding=embedding)
            for side, embedding in zip((query, gallery), both, strict=True)
        )

    @functools.cached_property
    def curve(self) -> verification.Curve:
        """The rates of all pairs."""
        return verification.roc(*self.sides, self.protocol)

    @functools.cached_property
    def details(self) -> dict[str, Any]:
        """Intervals, rates of pairs, scores by label; of these embeddings."""
        return breakdown.details(self.query, self.gallery, self.protocol, self.ranking)

    @functools.cached_property
    def splits(self) -> tuple[Split, Split] | str:
        """The samples of query and gallery with their images, or why there are none."""
        if isinstance(self.dataset, str):
            return self.dataset
        found = tuple(
            side(self.dataset, each) for each in (self.protocol.query, self.protocol.gallery)
        )
        for split, embedded in zip(found, (self.query, self.gallery), strict=True):
            if not np.array_equal(split.name, embedded.name):
                return "The data set has other samples now than the embeddings are of."
        return found

    @functools.cached_property
    def network(self) -> api.Network | str:
        """The network that made the embeddings, or why there is none."""
        try:
            for which in ("last", "best"):
                found = api.load(self.folder, which)
                if found.step == self.step:
                    return found
        except UserError as error:
            return str(error)
        return f"No checkpoint of step {self.step}, whose embeddings these are, is left."

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that was cut off is left out."""
        rows = []
        path = self.folder / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def optional(self, name: str, pattern: Any) -> dict[str, Any] | None:
        """A JSON file of the workdir that has the form of `pattern`, None where it has none."""
        path = self.folder / name
        return read_json(path, self.folder, pattern) if path.exists() else None


def open_finished(folder: Place) -> Finished:
    """The run of a workdir. UserError where it has no result or no embeddings."""
    result = read_json(folder / "result.json", folder, form.RESULT)
    config, embeddings = stored.read_config(folder), folder / "embeddings"
    if not (embeddings / "checkpoint.json").exists():
        raise UserError(
            f"{folder} has no embeddings, which a report is made of; write them with facenet embed "
            f"--workdir {folder}."
        )
    query, gallery = Embeddings.read_all(embeddings / "query.npz", embeddings / "gallery.npz")
    try:
        data = datasets.load(config.data, False)
        protocol = data.protocol
    except UserError as error:
        data, protocol = f"The data set cannot be opened here. {error}", None
    if protocol is None:
        protocol = protocols.by_name(result["protocol"])
    path = folder / "environment.json"
    environment = read_json(path, folder, form.ENVIRONMENT) if path.exists() else {}
    return Finished(
        folder=folder,
        config=config,
        result=result,
        environment=environment,
        query=query,
        gallery=gallery,
        step=read_json(embeddings / "checkpoint.json", folder, form.OF_STEP)["step"],
        protocol=protocol,
        dataset=data,
    )
