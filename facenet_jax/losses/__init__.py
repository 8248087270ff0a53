"""Losses: pure functions of arrays, and the terms by which a config names them.

A term is a function (outputs, batch, *, parameters with defaults) -> scalar. Its keyword-only
parameters are the options of its section in `config.losses`.
"""

import inspect
from collections.abc import Callable, Mapping

from data_tfds import door
from data_tfds.errors import UserError
from facenet_jax.losses import terms
from facenet_jax.losses.terms import problems

__all__ = ["find", "problems"]


def find(term: str, own: Mapping[str, Callable], where: str = "A loss term") -> Callable:
    """The function of a loss term: one of the model's `own`, of ours, or one by its import path.

    `where` names the option in messages.
    """
    if term in own:
        return checked(own[term], term)
    if term in terms.TERMS:
        return terms.TERMS[term]
    if isinstance(term, str) and "." in term:
        return checked(door.imported(term, f"loss term ({where})"), term)
    known = ", ".join(sorted({*own, *terms.TERMS}))
    raise UserError(
        f"{where} is {term!r}; it must be one of {known}, or the import path of your own function, "
        "such as my_package.my_losses.focal."
    )


def checked(function: Callable, term: str) -> Callable:
    """`function`. Raises UserError where it does not take the arguments of a term."""
    if not callable(function):
        raise UserError(f"A term of config.losses is '{term}', which is no function.")
    signature = inspect.signature(function)
    kinds = [
        (each.kind is each.KEYWORD_ONLY, each.default is each.empty)
        for each in signature.parameters.values()
    ]
    if kinds[:2] != [(False, True)] * 2 or any(each != (True, False) for each in kinds[2:]):
        raise UserError(
            f"A term of config.losses is '{term}', which is defined with {signature}; it must be "
            "(outputs, batch, *, parameters with defaults), with the * where there are any."
        )
    return function
