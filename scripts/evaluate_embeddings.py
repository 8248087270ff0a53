"""Scores exported embeddings: the same numbers as training reports, from files alone.

python scripts/evaluate_embeddings.py --query Q.npz --gallery G.npz --protocol camera|scene|none
    [--bands visible,thermal] [--rerank k1,k2,lambda] [--json FILE]

Either file holds embedding float [N, E] (it is normalised here), parts int [M, 2] (columns start,
stop of each band), modalities str [M], identity, camera, scene int [N], flare bool [N, 2] and name
str [N]; `main.py` writes such files into WORKDIR/embeddings.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import zipfile
import zlib

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from data_tfds.errors import UserError
from facenet_jax.retrieval import metrics
from facenet_jax.retrieval.rerank import rerank

PROTOCOLS = ("camera", "scene", "none")
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What NumPy and zipfile raise for a damaged archive or one that holds objects."""


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What one file holds; see the top of this script."""

    path: str
    embedding: np.ndarray
    parts: np.ndarray
    modalities: np.ndarray
    identity: np.ndarray
    camera: np.ndarray
    scene: np.ndarray
    flare: np.ndarray
    name: np.ndarray


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query", required=True, help="npz file of the queries")
    parser.add_argument("--gallery", required=True, help="npz file of the gallery")
    parser.add_argument(
        "--protocol",
        required=True,
        help="camera, scene: gallery rows of the query's identity and camera or scene are junk; "
        "none: nothing is",
    )
    parser.add_argument("--bands", help="bands to compare by, as in visible,thermal; default: all")
    parser.add_argument("--rerank", help="k1,k2,lambda of k-reciprocal re-ranking, as in 20,6,0.3")
    parser.add_argument("--json", help="file to write the scores to")
    options = parser.parse_args(arguments)
    try:
        scores = evaluate(options)
        print(table(scores))
        if options.json:
            write(pathlib.Path(options.json), scores)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def evaluate(options: argparse.Namespace) -> dict:
    """The scores of all queries, of clean and of flared ones, and how they came about."""
    if options.protocol not in PROTOCOLS:
        raise UserError(f"--protocol {options.protocol} must be one of {', '.join(PROTOCOLS)}.")
    neighbours = parse_rerank(options.rerank) if options.rerank is not None else None
    query, gallery = read(options.query), read(options.gallery)
    bands = choose_bands(options.bands, query, gallery)
    vectors = columns(query, bands, options.bands), columns(gallery, bands, options.bands)
    labels = [query.identity, gallery.identity]
    if options.protocol != "none":
        check_protocol(options.protocol, query, gallery)
        labels += [getattr(file, options.protocol) for file in (query, gallery)]
    if neighbours is None:
        ranking = metrics.per_query(*vectors, *labels)
    else:
        ranking = metrics.per_query_of_distances(rerank(*vectors, *neighbours), *labels)
    flared = query.flare.any(axis=1)
    return {
        "protocol": options.protocol,
        "bands": bands,
        "rerank": neighbours and dict(zip(("k1", "k2", "lambda"), neighbours, strict=True)),
        **ranking.metrics(),
        "clean": subset(ranking, ~flared),
        "flared": subset(ranking, flared),
    }


def subset(ranking: metrics.PerQuery, keep: np.ndarray) -> dict | None:
    """The scores of the queries in `keep` [Q], None where none of them is valid."""
    return ranking.metrics(keep) if keep[ranking.query].any() else None


def parse_rerank(text: str) -> tuple[int, int, float]:
    """k1, k2, lambda of `--rerank`."""
    try:
        k1, k2, weight = text.split(",")
        return int(k1), int(k2), float(weight)
    except ValueError:
        raise UserError(f"--rerank {text} must be k1,k2,lambda, as in 20,6,0.3.") from None


def read(path: str) -> Embeddings:
    """A file's arrays, checked against each other; UserError names the file."""
    fields = [field.name for field in dataclasses.fields(Embeddings)][1:]
    if not pathlib.Path(path).is_file():
        raise UserError(f"There is no file {path}.")
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not an .npz archive, or only the beginning of one.")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files if key in fields}
    except UNREADABLE as error:
        raise UserError(f"{path} is not an .npz archive of plain arrays: {error}") from None
    missing = [field for field in fields if field not in arrays]
    if missing:
        raise UserError(f"{path} has no array {', '.join(missing)}; it must have all of {fields}.")
    file = Embeddings(path, **arrays)
    check(file)
    return file


