"""Command lines read by argparse: one sentence for what is wrong, and help with the defaults."""

import argparse
import pathlib
import sys
from typing import NoReturn


def program() -> str:
    """The name that the program was started by: facenet, main.py or a script's."""
    return pathlib.Path(sys.argv[0]).name


class Parser(argparse.ArgumentParser):
    """Options of a command.

    Args:
        command: its name in `facenet`, such as "doctor".
        about: what it does, in one sentence.
        end: what to print below the options of --help.
    """

    def __init__(self, command: str, about: str, end: str = ""):
        name = program()
        super().__init__(
            prog=f"{name} {command}" if name in ("facenet", "main.py") else name,
            description=about,
            epilog=end or None,
            formatter_class=Formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Ends with the exit code 2 and one sentence."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists the options.\n")


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Adds the default to the help of an option, where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said = "default" in (action.help or "") or action.required
        if said or action.default in (None, "", False, argparse.SUPPRESS):
            return action.help or ""
        if action.dest == "image_size":
            return f"{action.help} (default: {','.join(map(str, action.default))})"
        return super()._get_help_string(action)


def add_data_set(parser: Parser) -> None:
    """Add the options that name a data set: --dataset, --root and --incomplete."""
    from data_tfds.accept import INCOMPLETE_RULES  # loads TFDS, which the other commands do without
    from data_tfds.sets import names

    known = ", ".join(dict.fromkeys(name.partition("/")[0] for name in names()))
    words = f"{known}, or the import path of your own; also NAME/PROTOCOL"
    parser.add_argument("--dataset", required=True, help=words)
    parser.add_argument("--root", required=True, help="folder as extracted, or the .zip archive")
    parser.add_argument(
        "--incomplete", default="error", choices=INCOMPLETE_RULES, help="samples that lack an image"
    )


def image_size(text: str) -> tuple[int, int]:
    """H,W in pixels: how a size is written on every command line, config.data.image_size's too."""
    try:
        height, width = map(int, text.strip("()").split(","))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be H,W in pixels, as in 256,128")
    return height, width


def two_shares(text: str) -> tuple[float, float]:
    """LOW,HIGH in 0..1."""
    try:
        low, high = map(float, text.strip("()").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} must be LOW,HIGH, as in 0.2,0.3") from None
    return low, high
