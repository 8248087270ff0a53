"""How the command line speaks: plain log lines, one-sentence errors, exit codes."""

import logging as python_logging
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

import ml_collections
from absl import flags, logging

from data_tfds.errors import UserError
from data_tfds.paths import FULL, Place, locate
from facenet_jax.runtime import workdir

OWN = ("facenet_jax", "data_tfds", "scripts")
"""Folders whose information lines are for the user; of other packages warnings alone are shown."""


def guarded(main: Callable[[], None]) -> int:
    """The exit code of `main()`: 0, or a UserError's with its sentence on stderr."""
    try:
        main()
    except UserError as error:
        print(f"{pathlib.Path(sys.argv[0]).name}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(
            f"{pathlib.Path(sys.argv[0]).name}: The disk is full ({error}); free space and start "
            "again, a run goes on from its last checkpoint.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


def parse(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Read the command line into `values`; raises UserError for what no option can be."""
    try:
        rest = values(arguments)
    except (KeyError, AttributeError) as error:  # an unknown option of the config
        # ml_collections: 'name'\nDid you mean "x" instead of "name"?, in quotes of varying depth.
        text = str(error.args[0])
        name, near = re.search(r"\w+", text)[0], re.search(r'mean "(\w+)"', text)
        hint = f" Did you mean {near[1]}?" if near else ""
        raise UserError(
            f"The config has no option '{name}'.{hint} All options are in configs/common.py.", 2
        ) from error
    except flags.Error as error:
        text = str(error).removesuffix(".").replace(" ?", "?")
        raise UserError(text if text.endswith("?") else f"{text}.", 2) from error
    if rest[1:]:
        raise UserError(
            f"'{rest[1]}' is no option; options are written --name=value, and main.py --help lists "
            "them.",
            2,
        )


def config_and_workdir(
    config: Callable[[], ml_collections.ConfigDict | None], file: str | None, folder: str | None
) -> tuple[ml_collections.ConfigDict, Place]:
    """The config and the folder of a run; each can do without the other."""
    if file is None and folder is None:
        raise UserError(
            "Give an experiment: python main.py --config configs/demo.py (or the --workdir of a "
            "run that was started before).",
            2,
        )
    path = locate(folder) if folder else pathlib.Path("runs") / pathlib.Path(file).stem
    if file is None:
        return workdir.read_config(path), path
    if not pathlib.Path(file).is_file():
        raise UserError(f"The config file {file} does not exist; the recipes are in configs/.", 2)
    return config(), path


class OwnLines(python_logging.Filter):
    """Lets warnings through, and the information lines of this project."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        """Whether to show a record."""
        if not {*OWN}.isdisjoint(pathlib.Path(record.pathname).parts[-3:-1]):
            return True
        # Orbax speaks of every save without a score, and logs what it raises a moment later.
        known = record.exc_info or "tracked_metric" in str(record.msg)
        return record.levelno >= python_logging.WARNING and not known


def set_up_log(quiet: bool = False) -> None:
    """Log lines as "12:34:56 text" on stderr; `quiet` shows warnings alone."""
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(OwnLines())
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING if quiet else logging.INFO)
    logging.set_stderrthreshold("info")
