"""How many FLOPs a function needs: a walk over its jaxpr, for any model and without running it.

Counted are the matrix products that some result depends on, a multiply-add as 2; nothing
elementwise, and nothing that rematerialisation computes again. These are "model FLOPs", the
numerator of MFU. The function is traced on shapes alone: no array is allocated.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters import partial_eval

from data_tfds.errors import UserError
from facenet_jax import objective
from facenet_jax.models import Model, Variables
from facenet_jax.types import Batch

MODEL = "model"
"""The scope in which `embedding` and `training` trace the model, and nothing else."""

RECOMPUTED = "rematted_computation"
"""The scope that JAX gives to what `jax.checkpoint` computes again in the backward pass."""

OPAQUE = ("dot_product_attention", "ffi_call", "pallas_call")
"""Beginnings of the names of kernels into which a jaxpr does not look."""


def count(function: Callable[..., Any], *shapes: Any, scope: str = "") -> dict[str, int]:
    """FLOPs of the matrix products that the results of `function(*shapes)` depend on, by part.

    The part is read from the scopes that a product was traced in, which a gradient keeps. Flax
    enters one for every module by its name, so they are [model, part, ...]: the second names the
    part, the first alone where there is no second, and "" stands for a product outside all scopes.

    A `scan` counts its body `length` times, a `while` once (how often it runs is not known), a
    `cond` its most expensive branch, and a `shard_map` one device's part times the devices. What
    `jax.checkpoint` computes again does not count: let the function of a gradient return the value
    as well, so that the first computation does.

    Args:
        function: any function that JAX can trace.
        shapes: its arguments, arrays or `jax.ShapeDtypeStruct` in any pytree.
        scope: count only what was traced under `jax.named_scope(scope)`, parts being below it.

    Raises UserError for a kernel that hides its products.
    """
    found: Counter[str] = Counter()
    for names, flops in products(needed(function, *shapes)[0]):
        if scope in names or not scope:
            within = names[names.index(scope) + 1 :] if scope else names
            found[within[1] if len(within) > 1 else "".join(within)] += flops
    return dict(found)


def needed(function: Callable[..., Any], *shapes: Any) -> tuple[Jaxpr, list[bool]]:
    """(the jaxpr without what no result depends on, whether each leaf of `shapes` is read)."""
    jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))


def products(
    jaxpr: Jaxpr, outer: tuple[str, ...] = (), times: int = 1
) -> Iterator[tuple[tuple[str, ...], int]]:
    """(scopes, outermost first; FLOPs) of every product of a jaxpr, those inside it included."""
    for equation in jaxpr.eqns:
        names, kind = scopes(equation, outer), equation.primitive.name
        if RECOMPUTED in names:
            continue
        if kind == "dot_general":
            yield names, times * dot(equation)
        elif kind == "conv_general_dilated":
            yield names, times * convolution(equation)
        elif kind == "cond":
            branches = [list(products(x.jaxpr, names, times)) for x in equation.params["branches"]]
            yield from max(branches, key=lambda found: sum(flops for _, flops in found))
        elif kind.startswith(OPAQUE):
            raise UserError(
                f"FLOPs cannot be counted through the kernel {kind}; count with an attention made "
                "of plain products (config.model.attention = 'xla')."
            )
        else:
            for inside in jaxprs_in_params(equation.params):
                yield from products(inside, names, times * repeats(equation))


def scopes(equation: JaxprEqn, outer: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the scopes around an equation, without methods: "part.encode" is in "part".

    An equation writes them as transpose(jvp(model))/FACENet/vmap(trunk)/patch. The transformations
    are left out, so forward and backward pass of a module share their names.
    """
    names = list(outer)
    for entry in str(equation.source_info.name_stack).split("/"):
        name, _, method = entry.split("(")[-1].rstrip(")").partition(".")
        if name and not (method and names[-1:] == [name]):
            names.append(name)
    return tuple(names)


