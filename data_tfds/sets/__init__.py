"""The data sets, one file each, found by name; a user's own is found by its import path."""

from collections.abc import Callable

from data_tfds.builder import SampleBuilder, Size
from data_tfds.door import HINT, built_in, find
from data_tfds.errors import UserError


def names() -> list[str]:
    """Every `data.name` of the built-in data sets, with and without the protocol."""
    found = []
    for name in built_in(__name__, "BUILDER"):
        builder = find(name, __name__, "data set").BUILDER
        found += [] if builder.NEEDS_PROTOCOL else [name]
        found += [f"{name}/{config.name}" for config in builder.BUILDER_CONFIGS]
    return found


def open_door(name: str) -> type[SampleBuilder] | Callable:
    """The builder class of a `data.name`, or the user's function that loads the data set."""
    name = name.partition("/")[0]
    found = find(name, __name__, "data set (data.name)", "" if "." in name else "BUILDER")
    found = getattr(found, "BUILDER", found)
    if isinstance(found, type) and issubclass(found, SampleBuilder):
        return found
    if callable(found) and not isinstance(found, type):
        return found
    raise UserError(
        f'data.name is "{name}", which is neither a module with BUILDER, nor a SampleBuilder, nor '
        f"a function load(data); give the import path of one of them, {HINT}."
    )


def lookup(name: str) -> tuple[type[SampleBuilder], str]:
    """The builder and the name of the builder config of a `data.name`.

    Raises UserError for an unknown one, for a protocol that does not belong to its data set, and
    for a data set that a function makes.
    """
    builder, (dataset, _, protocol) = open_door(name), name.partition("/")
    if not isinstance(builder, type):
        raise UserError(
            f'data.name is "{name}", a function that makes its arrays itself; there are no files '
            "to prepare or to examine, so name it in a config of main.py only."
        )
    configs = [config.name for config in builder.BUILDER_CONFIGS]
    if not protocol and not builder.NEEDS_PROTOCOL:
        return builder, configs[0]
    if protocol in configs:
        return builder, protocol
    own = ", ".join(f"{dataset}/{config}" for config in configs)
    lacks = f'has no protocol "{protocol}"' if protocol else "needs one of its protocols"
    raise UserError(f'data.name is "{name}", but {dataset} {lacks}: it has {own}.')


def size(name: str) -> Size:
    """How large the data set of a `data.name` is, as stored; a UserError where that is not known.

    A clean protocol and the sets of a user have sizes of their own, so none is guessed.
    """
    builder, protocol = lookup(name)
    (config,) = (config for config in builder.BUILDER_CONFIGS if config.name == protocol)
    known = config.stored or config.published
    if known is None:
        sized = ", ".join(each for each in names() if _has_size(each))
        raise UserError(
            f'data.name is "{name}", whose size is not known here; measure with one of {sized}.'
        )
    return known


def _has_size(name: str) -> bool:
    builder, protocol = lookup(name)
    return any(c.stored or c.published for c in builder.BUILDER_CONFIGS if c.name == protocol)
