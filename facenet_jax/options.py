"""An option: its default, what it means, and which values are legal, in one place."""

import dataclasses
import inspect
import itertools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Legal:
    """Which values an option takes: in words, and as a test."""

    words: str  # completes the sentence "it must be ..."
    accepts: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a config section."""

    default: Any
    about: str  # what it means, with its unit
    legal: Legal


Options = Mapping[str, "Option | Options"]
"""The options of a section by name; a mapping instead of an `Option` is a section inside it."""


def one_of(*values: Any) -> Legal:
    """One of these values."""
    return Legal(f"one of {', '.join(map(repr, values))}", lambda x: x in values)


def between(low: float, high: float) -> Legal:
    """A finite number from `low` to `high`, both included."""
    if high == math.inf:
        return Legal(f"{low} or more", lambda x: is_number(x) and low <= x < math.inf)
    return Legal(f"a number from {low} to {high}", lambda x: is_number(x) and low <= x <= high)


def at_least(low: float) -> Legal:
    """A finite number of `low` or more."""
    return between(low, math.inf)


def above(low: float, high: float = math.inf) -> Legal:
    """A finite number above `low`, at most `high`."""
    words = f"a number above {low}" + ("" if high == math.inf else f" and at most {high}")
    return Legal(words, lambda x: is_number(x) and low < x <= high and math.isfinite(x))


def whole(low: int, high: float = math.inf) -> Legal:
    """A whole number of `low` or more, at most `high`."""
    words = f"a whole number of {low} or more"
    words += "" if high == math.inf else f", at most {high}"
    return Legal(words, lambda x: type(x) is int and low <= x <= high)


def switch() -> Legal:
    """True or False."""
    return Legal("True or False", lambda x: type(x) is bool)


def text() -> Legal:
    """Any text."""
    return Legal("text", lambda x: isinstance(x, str))


def some_text() -> Legal:
    """Text that is not empty."""
    return Legal("text that is not empty", lambda x: isinstance(x, str) and bool(x))


def numbers(count: int, each: Legal) -> Legal:
    """`count` numbers, each of them `each`."""

    def accepts(x: Any) -> bool:
        return isinstance(x, list | tuple) and len(x) == count and all(map(each.accepts, x))

    return Legal(f"{count} numbers, each {each.words}", accepts)


def pair(first: Legal, second: Legal) -> Legal:
    """Two values, each as its own rule says."""

    def accepts(x: Any) -> bool:
        two = isinstance(x, list | tuple) and len(x) == 2
        return two and first.accepts(x[0]) and second.accepts(x[1])

    return Legal(f"({first.words}, {second.words})", accepts)


def absent_or(legal: Legal) -> Legal:
    """Nothing, (), or what `legal` says."""
    return Legal(
        f"() or {legal.words}",
        lambda x: (isinstance(x, list | tuple) and not x) or legal.accepts(x),
    )


def rising(each: Legal) -> Legal:
    """Any number of numbers, each of them `each` and larger than the one before."""

    def accepts(x: Any) -> bool:
        if not isinstance(x, list | tuple) or not all(map(each.accepts, x)):
            return False
        return all(a < b for a, b in itertools.pairwise(x))

    return Legal(f"rising numbers, each {each.words}", accepts)


def names() -> Legal:
    """Texts that are not empty, in any number."""

    def accepts(x: Any) -> bool:
        return isinstance(x, list | tuple) and all(isinstance(y, str) and y for y in x)

    return Legal("names such as ('visible', 'thermal'), or () for all", accepts)


def probabilities() -> Legal:
    """A probability for each of some things, or none at all."""
    each = between(0, 1)

    def accepts(x: Any) -> bool:
        return isinstance(x, list | tuple) and all(map(each.accepts, x))

    return Legal(f"(), or for each modality {each.words}", accepts)


def schedule() -> Legal:
    """A number, or ((progress, value), ...) with rising progress in 0..1 of the run."""

    def accepts(x: Any) -> bool:
        if is_number(x):
            return math.isfinite(x)
        if not isinstance(x, list | tuple) or not x:
            return False
        if not all(isinstance(row, list | tuple) and len(row) == 2 for row in x):
            return False
        if not all(is_number(y) and math.isfinite(y) for row in x for y in row):
            return False
        at = [row[0] for row in x]
        return at[0] >= 0 and at[-1] <= 1 and all(a < b for a, b in itertools.pairwise(at))

    return Legal("a number or ((progress, value), ...) with rising progress from 0 to 1", accepts)


def is_number(x: Any) -> bool:
    """Whether `x` is an integer or a float, not a truth value."""
    return isinstance(x, int | float) and not isinstance(x, bool)


def options_of(function: Callable) -> dict[str, Option]:
    """The options that the keyword-only parameters of `function` with a default amount to.

    Legal values come from the annotation: `Literal["a", "b"]` names them, `Annotated[float,
    at_least(0)]` tests them, otherwise any value of the annotated type is legal.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        name: Option(parameter.default, "", legal_by(hints.get(name), parameter.default))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }


def legal_by(hint: Any, default: Any) -> Legal:
    """The legal values that an annotation stands for; without one, those like the default."""
    if typing.get_origin(hint) is typing.Annotated:
        found = [extra for extra in hint.__metadata__ if isinstance(extra, Legal)]
        if found:
            return found[0]
        hint = hint.__origin__
    if typing.get_origin(hint) is Literal:
        return one_of(*typing.get_args(hint))
    if isinstance(default, bool):
        return switch()
    if isinstance(default, int):
        return whole(-(2**31))
    if isinstance(default, float):
        return finite()
    return text() if isinstance(default, str) else names()


def finite() -> Legal:
    """Any finite number."""
    return Legal("a finite number", lambda x: is_number(x) and math.isfinite(x))


def defaults(options: Options) -> dict[str, Any]:
    """{name: default}, nested as the options are."""
    return {
        name: option.default if isinstance(option, Option) else defaults(option)
        for name, option in options.items()
    }


def problems(options: Options, values: Mapping[str, Any], path: str) -> list[str]:
    """What is wrong with the values of a section, a clause each; nothing where all is right.

    `path` names the section, such as "config.data".
    """
    found = [f"{path} has no option '{name}'" for name in values if name not in options]
    for name, option in options.items():
        where = f"{path}.{name}"
        if name not in values:
            found.append(f"{where} is missing")
        elif not isinstance(option, Option):
            inner = values[name]
            if isinstance(inner, Mapping) or hasattr(inner, "items"):
                found += problems(option, dict(inner.items()), where)
            else:
                found.append(f"{where} is {shown(inner)} and must be a section of options")
        elif not option.legal.accepts(values[name]):
            found.append(f"{where} is {shown(values[name])}; it must be {option.legal.words}")
    return found


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) < 100 else f"{text[:100]}..."


def flat(options: Options, prefix: str = "") -> dict[str, Option]:
    """{"section.name": option}."""
    rows: dict[str, Option] = {}
    for name, option in options.items():
        if isinstance(option, Option):
            rows[prefix + name] = option
        else:
            rows |= flat(option, f"{prefix}{name}.")
    return rows
