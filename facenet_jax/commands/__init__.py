"""The commands of `facenet`, in one table: facenet COMMAND [options].

A command is a function main(arguments) in a module of its own, imported when it is asked for: it
returns an exit code (None: 0) or raises UserError. Another command is one more line in the table.
"""

import difflib
import importlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from facenet_jax.runtime.arguments import program

STARTED = time.time()
"""When the process began to import this project: JAX comes later, and takes seconds."""


class Command(NamedTuple):
    """What a command does, and where it is."""

    target: str  # module:function
    about: str


COMMANDS = {
    "train": Command("facenet_jax.commands.run:train", "train a recipe, or go on where it stopped"),
    "evaluate": Command("facenet_jax.commands.run:evaluate", "score a trained network"),
    "embed": Command("facenet_jax.commands.embed:main", "embed images, or a data set"),
    "modalities": Command(
        "facenet_jax.commands.run:missing", "score a network where modalities are missing"
    ),
    "corruptions": Command(
        "facenet_jax.commands.run:corrupted", "score a network where visible images are corrupted"
    ),
    "score": Command("facenet_jax.commands.score:main", "score files of embeddings, also foreign"),
    "compare": Command(
        "facenet_jax.commands.compare:main", "say how sure one run is better than another"
    ),
    "report": Command("facenet_jax.commands.report:main", "write a page about one run or two"),
    "export": Command(
        "facenet_jax.commands.export:main", "write a network to run without this package"
    ),
    "index": Command("facenet_jax.commands.index:main", "put a folder of images into a database"),
    "search": Command("facenet_jax.commands.search:main", "find the samples most like an image"),
    "doctor": Command("facenet_jax.commands.doctor:main", "find what is wrong with a data set"),
    "prepare": Command("facenet_jax.commands.prepare:main", "prepare a data set for training"),
    "render": Command("facenet_jax.commands.render:main", "render a data set, to try things with"),
    "convert": Command("facenet_jax.commands.convert:main", "weights of the authors' release"),
    "benchmark": Command("facenet_jax.commands.benchmark:main", "time a recipe on random pixels"),
    "table": Command("facenet_jax.commands.table:main", "run a table of a paper, with intervals"),
    "compile-for": Command(
        "facenet_jax.commands.compile_for:main", "what a recipe would cost on a TPU, without one"
    ),
}
"""In the order of --help."""

NO_COMMAND = Command("facenet_jax.commands.run:main", "what --mode says")
"""For a command line that begins with an option: python main.py --config FILE [--mode MODE]."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command line without the program's name; sys.argv's by default."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # where models, losses and data sets of your own may lie
    if arguments[:1] in (["--help"], ["-h"], ["help"]):
        print(help_text())
        return 0
    if arguments[:1] == ["--version"]:
        print(importlib.metadata.version("facenet_jax"))
        return 0
    command, rest = NO_COMMAND, arguments
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in COMMANDS:
            print(f"{program()}: {unknown(arguments[0])}", file=sys.stderr)
            return 2
        command, rest = COMMANDS[arguments[0]], arguments[1:]

    from facenet_jax.runtime import script  # absl and ml_collections: not for --help

    module, _, function = command.target.partition(":")
    return script.run(lambda: getattr(importlib.import_module(module), function)(rest))


def unknown(name: str) -> str:
    """What is wrong with a name that is no command, in one sentence."""
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"'{name}' is no command.{hint} {program()} --help lists them."


def help_text() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"usage: {program()} COMMAND [options]", "", "commands:"]
    lines += [f"  {name:{width}}{command.about}" for name, command in COMMANDS.items()]
    lines += [
        "",
        f"{program()} COMMAND --help says what a command takes, with its defaults.",
        f"{program()} --version prints the version.",
        f"Without a command: {program()} --config FILE [--mode MODE] ...",
    ]
    return "\n".join(lines)
