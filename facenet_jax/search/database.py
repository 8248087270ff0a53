"""A database of embeddings of one network: samples by name, labels, the nearest to a query.

A row has a vector for each part of the embedding, null where the sample lacks that modality, and
`joint`, all parts one after another with 0 where one is missing. A row is made from just the images
that its sample has. Answers are sorted by the cosine of the parts that are compared, as
`retrieval.evaluate` ranks embeddings of `retrieval.missing.joined` (matching "shared") of which
`Embeddings.select` took these parts.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from data_tfds.paths import is_remote
from facenet_jax.api import Network
from facenet_jax.runtime.checkpoint_record import digests_of
from facenet_jax.search.engine import SMALLEST_INDEX, Table, among
from facenet_jax.search.listing import NUMBERS, Sample, labels_beyond
from facenet_jax.stored import as_json

JOINT = "joint"
FILE = "file_"
"""What the column of a modality's files begins with."""
CANDIDATES = 1_000
"""Rows that are compared by several parts at once are the nearest so many by each of them."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A row that a search found."""

    name: str
    cosine: float  # in -1..1
    labels: Mapping[str, str | int]  # identity, camera, ...; "" and -1: not known
    files: Mapping[str, str]  # {modality: file}, of those the sample has


@dataclasses.dataclass(frozen=True, eq=False)
class Database:
    """Rows of one network, see `open`."""

    network: Network
    table: Table
    parts: Mapping[str, tuple[int, int]]  # columns of `joint`
    centre: Mapping[str, np.ndarray]  # what is taken off each part first, [width]

    @classmethod
    def open(
        cls, network: Network, address: str | os.PathLike[str], centre: bool = False
    ) -> "Database":
        """The database at an address, made where there is none.

        A folder, s3:// or gs:// for a bucket, or db:// for a LanceDB server. One that is made with
        `centre` takes `Network.centre` off all embeddings, so that cosines are those of
        `Network.similarity`; it stays with the database. UserError for a database that another
        network filled, for `centre` where one without it is there, and for a missing package.
        """
        address, parts = os.fspath(address), network.parts()
        table = Table.open(address)
        if table is None:
            names = network.model.spec.modalities
            texts = ["stamp", "identity", *(FILE + each for each in names)]
            widths = {name: stop - start for name, (start, stop) in parts.items()}
            widths[JOINT] = sum(widths.values())
            mean = {k: x.tolist() for k, x in network.centre.items()} if centre else None
            known = facts(network) | {"centre": mean}
            table = Table.create(address, texts, NUMBERS, widths, known)
        refuse_other_model(network, table)
        mean = table.facts.get("centre")
        if centre and mean is None:
            raise UserError(
                f"The database {address} was made without --centre; leave it out, or index into "
                "another --database."
            )
        mean = mean or {name: [0.0] * (stop - start) for name, (start, stop) in parts.items()}
        return cls(network, table, parts, {k: np.float32(x) for k, x in mean.items()})

    @classmethod
    def existing(cls, network: Network, address: str | os.PathLike[str]) -> "Database":
        """As `open`, but UserError where there is none."""
        if Table.open(os.fspath(address)) is None:
            raise UserError(
                f"There is no database in {address}; fill one with facenet index FOLDER --workdir "
                f"{network.folder}.",
                2,
            )
        return cls.open(network, address)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> list[str]:
        """The labels that `where` may ask for, beside `name`."""
        own = {"name", "stamp", JOINT, *self.parts}
        return [x for x in self.table.columns if x not in own and not x.startswith(FILE)]

    def stamps(self, names: Sequence[str]) -> dict[str, str]:
        """{name: `Sample.stamp` when it was added} of those that are there."""
        return {x["name"]: x["stamp"] for x in self.table.rows(names, ["name", "stamp"])}

    def embed(self, samples: Sequence[Sample], batch: int = 64) -> np.ndarray:
        """The rows of `joint` [N, E] of samples, each from just the images that it has."""
        joint = np.zeros((len(samples), max(stop for _, stop in self.parts.values())), np.float32)
        known = self.network.model.spec.modalities
        subsets = [tuple(m for m in known if m in sample.files) for sample in samples]
        for subset in sorted(set(subsets)):
            rows = [i for i, each in enumerate(subsets) if each == subset]
            for start in range(0, len(rows), batch):
                some = rows[start : start + batch]
                images = {m: [samples[i].files[m] for i in some] for m in subset}
                found = self.network.embed_some(images, {}, slice(0, len(some)))
                for name, (first, stop) in self.network.parts(subset).items():
                    mean = self.centre[name]
                    joint[some, slice(*self.parts[name])] = found[:, first:stop] - mean
        return joint

    def put(self, samples: Sequence[Sample], joint: np.ndarray) -> None:
        """Add samples with their rows of `joint` [N, E], or replace those of the same names.

        All of them are there when it returns, and none of them if the process is killed before.
        UserError for embeddings that are not finite or zero, two samples of one name, and labels
        that are called like a column of ours.
        """
        names = [sample.name for sample in samples]
        if len(set(names)) < len(names):
            raise UserError("Two samples to be added have one name; give each its own.")
        bad = np.flatnonzero(~np.isfinite(joint).all(axis=1) | ~joint.any(axis=1))
        if len(bad):
            raise UserError(
                f"The embedding of {names[bad[0]]} is not finite or zero; the training diverged."
            )
        more = labels_beyond(samples)
        clash = [x for x in more if x in self.table.columns and x not in self.labels]
        if clash:
            raise UserError(
                f"A label is called {clash[0]}, like a column of the database; rename it."
            )
        self.table.add_texts([x for x in more if x not in self.table.columns])
        columns: dict[str, Any] = {"name": names, "stamp": [each.stamp() for each in samples]}
        for label in self.labels:
            unknown = -1 if label in NUMBERS else ""
            columns[label] = [each.labels.get(label, unknown) for each in samples]
        for modality in self.network.model.spec.modalities:
            columns[FILE + modality] = [str(each.files.get(modality, "")) for each in samples]
        for name, span in self.parts.items():
            part = joint[:, slice(*span)]
            has = part.any(axis=1)
            columns[name] = part if has.all() else [
                row if there else None for row, there in zip(part, has, strict=True)
            ]  # fmt: skip
        self.table.put(columns | {JOINT: joint})

    def add(self, samples: Sequence[Sample], batch: int = 64) -> None:
        """Embed samples and `put` them."""
        self.put(samples, self.embed(samples, batch))

    def delete(self, names: Sequence[str]) -> int:
        """Delete the rows of these names; how many there were."""
        return self.table.delete(names)

    def search(
        self,
        images: Mapping[str, Any],
        top: int = 10,
        by: Sequence[str] = (),
        where: str = "",
        exact: bool = False,
    ) -> list[Found]:
        """The `top` rows most like one sample, the best first.

        Args:
            images: {modality: image}, as `Network.embed` takes an image.
            top: rows, at most.
            by: the parts that are compared, by default those of the query. A row that has none of
                them is not found; of those that it lacks its vector is 0.
            where: a condition on labels in SQL, such as "camera != 2 and identity <> '7'".
            exact: compare with all rows even where an approximate index has been made.

        Raises UserError as `Network.embed`, for `by` that the query or the database has not, and
        for a condition that cannot be read.
        """
        embedding = self.network.embed(**images)
        if len(embedding) != 1:
            raise UserError(f"search() got images of {len(embedding)} samples; give those of one.")
        own = self.network.parts(tuple(images))
        query = {x: embedding[0, slice(*span)] - self.centre[x] for x, span in own.items()}
        if len(by) == 1 and len(own) == 1:  # one modality against another, of a common space
            query = dict(zip(by, query.values(), strict=True))
        lacks = [part for part in by if part not in query or part not in self.parts]
        if lacks:
            raise UserError(
                f"--by {lacks[0]} cannot be compared: the query has {', '.join(query)}, the "
                f"database {', '.join(self.parts)}.",
                2,
            )
        chosen = {
            part: query[part] for part in self.parts if part in query and part in (by or query)
        }
        return self.nearest(chosen, top, where, exact)

    def nearest(
        self, query: Mapping[str, np.ndarray], top: int = 10, where: str = "", exact: bool = False
    ) -> list[Found]:
        """As `search`, with the vector [width] of each part that is compared, less the centre.

        All parts are one vector in the database, and so is a single one. For several but not all,
        the rows are compared one by one: all of up to SMALLEST_INDEX rows, or with `exact`; of more
        rows, the nearest CANDIDATES by each of the parts.
        """
        if top < 1:
            raise UserError(f"A search for the best {top} has no answer; ask for 1 or more.", 2)
        wide = {name: len(vector) for name, vector in query.items()}
        known = {name: stop - start for name, (start, stop) in self.parts.items()}
        if any(known.get(name) != width for name, width in wide.items()):
            raise UserError(f"The query's parts have the widths {wide}, the database's {known}.")
        files = [FILE + each for each in self.network.model.spec.modalities]
        columns = ["name", *self.labels, *files]
        ordered = np.concatenate([query[name] for name in self.parts if name in query])
        if 1 < len(query) < len(self.parts):
            cosines = self._cosines(query, ordered, top, where, exact)
            rows = self.table.rows(list(cosines), columns) if cosines else []
        else:
            field = JOINT if len(query) == len(self.parts) else next(iter(query))
            rows = self.table.nearest(field, ordered, top, columns, where, exact)
            cosines = {row["name"]: 1 - row["_distance"] for row in rows}
        found = [
            Found(
                row["name"],
                cosines[row["name"]],
                {label: row[label] for label in self.labels},
                {x.removeprefix(FILE): row[x] for x in files if row[x]},
            )
            for row in rows
        ]
        return sorted(found, key=lambda each: (-each.cosine, each.name))

    def _cosines(
        self,
        query: Mapping[str, np.ndarray],
        ordered: np.ndarray,
        top: int,
        where: str,
        exact: bool,
    ) -> dict[str, float]:
        """{name: cosine} of the `top` rows by some of the parts, whose vectors are `ordered`."""
        if not exact and len(self) > SMALLEST_INDEX:
            count, names = max(CANDIDATES, 20 * top), set()
            for part, vector in query.items():
                found = self.table.nearest(part, vector, count, ["name"], where, exact)
                names |= {row["name"] for row in found}
            where = among(sorted(names)) if names else "false"
        fields = [part for part in self.parts if part in query]
        names, arrays = self.table.vectors(fields, where, len(self))
        gallery = np.concatenate([arrays[field] for field in fields], axis=1)
        length = np.linalg.norm(gallery, axis=1)
        cosine = gallery @ ordered / np.maximum(length * np.linalg.norm(ordered), 1e-12)
        order = np.lexsort((np.array(names), -cosine))
        return {names[i]: float(cosine[i]) for i in order[length[order] > 0][:top]}

    def approximate(self) -> None:
        """Make the approximate index of every vector. UserError for too few rows."""
        if len(self) < SMALLEST_INDEX:
            raise UserError(
                f"{self.table.address} has {len(self)} rows, and an approximate index is made from "
                f"{SMALLEST_INDEX} on: below, exact answers take milliseconds. Leave it out."
            )
        for field in (*self.parts, JOINT):
            self.table.build_index(field)


def facts(network: Network) -> dict[str, Any]:
    """What a database says of the network that fills it."""
    folder = network.folder
    where = str(folder if is_remote(folder) else folder.absolute())
    return {"model": digest(network), "workdir": where, "step": network.step}


def digest(network: Network) -> str:
    """Of the parameters, and of all options that an embedding depends on."""
    config = network.config
    data = {k: x for k, x in config.data.to_dict().items() if k == "test_resize" or "flare" in k}
    values = {
        "model": config.model.to_dict(),
        "data": data,
        "spec": as_json(network.model.spec),
        "parameters": digests_of(network.variables),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def refuse_other_model(network: Network, table: Table) -> None:
    """Raises UserError where the rows are another network's."""
    of = table.facts
    if of.get("model") != digest(network):
        raise UserError(
            f"The database {table.address} holds embeddings of the network in {of.get('workdir')} "
            f"at step {of.get('step')}, and {network.folder} at step {network.step} is another; "
            "search with that one, or index into another --database."
        )


def workdir_of(address: str) -> str:
    """The workdir of the network that filled a database. UserError where there is none."""
    table = Table.open(address)
    if table is None:
        raise UserError(f"There is no database in {address}; correct --database.", 2)
    return table.facts["workdir"]
