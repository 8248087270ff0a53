"""The table of vectors: the only module that knows LanceDB, which keeps it.

A change is written beside the old version and takes effect by one rename, so a process that is
killed leaves the version before or the one after. The address is a folder, a bucket (s3://, gs://)
or a LanceDB server (db://).
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from data_tfds.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

PACKAGES = ("lancedb", "pyarrow")
TABLE = "samples"
FACTS = b"facenet_jax"
"""The key of the facts of a database in the table's own metadata: made with it, never apart."""

PROBED = 0.2
"""The part of an approximate index that a query looks into."""
REFINED = 20
"""So many times `top` candidates of an approximate index are compared exactly."""
KEPT = timedelta(hours=1)
"""How long an old version stays, for whoever reads it meanwhile."""
SMALLEST_INDEX = 10_000
"""Rows from which an approximate index is made: below, exact answers take milliseconds."""


def refuse_missing() -> None:
    """Raises UserError where a package is missing, with how to install it."""
    lacks = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacks:
        raise UserError(
            f"Search needs {', '.join(lacks)}, which is not installed; install it with "
            "pip install 'facenet_jax[search]' (in a checkout: pip install -e '.[search]')."
        )


class Table:
    """Rows by name: text, whole numbers and vectors; see `create` and `open`."""

    def __init__(self, address: str, table: Any):
        self.address = address
        self._table = table

    @classmethod
    def open(cls, address: str) -> "Table | None":
        """The table at an address, None where there is none."""
        refuse_missing()
        import lancedb

        try:
            connection = lancedb.connect(address)
            if TABLE not in connection.list_tables().tables:
                return None
            return cls(address, connection.open_table(TABLE))
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(
                f"The database {address} cannot be opened ({error}); give the folder that facenet "
                "index wrote, or another --database."
            ) from error

    @classmethod
    def create(
        cls,
        address: str,
        texts: Sequence[str],
        numbers: Sequence[str],
        vectors: Mapping[str, int],
        facts: Mapping[str, Any],
    ) -> "Table":
        """An empty table: the column `name`, columns of text and of whole numbers, vectors by their
        width, and facts in JSON that stay with it.
        """
        refuse_missing()
        import lancedb
        import pyarrow as pa

        fields = [
            pa.field("name", pa.string(), nullable=False),
            *(pa.field(each, pa.string()) for each in texts),
            *(pa.field(each, pa.int64()) for each in numbers),
            *(pa.field(each, pa.list_(pa.float32(), width)) for each, width in vectors.items()),
        ]
        schema = pa.schema(fields, metadata={FACTS: json.dumps(facts).encode()})
        return cls(address, lancedb.connect(address).create_table(TABLE, schema=schema))

    @property
    def facts(self) -> dict[str, Any]:
        """What `create` was given. UserError where the table is not ours."""
        try:
            return json.loads(self._table.schema.metadata[FACTS])
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"The table in {self.address} was not made by facenet index; give another "
                "--database."
            ) from None

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        return list(self._table.schema.names)

    def __len__(self) -> int:
        return self._table.count_rows()

    def add_texts(self, names: Sequence[str]) -> None:
        """Further columns of text, empty in all rows that are there."""
        if names:
            self._table.add_columns(dict.fromkeys(names, "''"))

    def put(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add rows, or replace those of the same name: all of them or, where it fails, none.

        Vectors are arrays [N, width], or lists with None where a row has no such vector.
        """
        import pyarrow as pa

        schema = self._table.schema
        arrays = [_array(columns[field.name], field) for field in schema]
        rows = pa.Table.from_arrays(arrays, schema=schema)
        merge = self._table.merge_insert("name")
        # "null" keeps the rows without a vector as they are; what is not finite came no further.
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows, "null")

    def delete(self, names: Sequence[str]) -> int:
        """Delete the rows of these names; how many there were."""
        condition = among(names)
        count = self._table.count_rows(condition)
        if count:
            self._table.delete(condition)
        return count

    def rows(self, names: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of the rows of these names, in any order; names that are not there lack."""
        found = self._table.search().where(among(names)).select(list(columns))
        return found.limit(len(names)).to_list()

    def vectors(
        self, fields: Sequence[str], where: str, limit: int
    ) -> tuple[list[str], dict[str, np.ndarray]]:
        """(names, {field: vectors float32 [N, width], 0 where a row has none}) of some rows."""
        query = self._table.search().select(["name", *fields]).limit(limit)
        try:
            found = (query.where(where) if where else query).to_arrow()
        except (ValueError, RuntimeError) as error:
            raise self._unreadable(where, error) from error
        arrays = {}
        for field in fields:
            column = found[field].combine_chunks()
            width, null = column.type.list_size, column.is_null().to_numpy(zero_copy_only=False)
            flat = column.values.slice(column.offset * width, len(column) * width)
            arrays[field] = np.where(null[:, None], 0, np.asarray(flat).reshape(-1, width))
        return found["name"].to_pylist(), arrays

    def nearest(
        self,
        field: str,
        vector: np.ndarray,
        top: int,
        columns: Sequence[str],
        where: str,
        exact: bool,
    ) -> list[dict[str, Any]]:
        """The `top` rows of the smallest 1 - cosine, as "_distance", with these columns.

        Rows without that vector, and those that do not meet the condition `where`, are left out
        before. UserError for a condition that cannot be read.
        """
        query = self._table.search(vector, vector_column_name=field).distance_type("cosine")
        query = query.limit(top).select([*columns, "_distance"])
        index = None if exact else self.index_of(field)
        if index is None:
            query = query.bypass_vector_index()
        else:
            partitions = max(1, self._table.index_stats(index).num_indexed_rows // ROWS_A_PARTITION)
            query = query.nprobes(max(20, round(PROBED * partitions))).refine_factor(REFINED)
        if where:
            query = query.where(where, prefilter=True)
        try:
            return query.to_list()
        except (ValueError, RuntimeError) as error:
            raise self._unreadable(where, error) from error

    def _unreadable(self, where: str, error: Exception) -> UserError:
        return UserError(
            f"The database {self.address} cannot answer where {where!r} ({error}); its columns are "
            f"{', '.join(self.columns)}."
        )

    def index_of(self, field: str) -> str | None:
        """The name of the approximate index of a vector column, None where it has none."""
        found = [each.name for each in self._table.list_indices() if each.columns == [field]]
        return found[0] if found else None

    def build_index(self, field: str) -> None:
        """Make the approximate index of a vector column: partitions of codes of one bit a number.

        Rows that come later are compared exactly until `tidy` takes them in.
        """
        from lancedb.index import IvfRq

        config = IvfRq(
            distance_type="cosine",
            num_partitions=max(1, len(self) // ROWS_A_PARTITION),
            sample_rate=64,
            max_iterations=20,
        )
        self._table.create_index(field, config=config, replace=True)

    def tidy(self) -> None:
        """Join small files, take new rows into the indices, and free the space of old versions."""
        if not any(each.columns == ["name"] for each in self._table.list_indices()):
            from lancedb.index import BTree

            self._table.create_index("name", config=BTree())
        self._table.optimize(cleanup_older_than=KEPT)


ROWS_A_PARTITION = 1_000
"""Rows in a partition of an approximate index, on average."""


def among(names: Sequence[str]) -> str:
    """The condition that a row's name is one of these."""
    return f"name in ({', '.join(map(quoted, names))})"


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _array(values: Sequence[Any], field: "pa.Field") -> "pa.Array":
    """A column of the type of its field."""
    import pyarrow as pa

    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values, field.type)