def check(file: Embeddings):
    """UserError if types or shapes are not those of the schema, or an embedding is not finite."""
    count = len(file.embedding) if file.embedding.ndim else 0
    bands = len(file.modalities) if file.modalities.ndim else 0
    expected = {
        "embedding": (np.floating, (count, *file.embedding.shape[1:2])),
        "parts": (np.integer, (bands, 2)),
        "modalities": (np.str_, (bands,)),
        "identity": (np.integer, (count,)),
        "camera": (np.integer, (count,)),
        "scene": (np.integer, (count,)),
        "flare": (np.bool_, (count, 2)),
        "name": (np.str_, (count,)),
    }
    for field, (kind, shape) in expected.items():
        array = getattr(file, field)
        rank = 2 if field == "embedding" else len(shape)
        if array.ndim != rank or array.shape != shape or not np.issubdtype(array.dtype, kind):
            wanted = "[N, E]" if field == "embedding" else list(shape)
            raise UserError(
                f"The array {field} of {file.path} is {array.dtype} {list(array.shape)}, not "
                f"{kind.__name__.rstrip('_')} {wanted}."
            )
    width = file.embedding.shape[1]
    start, stop = file.parts.T
    if not bands or start.min() < 0 or stop.max() > width or (start >= stop).any():
        raise UserError(
            f"The parts {file.parts.tolist()} of {file.path} are not column ranges start, stop of "
            f"an embedding {width} wide."
        )
    broken = np.flatnonzero(~np.isfinite(file.embedding).all(axis=1))
    if len(broken):
        raise UserError(
            f"{file.path} has a NaN or an infinite value in {len(broken)} embeddings, first in row "
            f"{broken[0]} ({file.name[broken[0]]}): such rows cannot be ranked."
        )


def choose_bands(text: str | None, query: Embeddings, gallery: Embeddings) -> list[str]:
    """The bands to compare by; UserError if a file lacks one or they differ in width."""
    if text is None and query.modalities.tolist() != gallery.modalities.tolist():
        raise UserError(
            f"{query.path} has the bands {', '.join(query.modalities)} and {gallery.path} has "
            f"{', '.join(gallery.modalities)}: name those to compare by with --bands."
        )
    bands = query.modalities.tolist() if text is None else text.split(",")
    for file in (query, gallery):
        for band in bands:
            if band not in file.modalities:
                raise UserError(
                    f"{file.path} has no band {band!r}, only {', '.join(file.modalities)}."
                )
    if len(set(bands)) < len(bands):
        raise UserError(f"--bands {text} names a band twice.")
    widths = [[int(np.diff(span(file, band))[0]) for band in bands] for file in (query, gallery)]
    if widths[0] != widths[1]:
        raise UserError(
            f"The bands {', '.join(bands)} are {widths[0]} columns wide in {query.path} and "
            f"{widths[1]} in {gallery.path}: both must come from the same model."
        )
    return bands


def span(file: Embeddings, band: str) -> np.ndarray:
    """Columns (start, stop) of a band."""
    return file.parts[file.modalities.tolist().index(band)]


def columns(file: Embeddings, bands: list[str], text: str | None) -> np.ndarray:
    """The embedding's columns of the bands; all of it, as in training, where none were named."""
    if text is None:
        return file.embedding
    return np.concatenate([file.embedding[:, slice(*span(file, band))] for band in bands], axis=1)


def check_protocol(protocol: str, *files: Embeddings):
    """UserError if a file does not know the camera or scene, that is, has a negative one."""
    for file in files:
        unknown = np.flatnonzero(getattr(file, protocol) < 0)
        if len(unknown):
            fits = [
                name
                for name in PROTOCOLS
                if name == "none" or all((getattr(other, name) >= 0).all() for other in files)
            ]
            raise UserError(
                f"{file.path} has no {protocol} for {len(unknown)} rows, first for row "
                f"{unknown[0]} ({file.name[unknown[0]]}), so --protocol {protocol} does not belong "
                f"to this data; {' and '.join(fits)} would."
            )


def table(scores: dict) -> str:
    """The scores in per cent, a line for all, clean and flared queries."""
    title = f"protocol {scores['protocol']}, bands {' + '.join(scores['bands'])}"
    if scores["rerank"]:
        title += ", re-ranked with " + ", ".join(f"{k} {v}" for k, v in scores["rerank"].items())
    lines = [
        f"{title}, gallery {scores['gallery']}",
        "queries   mAP  mINP    R1    R5   R10   R20    valid  skipped",
    ]
    for name, row in (("all", scores), *((key, scores[key]) for key in ("clean", "flared"))):
        if row is None:
            lines.append(f"{name:7}   no query with a match")
            continue
        cells = [row["mAP"], row["mINP"], *row["cmc"].values()]
        skipped = row["queries"] - row["valid_queries"]
        shown = "".join(f"{100 * cell:6.1f}" for cell in cells)
        lines.append(f"{name:7}{shown}{row['valid_queries']:9}{skipped:9}")
    return "\n".join(lines)


def write(path: pathlib.Path, scores: dict):
    """The scores as JSON."""
    try:
        path.write_text(json.dumps(scores, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}.") from None


if __name__ == "__main__":
    sys.exit(main())
