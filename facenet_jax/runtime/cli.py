"""The command line: plain log lines, one-sentence errors, exit codes."""

import contextlib
import logging as python_logging
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from data_tfds.errors import UserError
from data_tfds.paths import DISK_FULL_ERRNOS, Place, open_path
from facenet_jax.runtime.arguments import program
from facenet_jax.runtime.details import DETAILS, sentence
from facenet_jax.runtime.progress import Bar

UNEXPECTED = 70
"""The exit code of an error that is no UserError (EX_SOFTWARE)."""

QUIET = ("orbax", "tensorstore", "asyncio")
"""Packages whose warnings go to the file of details alone: what matters of them is raised."""

OWN = ("facenet_jax", "data_tfds", "scripts")
"""Folders whose information lines are for the user; of other packages warnings alone are shown."""


HELP_COLUMN = 28
"""Where the right column of --help begins."""


def guarded(main: Callable[[], None]) -> int:
    """The exit code of `main()`: 0, or a UserError's with its sentence on stderr.

    Any other error is a fault of the program, or of code that it was given: one sentence that names
    the file with the traceback, and exit code 70.
    """
    try:
        main()
    except UserError as error:
        print(f"{program()}: {error}", file=sys.stderr, flush=True)
        if error.__cause__ and DETAILS.folder:  # what Orbax and others say of it
            DETAILS.write("this ended the run", error)
        return error.exit_code
    except BrokenPipeError:  # as in: facenet train --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            return unexpected(error)
        print(
            f"{program()}: The disk is full ({error}); free space and start "
            "again, a run goes on from its last checkpoint.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        return unexpected(error)
    return 0


def unexpected(error: Exception) -> int:
    """Say in one sentence what nobody expected and where its traceback is; exit code 70."""
    file = DETAILS.write("this ended the program", error)
    place = f"the traceback is in {file}" if file else "no file could take its traceback"
    print(
        f"{program()}: An error that is not expected, in this program or in "
        f"code it was given: {sentence(error)}; {place}.",
        file=sys.stderr,
        flush=True,
    )
    return UNEXPECTED


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns the errors of absl and ml_collections for a wrong command line into one sentence."""
    try:
        yield
    except (KeyError, AttributeError) as error:  # an unknown option of the config
        # ml_collections: 'name'\nDid you mean "x" instead of "name"?, in quotes of varying depth.
        text = str(error.args[0])
        if "'get_config'" in text:
            raise UserError("The config file has no function get_config().", 2) from error
        name, near = re.search(r"\w+", text)[0], re.search(r'mean "(\w+)"', text)
        hint = f" Did you mean {near[1]}?" if near else ""
        raise UserError(
            f"The config has no option '{name}'.{hint} facenet train --help lists all options.", 2
        ) from error
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise UserError(f"A config file is no Python: {error.msg} in {where}.", 2) from error
    except flags.Error as error:
        text = str(error).removesuffix(".").replace(" ?", "?")
        if "Traceback (most recent call last)" in text:
            text = without_traceback(text)
        raise UserError(text if text.endswith("?") else f"{text}.", 2) from error


def without_traceback(text: str) -> str:
    """What went wrong in a config file, from the traceback in the error of ml_collections."""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines()]
    places = [re.match(r'File "(.+)", line (\d+)', line) for line in lines]
    *_, place = (x for x in places if x and "site-packages" not in x[1])
    said = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)] or lines
    return f"The config file fails in line {place[2]} of {place[1]}: {said[-1].rstrip('.')}"


def define_stored(
    config: ml_collections.ConfigDict,
    values: flags.FlagValues,
    arguments: Sequence[str] | None = None,
) -> None:
    """Define --config as a config that is there already; its fields as --config.section.option.

    Only fields that `arguments` names, sys.argv's by default, can be given to `parse`.
    """
    with explained():  # the command line is looked at here, and not only in `parse`
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=arguments and list(arguments)
        )


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    return not {"--help", "-help", "-h", "--helpfull"}.isdisjoint(arguments)


def help_text(
    usage: str,
    about: str,
    groups: Mapping[str, Iterable[flags.Flag]],
    options: Iterable[tuple[str, Any, str]] = (),
) -> str:
    """The help of a command line whose options are flags.

    Args:
        usage: the command.
        about: what it does, in one sentence.
        groups: the flags below each heading.
        options: (name, value, meaning) of the options of a config, those of a section together.
    """
    lines = [f"usage: {usage}", "", *textwrap.wrap(about, 100)]
    for heading, members in groups.items():
        lines += ["", f"{heading}:"]
        for flag in members:
            lines += one_option(f"--{flag.name}", flag.help, flag.default)
    section = None
    for name, value, meaning in options:
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            lines += ["", f"--config.{section}:" if section else "--config:"]
        lines += one_option(f"--config.{name}", meaning, value)
    return "\n".join(lines)


def one_option(name: str, meaning: str, value: Any) -> list[str]:
    """The lines of --help for an option and its default."""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    known = "" if value is None or value == "" else f" (default: {shown})"
    start = f"  {name}"
    if len(start) > HELP_COLUMN - 2:
        return [start, *wrapped(f"{meaning}{known}")]
    first, *others = wrapped(f"{meaning}{known}")
    return [f"{start:{HELP_COLUMN}}{first.strip()}", *others]


def wrapped(text: str) -> list[str]:
    """A text as lines in the right column of --help."""
    indent = HELP_COLUMN * " "
    lines = textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent)
    return lines or [indent]


def parse(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Read the command line into `values`; raises UserError for what no option can be."""
    with explained():
        rest = values(arguments)
    if rest[1:]:
        raise UserError(
            f"'{rest[1]}' is no option; options are written --name=value, and --help lists them.",
            2,
        )


def run_name(file: str) -> str:
    """The folder of a run of a config file, which may have an argument: "configs/mun/demo.py:x".

    The path below a folder configs, or else the name of the file, and the argument: "mun-demo-x".
    """
    path, _, argument = file.partition(":")
    parts = pathlib.Path(path).with_suffix("").parts
    depth = parts[::-1].index("configs") if "configs" in parts[:-1] else 1
    return "-".join([*parts[-depth:], *filter(None, [argument])])


def config_and_workdir(
    config: Callable[[], ml_collections.ConfigDict | None], file: str | None, folder: str | None
) -> tuple[ml_collections.ConfigDict, Place]:
    """The config and the folder of a run.

    Args:
        config: gives the config, with what the command line changes in it.
        file: the config file; None where the config is that of a workdir.
        folder: the workdir; None: runs/<`run_name` of the config file>.
    """
    if file is None and folder is None:
        start = "python main.py" if program() == "main.py" else program()
        raise UserError(
            f"Give an experiment: {start} --config configs/demo.py (or the --workdir of a run that "
            "was started before).",
            2,
        )
    path = open_path(folder) if folder else pathlib.Path("runs") / run_name(file)
    named = pathlib.Path(file.partition(":")[0]) if file is not None else None
    if named is not None and not named.is_file():
        raise UserError(f"The config file {named} does not exist; the recipes are in configs/.", 2)
    return config(), path


def given(arguments: Sequence[str], name: str) -> str | None:
    """The value of --name=value or --name value in a command line, the last of them; or None."""
    found = None
    for i, argument in enumerate(arguments):
        for dashes in (f"--{name}", f"-{name}"):
            if argument.startswith(f"{dashes}="):
                found = argument.partition("=")[2]
            elif argument == dashes and i + 1 < len(arguments):
                found = arguments[i + 1]
    return found


class OwnLines(python_logging.Filter):
    """Lets warnings through, and the information lines of this project."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        """Whether to show a record."""
        if not {*OWN}.isdisjoint(pathlib.Path(record.pathname).parts[-3:-1]):
            return True
        known = record.exc_info or not {*QUIET}.isdisjoint(pathlib.Path(record.pathname).parts)
        return record.levelno >= python_logging.WARNING and not known


def set_up_log(quiet: bool = False) -> None:
    """Log lines as "12:34:56 text" on stderr; `quiet` shows warnings alone, and no bars."""
    handler = logging.get_absl_handler()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # absl warns of lines before it; `parse` still comes
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(OwnLines())
    logging.use_absl_handler()
    DETAILS.install()
    logging.set_verbosity(logging.WARNING if quiet else logging.INFO)
    logging.set_stderrthreshold("info")
    Bar.quiet = quiet
