"""Embeddings of one side with their labels, and the .npz file that holds them.

The file's arrays: `embedding` float [N, E]; `parts` int [P, 2], the columns start, stop of each
part; `modalities` str [P], the names of the parts; `label_modalities` str [M], those of the columns
of labels [N, M] (absent: the parts); `identity` int [N], -1 where it is not known;
`name` str [N]; `mixed` str, the parts that in some rows hold something of other modalities; and any
further labels [N] or [N, M], such as `camera`, `scene`, `view`, `night` int [N] (-1: not known).
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np

from data_tfds.errors import UserError
from data_tfds.paths import Place, write_bytes
from facenet_jax.retrieval.files import parts_of, read_arrays

KNOWN = {
    **dict.fromkeys(("camera", "scene", "view", "night"), (np.integer, ())),
    **dict.fromkeys(("flare", "present"), (np.bool_, ("M",))),
    "identity_name": (np.str_, ()),
}
"""Labels whose type is agreed: kind, and the axes after [N]."""

OWN = ("embedding", "parts", "modalities", "label_modalities", "identity", "name", "mixed")
"""Arrays that are no labels."""


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The queries or the gallery of a score; UserError if the arrays do not fit each other."""

    embedding: np.ndarray  # float32 [N, E]
    parts: Mapping[str, tuple[int, int]]  # columns start, stop of each part, mostly a modality
    identity: np.ndarray  # int [N]
    name: np.ndarray  # str [N]
    labels: Mapping[str, np.ndarray]  # further arrays [N] or [N, M]
    origin: str = ""  # where it was read from, for errors
    mixed: tuple[str, ...] = ()  # parts that in some rows hold something of other modalities
    label_modalities: tuple[str, ...] = ()  # the M of labels [N, M]

    def __post_init__(self):
        embedding = self.embedding
        if embedding.ndim != 2 or not np.issubdtype(embedding.dtype, np.floating):
            raise self._bad("embedding", embedding, "floating [N, E]")
        self._check("identity", self.identity, np.integer, ())
        self._check("name", self.name, np.str_, ())
        for label, values in self.labels.items():
            if label in OWN:
                raise UserError(f"A label of {self._where} is called {label}, like its own array.")
            kind, axes = KNOWN.get(label, (np.generic, ("M",) * (values.ndim > 1)))
            self._check(label, values, kind, axes)
        columns = list(self.parts.values())
        if any(not 0 <= start < stop <= embedding.shape[1] for start, stop in columns):
            raise UserError(
                f"The parts {[list(part) for part in columns]} of {self._where} are not column "
                f"ranges start, stop of an embedding {embedding.shape[1]} wide."
            )

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def by_name(self) -> dict[str, np.ndarray]:
        """Identity, name and labels in one mapping, as protocols take them."""
        return {"identity": self.identity, "name": self.name, **self.labels}

    @property
    def flared(self) -> np.ndarray | None:
        """Whether any modality of a row is flared, bool [N]; None where no label says so."""
        return self.labels["flare"].any(axis=1) if "flare" in self.labels else None

    def by_part(self, label: str, other: bool = False) -> np.ndarray | None:
        """A true/false label [N, M] of modalities as one of the parts, bool [N, P].

        `other` for parts that are no modality; None where there is no such label, or its columns
        are not those of `label_modalities`.
        """
        column = self.labels.get(label)
        if column is None or column.shape[1:] != (len(self.label_modalities),):
            return None
        named = dict(zip(self.label_modalities, column.T, strict=True))
        rest = np.full(len(self), other)
        return np.stack([named.get(part, rest) for part in self.parts], axis=1)

    def select(self, parts: Sequence[str]) -> "Embeddings":
        """The columns of these parts alone, in this order.

        UserError for a part that there is not, or one that is named twice, and for none at all.
        """
        for part in parts:
            if part not in self.parts:
                known = f"only {', '.join(self.parts)}" if self.parts else "for it has no parts"
                lacks = f"{self.origin} has" if self.origin else "There is"
                raise UserError(f"{lacks} no modality {part!r}, {known}.")
        if not parts:
            raise UserError("There is no modality to compare by: name at least one.")
        if len(set(parts)) < len(parts):
            raise UserError(f"The modalities to compare by, {', '.join(parts)}, name one twice.")
        columns = [self.embedding[:, slice(*self.parts[part])] for part in parts]
        stops = np.cumsum([column.shape[1] for column in columns]).tolist()
        spans = zip([0, *stops], stops, strict=False)
        embedding = np.concatenate(columns, axis=1)
        return dataclasses.replace(
            self,
            embedding=embedding,
            parts=dict(zip(parts, spans, strict=True)),
            mixed=tuple(part for part in self.mixed if part in parts),
        )

    def write(self, path: Place) -> None:
        """Write the file, as a whole or not at all, its folder too; errors as `write_bytes`'s."""
        file = io.BytesIO()
        np.savez(
            file,
            embedding=self.embedding,
            parts=np.array(list(self.parts.values()), np.int32).reshape(-1, 2),
            modalities=np.array(list(self.parts), np.str_),
            identity=self.identity,
            **self.labels,
            **{
                name: np.array(words, np.str_)
                for name, words in (
                    ("mixed", self.mixed),
                    ("label_modalities", self.label_modalities),
                )
                if words
            },
            name=self.name,
        )
        write_bytes(path, file.getvalue())

    @classmethod
    def read(cls, path: Place | str) -> "Embeddings":
        """The file at `path`, on a disk or a bucket, its embedding as float32, see `_as_float32`.

        UserError, which names the file, where it is missing, damaged, lacks an array, or holds one
        of another type or shape or an embedding with a NaN or an infinite value.
        """
        return cls.read_all(path)[0]

    @classmethod
    def read_all(cls, *paths: Place | str) -> list["Embeddings"]:
        """The files at `paths`, such as query and gallery, as `read` reads one.

        Identities and labels that are text are numbered alike in all of them.
        """
        tables = zip(read_arrays(paths), map(str, paths), strict=True)
        return [cls._of(arrays, origin) for arrays, origin in tables]

    @classmethod
    def _of(cls, arrays: dict[str, np.ndarray], origin: str) -> "Embeddings":
        """The arrays of a file, checked."""
        embedding, identity, name = (arrays.pop(key) for key in ("embedding", "identity", "name"))
        mixed = tuple(arrays.pop("mixed", np.zeros(0, np.str_)).tolist())
        named = parts_of(arrays, origin)
        columns = tuple(arrays.pop("label_modalities", np.array(list(named), np.str_)).tolist())
        if np.issubdtype(embedding.dtype, np.floating) and embedding.ndim == 2:
            embedding = _as_float32(embedding)
        result = cls(embedding, named, identity, name, arrays, origin, mixed, columns)
        broken = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
        if len(broken):
            raise UserError(
                f"{origin} has a NaN or an infinite value in {len(broken)} embeddings, first in "
                f"row {broken[0]} ({name[broken[0]]}): such rows cannot be ranked."
            )
        return result

    @property
    def _where(self) -> str:
        return self.origin or "the embeddings"

    def _check(self, field, array, kind, axes):
        """UserError unless `array` is of the `kind` and [N] or, with `axes`, [N, M]."""
        rows = array.shape[:1] == (len(self),) and array.ndim == 1 + len(axes)
        if not rows or not np.issubdtype(array.dtype, kind):
            word = "an array" if kind is np.generic else kind.__name__.rstrip("_")
            raise self._bad(field, array, f"{word} [{', '.join([str(len(self)), *axes])}]")

    def _bad(self, field, array, wanted):
        shape = list(array.shape)
        return UserError(
            f"The array {field} of {self._where} is {array.dtype} {shape}, not {wanted}."
        )


def _as_float32(embedding):
    """`embedding` [N, E] as float32; rows beyond its range times a power of two of their own.

    Scores compare directions, which that does not change.
    """
    if embedding.dtype.itemsize <= 4:
        return embedding.astype(np.float32, copy=False)
    peak = np.abs(embedding).max(axis=1, initial=0)
    beyond = np.isfinite(peak) & (peak > 0) & ((peak < 2.0**-100) | (peak > 2.0**100))
    if beyond.any():
        embedding = embedding.copy()
        exponent = np.frexp(peak[beyond])[1]
        embedding[beyond] = np.ldexp(embedding[beyond], -exponent[:, None])
    return embedding.astype(np.float32)
