"""The door for other people's research: a name of ours, or the import path of their own."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from data_tfds.errors import UserError


def find(name: str, room: str, kind: str, having: str = "") -> object:
    """The module or attribute that `name` means.

    A name without a dot is a module of the package `room` ("data_tfds.sets"); one with a dot is the
    import path of a module, or of an attribute of one. `kind` says in messages what is looked for
    ("data set", "model"). `having` names an attribute by which those modules of the room that are
    meant differ from its helpers. Raises UserError where there is nothing of that name; what the
    user's own module raises while it is imported is left as it is.
    """
    if isinstance(name, str) and "." in name:
        found = imported(name, kind)
        if having and not hasattr(found, having):
            raise UserError(f'The {kind} is "{name}", which has no "{having}"; see docs/extend.md.')
        return found
    path = f"{room}.{name}"
    found = importlib.import_module(path) if name in _modules(room) else None
    if found is None or not hasattr(found, having or "__name__"):
        raise UserError(
            f'The {kind} is "{name}" and must be one of {", ".join(built_in(room, having))}, or '
            f"the import path of your own, {HINT}."
        )
    return found


HINT = "as in my_package.my_module (whose folder must be on PYTHONPATH)"


def built_in(room: str, having: str = "") -> list[str]:
    """The names of the modules of a package, of those only that have the attribute `having`."""
    names = _modules(room)
    if having:
        names = [n for n in names if hasattr(importlib.import_module(f"{room}.{n}"), having)]
    return names


def _modules(room: str) -> list[str]:
    path = importlib.import_module(room).__path__
    return sorted(found.name for found in pkgutil.iter_modules(path))


def imported(name: str, kind: str) -> object:
    """What the import path leads to: as much of it as is a module, the rest attributes."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f'The {kind} "{name}" is no import path; write it {HINT}.')
    for end in range(len(parts), 0, -1):
        path = ".".join(parts[:end])
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
                continue  # this part of the path is no module; a shorter one may be
            raise
        for number, attribute in enumerate(parts[end:], start=end):
            if not hasattr(found, attribute):
                raise UserError(
                    f'The {kind} is "{name}", but {".".join(parts[:number])} has no attribute '
                    f'"{attribute}"; give the import path of a module or of something in it.'
                )
            found = getattr(found, attribute)
        return found
    raise UserError(
        f'The {kind} is "{name}", but there is no module "{parts[0]}" to import; give an import '
        f"path, {HINT}."
    )


def check_call(function: Callable, what: str, call: str, *arguments: Any, **named: Any) -> None:
    """UserError unless `function` takes these arguments.

    `what` names it at the beginning of the sentence, and `call` shows how it is called.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # of something in C, which does not say
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        raise UserError(
            f"{what} is called as {call}, but it is defined with {signature} ({error})."
        ) from error
