"""Functions that each kind of device computes in a form of its own."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

_TRACED_FOR = contextvars.ContextVar("traced_for", default="")


def by_platform(*arguments: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """cpu(*arguments) in a program for a CPU, default(*arguments) in any other.

    A program is told what it is for when it is lowered, so that one for a TPU can be made here;
    inside `traced_for` when it is traced.
    """
    if platform := _TRACED_FOR.get():
        return (cpu if platform == "cpu" else default)(*arguments)
    return jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """What is traced inside is for this platform alone and holds no choice: "cpu", "onnx", ..."""
    token = _TRACED_FOR.set(platform)
    try:
        yield
    finally:
        _TRACED_FOR.reset(token)