def repeats(equation: JaxprEqn) -> int:
    """How often an equation runs what is inside it."""
    params = equation.params
    if equation.primitive.name == "scan":
        return params["length"]
    if equation.primitive.name == "shard_map":
        # "manual_axes" or "newly_manual_axes", by the version of JAX
        axes = next(value for name, value in params.items() if name.endswith("manual_axes"))
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def dot(equation: JaxprEqn) -> int:
    """FLOPs of a `dot_general`: 2 b m n k, for a product [b, m, k] x [b, k, n]."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def convolution(equation: JaxprEqn) -> int:
    """FLOPs of a `conv_general_dilated`: 2 (batch) (output channels) (input channels) (taps).

    Taps of one spatial axis with i input positions, k of the kernel and o of the output: o k as a
    rule, the smallest of (o k, i k, i o) in general. So the gradients of a convolution, which are
    convolutions with the three exchanged, count as much as it does; the zeros that JAX puts between
    the pixels to express them do not count.
    """
    numbers = equation.params["dimension_numbers"]
    left, kernel = (variable.aval.shape for variable in equation.invars)
    result = equation.outvars[0].aval.shape
    total = 2 * result[numbers.out_spec[0]] * result[numbers.out_spec[1]]
    total *= kernel[numbers.rhs_spec[1]]
    specs = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    for axes in zip(*(spec[2:] for spec in specs), strict=True):
        i, k, o = (shape[axis] for shape, axis in zip((left, kernel, result), axes, strict=True))
        total *= min(o * k, i * k, i * o)
    return total


def embedding(model: Model, batch: Batch) -> dict[str, int]:
    """FLOPs of the embedding of one sample, by the part of the network.

    Args:
        model: as built.
        batch: shapes of a batch [M, B, ...], of the modalities that the model has.

    What only training needs, such as classifiers, does not count.
    """
    variables = jax.eval_shape(model.init, key_shape())
    return per_sample(count(embed(model), variables, batch, scope=MODEL), batch)


def embedding_parameters(model: Model, batch: Batch) -> int:
    """How many parameters the embedding depends on; arguments as for `embedding`."""
    variables = jax.eval_shape(model.init, key_shape())
    paths, _ = jax.tree.flatten_with_path(variables)
    read = needed(embed(model), variables, batch)[1][: len(paths)]
    return sum(
        math.prod(leaf.shape)
        for (path, leaf), used in zip(paths, read, strict=True)
        if used and path[0].key == "params"
    )


def embed(model: Model) -> Callable[[Variables, Batch], jax.Array]:
    """The function (variables, batch) -> embeddings [B, E], under the scope `MODEL`."""

    def apply(variables, batch):
        with jax.named_scope(MODEL):
            return model.apply(variables, batch, train=False)[0].embedding

    return apply


def training(model: Model, terms: objective.Terms, batch: Batch) -> dict[str, int]:
    """FLOPs of training on one sample, forward and backward, by the part of the network.

    Counted are the loss, its gradient with respect to the parameters and the model's changed
    collections, for the whole batch and divided by its size. A product costs three: itself
    and one for the gradient of each operand. Fewer where something is not needed: images take no
    gradient, what no loss reads does not count, and a part runs forward only where no gradient
    reaches it but another part or a statistic (such as BatchNorm's) reads its result.

    The products within the losses, a few of batch x batch x D, are left out: they are not in the
    model's scope.

    Args:
        model: as built.
        terms: the losses in use, as `objective.terms` gives them.
        batch: shapes of a training batch [M, B, ...].
    """

    def gradient(params, collections, batch, progress, key):
        def loss(params):
            variables = {"params": params, **collections}
            with jax.named_scope(MODEL):
                outputs, changed = model.apply(
                    variables, batch, train=True, progress=progress, key=key
                )
            return objective.total(terms, outputs, batch, progress)[0], changed

        return jax.value_and_grad(loss, has_aux=True)(params)

    collections = dict(jax.eval_shape(model.init, key_shape()))
    params = collections.pop("params")
    progress = jax.ShapeDtypeStruct((), jnp.float32)
    found = count(gradient, params, collections, batch, progress, key_shape(), scope=MODEL)
    return per_sample(found, batch)


def per_sample(flops: dict[str, int], batch: Batch) -> dict[str, int]:
    """FLOPs of a batch divided by its size."""
    return {part: round(amount / batch.identity.shape[0]) for part, amount in flops.items()}


def key_shape() -> jax.ShapeDtypeStruct:
    """The shape of a random key."""
    return jax.eval_shape(jax.random.key, 0)
