"""Shared by all scripts: the config file that is given, and the exit code."""

import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from data_tfds.errors import UserError
from facenet_jax.runtime import cli

ROOT = pathlib.Path(__file__).resolve().parents[2]
"""The checkout, or the folder that the wheel was installed to: both have configs/."""


def with_recipe(arguments: Sequence[str]) -> list[str]:
    """A command line whose --config, where it does not exist from here, names our own recipe."""
    file = cli.given(arguments, "config")
    path = (file or "").partition(":")[0]  # behind it, an argument of the config file
    if not path or pathlib.Path(path).is_file() or not (ROOT / path).is_file():
        return list(arguments)
    names = {f"--config={file}", f"-config={file}"}  # as one word, or as two
    found = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        if word in names:
            found.append(f"--config={ROOT / file}")
        else:
            pair = before in ("--config", "-config") and word == file
            found.append(str(ROOT / file) if pair else word)
    return found


def load_config(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """What the function `get_config()` of a Python file returns, or get_config(x) for FILE.py:x.

    A path that does not exist from the current folder is taken from the checkout. Raises UserError
    for a file that is missing or has no such function; an error within the file passes.
    """
    path, _, argument = str(path).partition(":")
    get_config = function_of(path, "get_config", "config", "configs/")
    return get_config(argument) if argument else get_config()


def function_of(path: str, name: str, kind: str, home: str) -> Callable[..., Any]:
    """The function `name` of a Python file, a `kind` of file whose own ones lie in `home`."""
    file = next((p for p in (pathlib.Path(path), ROOT / path) if p.is_file()), None)
    ours = f"the {'recipes' if kind == 'config' else f'{kind}s'} are in {home}"
    if file is None:
        raise UserError(f"The {kind} file {path} does not exist; {ours}.", 2)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None:
        raise UserError(f"The {kind} file {path} is not a Python file (.py).", 2)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise UserError(f"{path} has no function {name}(), so it is not a {kind} file; {ours}.", 2)
    return getattr(module, name)


def run(main: Callable[[], int | None]) -> int:
    """The exit code of a script: what `main()` returns (0 for None), or that of its UserError.

    The sentence of a UserError goes to stderr: `sys.exit(script.run(main))` ends a script.
    """
    codes = []
    return cli.guarded(lambda: codes.append(main())) or codes[-1] or 0
