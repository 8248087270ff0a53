"""Embeddings and the result of every query as Parquet files, which DuckDB, pandas and others read.

query.parquet, gallery.parquet: `name`, `identity`, a column for each label, and `embedding`, a list
of E float32; the columns of its parts are in the file's metadata as JSON. A label of each modality
[N, M] is a list of M. per_query.parquet: `trial`, `query` (the row), `name`, `identity`,
`average_precision`, `inverse_negative_penalty`, `first_match` (the rank), of the valid queries.
"""

import importlib.util
import io
import json
from typing import TYPE_CHECKING

import numpy as np

from data_tfds.errors import UserError
from data_tfds.paths import Place, write_bytes
from facenet_jax.retrieval.embeddings import Embeddings
from facenet_jax.retrieval.scoring import Result

if TYPE_CHECKING:
    import pyarrow as pa

PACKAGE = "pyarrow"


def refuse_missing() -> None:
    """Raises UserError where the package is missing, with how to install it."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            f"Parquet files need {PACKAGE}, which is not installed; install it with "
            "pip install 'facenet_jax[tables]' (in a checkout: pip install -e '.[tables]')."
        )


def write(folder: Place, query: Embeddings, gallery: Embeddings, result: Result) -> list[Place]:
    """Write the three files into a folder; their paths. UserError where the package is missing."""
    refuse_missing()
    import pyarrow.parquet

    tables = {
        "query": of_side(query),
        "gallery": of_side(gallery),
        "per_query": of_queries(query, result),
    }
    paths = []
    for name, table in tables.items():
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file, compression="zstd")
        paths.append(folder / f"{name}.parquet")
        write_bytes(paths[-1], file.getvalue())
    return paths


def of_side(side: Embeddings) -> "pa.Table":
    """A row for each embedding [N]."""
    import pyarrow as pa

    columns = {"name": side.name, "identity": side.identity, **side.labels}
    columns["embedding"] = side.embedding.astype(np.float32, copy=False)
    parts = {name: list(span) for name, span in side.parts.items()}
    table = pa.table({name: _column(values) for name, values in columns.items()})
    return table.replace_schema_metadata({"parts": json.dumps(parts)})


def of_queries(query: Embeddings, result: Result) -> "pa.Table":
    """A row for each valid query of each trial."""
    import pyarrow as pa

    found = []
    for number, trial in enumerate(result.trials):
        columns = {
            "trial": np.full(len(trial.query), number, np.int32),
            "query": trial.query,
            "name": query.name[trial.query],
            "identity": query.identity[trial.query],
            "average_precision": trial.average_precision,
            "inverse_negative_penalty": trial.inverse_negative_penalty,
            "first_match": trial.first_match,
        }
        found.append(pa.table({name: _column(values) for name, values in columns.items()}))
    return pa.concat_tables(found)


def _column(values: np.ndarray) -> "pa.Array":
    """An array [N], or [N, K] as lists of K."""
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values.tolist() if values.dtype.kind == "U" else values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
