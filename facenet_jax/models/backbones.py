"""What a backbone is, and one branch of it for each modality.

A backbone turns images into tokens and tokens into a feature:

    tokens(images [B, H, W, 3], train) -> [B, p + n, D]     token 0 represents the image
    head(tokens [B, p + n, D], train)  -> [B, D']

The n last tokens are those of a grid over the image; p is 1 unless there are registers.

A module of a backbone has `backbone(config, image_size) -> Backbone`. It may have `OPTIONS`, the
options it adds to `config.model`, and `problems(config) -> list of clauses`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_tfds import door


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The two halves of a backbone as Flax modules not yet named, and what is known about them.

    `tokens` and `head` are `functools.partial(ModuleClass, fields...)`. A stacked backbone has the
    parameters of all modalities in one array for each leaf, [M, ...], and one program for them:
    efficient where every operation is a matrix product, as in a ViT. An unstacked one
    has a module of its own for each modality, as convolutions need.
    """

    tokens: functools.partial
    head: functools.partial
    token_width: int  # D
    width: int  # D'
    grid: tuple[int, int]  # rows, columns of the n tokens
    stacked: bool
    # In evaluation the tokens of a stacked backbone come one modality after another, in a "loop" or
    # "unrolled"; "": together.
    in_turn: str = ""
    prefix: int = 1  # p, tokens in front of those of the grid
    dtype: jnp.dtype = jnp.float32  # of matrix products, also of those that a model adds
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of values in 0..1
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    # read(path) -> ({"params": {"tokens": tree, "head": tree}, "batch_stats": ... if it has some},
    #                names in the file that are not needed, a note)
    read: Callable[[str], tuple[Mapping[str, Any], Sequence[str], str]] | None = None
    # A sentence why it cannot run on devices of this kind ("cpu", ...), in training or not; or "".
    refuses: Callable[[str, bool], str] = lambda backend, train: ""


def with_fields(part: functools.partial, **fields: Any) -> functools.partial:
    """A half of a backbone with some of its fields changed, such as class_only of a ViT's head."""
    return functools.partial(part.func, *part.args, **{**part.keywords, **fields})


def find(name: str) -> Any:
    """The module of a backbone: "vit", or the import path of your own."""
    return door.find(name, "facenet_jax.models", "backbone (config.model.backbone)", "backbone")


def branches(
    part: functools.partial,
    name: str,
    modalities: Sequence[str],
    *,
    shared: bool,
    stacked: bool,
    in_turn: str = "",
) -> Callable[[jax.Array, bool], jax.Array]:
    """`part` applied to each modality: (x [M, B, ...], train) -> [M, B, ...].

    To be called inside a compact method, whose parameters it makes. Stacked: `name` with leaves
    [M, ...]. Unstacked: `name`_<modality> for each. Shared: `name` once; unstacked, it sees the
    images of all modalities as one batch, and so do its statistics. `in_turn` as in `stack`.
    """
    if stacked:
        return stack(part, (0, None), copies=not shared, in_turn=in_turn)(name=name)

    def apply(x: jax.Array, train: bool) -> jax.Array:
        if shared:
            y = part(name=name)(x.reshape(-1, *x.shape[2:]), train)
            return y.reshape(*x.shape[:2], *y.shape[1:])
        each = zip(modalities, x, strict=True)
        return jnp.stack([part(name=f"{name}_{modality}")(one, train) for modality, one in each])

    return apply


def stack(
    part: functools.partial, in_axes: tuple, copies: bool = True, in_turn: str = ""
) -> Callable[..., Callable]:
    """`part` mapped over axis 0 of those arguments whose entry in `in_axes` is 0.

    With `copies` there is one set of parameters, statistics and whatever else the part keeps for
    each entry, stacked on axis 0 of every leaf; without, one set serves all. `in_turn` computes one
    entry after another instead of all in each operation, in a "loop" or "unrolled", to the same
    result; parameters are then initialised otherwise.
    """
    axes, random = {True: 0 if copies else None}, {"params": copies, "dropout": True}
    if not in_turn:
        module = nn.vmap(part.func, variable_axes=axes, split_rngs=random, in_axes=in_axes)
        return functools.partial(module, *part.args, **part.keywords)

    class InTurn(part.func):
        """The part with a method in the form `nn.scan` wants: carry in, (carry, result) out."""

        def entry(self, carry, *arguments):
            return carry, self(*arguments)

    module = nn.scan(
        InTurn,
        variable_axes=axes if copies else {},
        variable_broadcast=not copies,
        split_rngs=random,
        in_axes=tuple(nn.broadcast if axis is None else axis for axis in in_axes),
        unroll={"loop": 1, "unrolled": True}[in_turn],
        methods=["entry"],
    )

    def made(name: str) -> Callable:
        mapped = module(*part.args, **part.keywords, name=name)
        return lambda *arguments: mapped.entry((), *arguments)[1]

    return made
