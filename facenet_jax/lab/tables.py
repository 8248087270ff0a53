"""A table: which runs it has. A table file has a function get_table() that returns a `Table`.

Tables of papers are in configs/tables; `facenet_3` is also called facenet/3.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags

from data_tfds.errors import UserError
from facenet_jax.config import as_config, check, loosen
from facenet_jax.runtime import cli, script

HOME = "configs/tables"


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: a config, changed, trained and scored over seeds."""

    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {option: value}
    argument: str = ""  # of the table's config file, as in FILE.py:ARGUMENT
    config: str = ""  # FILE.py[:ARGUMENT], where the row does not start from the table's
    scored: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options that change after training, such as model.neck_feature. Rows that differ in nothing
    else share their runs."""
    against: str = ""  # the row it is compared with; "": the table's first
    published: tuple[float, ...] = ()  # mAP, R-1, R-5, R-10 in per cent, of the paper, on its data


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a table. Rows are compared with the first, or with what they say."""

    title: str
    config: str  # FILE.py that the rows start from
    rows: tuple[Row, ...]
    data: str = ""  # the data that the published values are of

    def __post_init__(self):
        names = [row.name for row in self.rows]
        if not names or len(set(names)) < len(names):
            raise UserError(f"The table '{self.title}' needs rows, each with a name of its own.", 2)
        for row in self.rows:
            if "," in row.name:
                raise UserError(f"The name of the row '{row.name}' must not have a comma.", 2)
            if row.against and row.against not in names:
                raise UserError(f"The row '{row.name}' is against '{row.against}', no row here.", 2)


def find(name: str) -> Table:
    """The table of a file, or of a name such as facenet/3. UserError where there is none."""
    path = name
    if not name.endswith(".py"):
        path = f"{HOME}/{name.replace('/', '_')}.py"
        if not (script.ROOT / path).is_file() and not pathlib.Path(path).is_file():
            known = ", ".join(names())
            raise UserError(f"There is no table {name}; the tables are {known}, or FILE.py.", 2)
    table = script.function_of(path, "get_table", "table", f"{HOME}/")()
    if not isinstance(table, Table):
        raise UserError(f"get_table() of {path} must return a Table of facenet_jax.lab.", 2)
    return table


def names() -> list[str]:
    """The names of our tables."""
    return sorted(file.stem.replace("_", "/", 1) for file in (script.ROOT / HOME).glob("*.py"))


@dataclasses.dataclass(frozen=True)
class Start:
    """What the command line says of all rows."""

    config: str = ""  # another config file than the table's, for rows that start from that
    data: str = ""  # config.data.root
    options: tuple[str, ...] = ()  # --config.section.option=value, as they stand in sys.argv


def config_of(table: Table, row: Row, seed: int, start: Start) -> ml_collections.ConfigDict:
    """The config that a row trains with.

    Raises UserError for options that the config does not have, or values that are not legal.
    """
    base = (start.config or table.config) + (f":{row.argument}" if row.argument else "")
    file = row.config or base
    config = as_config(script.load_config(file).to_dict())
    loosen(config)
    if start.options:
        values = flags.FlagValues()
        words = ["table", *start.options]
        cli.define_stored(config, values, words)
        cli.parse(values, words)
        config = values.config
    changed(config, row.changes, row.name)
    config.seed = seed
    config.data.root = start.data or config.data.root
    check(config)
    return config.copy_and_resolve_references()


def changed(config: ml_collections.ConfigDict, changes: Mapping[str, Any], name: str) -> None:
    """Set options of a config in place. UserError where it does not have one."""
    try:
        config.update_from_flattened_dict(dict(changes))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        said = str(error.args[0]).splitlines()[0]
        raise UserError(f"The row '{name}' does not fit its config: {said}.", 2) from error
