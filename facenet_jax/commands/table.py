"""Runs a table, row by row and seed by seed, and says what it shows, with intervals.

facenet table facenet/3 --config configs/demo.py --data data/rendered --seeds 0,1,2
    [--subsets whole|some|every] [--out runs/tables] [--report] [--config.section.option=value]

NAME is a table of configs/tables, or FILE.py with a function get_table(). Every row is trained with
every seed, one process at a time, in a folder of --out; what is finished is not done again and what
was stopped goes on. --config takes another config file than the table's for all rows that start
from that, such as the demo's for the published recipe's. Printed, and written to
OUT/NAME.json and NAME.md: mAP, its deviation over seeds, and the gain over the first row, or over
the one that a row names, with a paired 95 % interval over query identities and seeds; for all
queries, clean and flared ones.
"""

import pathlib
from collections.abc import Sequence

from data_tfds.errors import UserError
from data_tfds.paths import Place, open_path, write_bytes
from facenet_jax.lab import runs, tables
from facenet_jax.lab import summary as summaries
from facenet_jax.runtime.arguments import Parser
from facenet_jax.runtime.writers import write_json

OPTION = "--config."


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    parser = Parser("table", __doc__.splitlines()[0], __doc__.partition("\n\n")[2])
    parser.add_argument("table", metavar="NAME", help="facenet/3, ..., or FILE.py")
    parser.add_argument("--config", default="", help="FILE.py that rows start from instead")
    parser.add_argument("--data", default="", help="the data set: config.data.root")
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2), help="as in 0,1,2")
    parser.add_argument("--out", default="runs/tables", help="folder of the runs and results")
    parser.add_argument(
        "--subsets",
        default="some",
        choices=["whole", "some", "every"],
        help="of the modalities to score: all together | each alone and the first two, too | every "
        "one",
    )
    parser.add_argument("--rows", default="", help="names of rows, the first one too; default: all")
    parser.add_argument("--report", action="store_true", help="run nothing: say what is finished")
    options = tuple(word for word in arguments if word.startswith(OPTION))
    given = parser.parse_args([word for word in arguments if not word.startswith(OPTION)])
    table = chosen(tables.find(given.table), given.rows)
    out = open_path(given.out)
    start = tables.Start(given.config, given.data, options)
    todo = runs.jobs(table, out, given.seeds, given.subsets, start)
    if not given.report:
        runs.run_all(todo, lambda line: print(line, flush=True))
    report(table, todo, out, given.table)


def chosen(table: tables.Table, names: str) -> tables.Table:
    """The table with some of its rows, always the first one too."""
    if not names:
        return table
    wanted = [name.strip() for name in names.split(",")]
    known = [row.name for row in table.rows]
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(
            f"The table '{table.title}' has no row '{unknown[0]}'; it has {', '.join(known)}.", 2
        )
    wanted += [table.rows[0].name, *(row.against for row in table.rows if row.name in wanted)]
    rows = tuple(row for row in table.rows if row.name in wanted)
    return tables.Table(table.title, table.config, rows, table.data)


def report(table: tables.Table, todo: Sequence[runs.Job], out: Place, name: str) -> None:
    """Print what the finished runs show, and write it."""
    said = summaries.summary(table, todo)
    if not any(row["scores"] for row in said["rows"]):
        raise UserError(f"No run of this table in {out} is finished.")
    print(summaries.text(said))
    stem = pathlib.Path(name).stem if name.endswith(".py") else name.replace("/", "_")
    write_json(out / f"{stem}.json", said)
    write_bytes(out / f"{stem}.md", (summaries.markdown(said) + "\n").encode())


def numbers(text: str) -> tuple[int, ...]:
    """Seeds of a command line."""
    found = tuple(int(word) for word in text.split(","))
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise ValueError(text)
    return found
