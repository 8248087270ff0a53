"""Checks that a model gives what the rest of the package expects of it.

Only types and shapes are checked, while a program is traced; nothing is computed on a device.
"""

from collections.abc import Mapping
from typing import Any

import jax

from data_tfds import door
from data_tfds.errors import UserError
from facenet_jax.models.base import Model, Variables
from facenet_jax.types import Batch, Outputs

AXES = {"features": ("B", "D"), "logits": ("B", "C"), "present": ("B",)}
"""The axes of the arrays of `Outputs`; extras may have any."""


def check_model(made: Any, name: str) -> Model:
    """What the `build` of a model gave. Raises UserError where it is not a complete `Model`."""
    if not isinstance(made, Model):
        raise UserError(
            f"The function build of the model {name} gives {type(made).__name__}; it must give a "
            "facenet_jax.models.Model."
        )
    door.check_call(
        made.apply,
        f"The function apply of the model {name}",
        "apply(variables, batch, train=..., modalities=..., progress=..., key=...)",
        *(None, None),
        **dict.fromkeys(("train", "modalities", "progress", "key")),
    )
    return made


def apply(
    model: Model, variables: Variables, batch: Batch, **keywords: Any
) -> tuple[Outputs, Variables]:
    """`model.apply`. Raises UserError where it does not give what a `Model` must."""
    found = model.apply(variables, batch, **keywords)
    pair = isinstance(found, tuple) and len(found) == 2
    if not pair or not isinstance(found[0], Outputs) or not isinstance(found[1], Mapping):
        kinds = ", ".join(type(x).__name__ for x in found) if pair else type(found).__name__
        raise UserError(
            f"The model's apply gives ({kinds}); it must give (facenet_jax.types.Outputs, the "
            "collections that changed as a dict)."
        )
    check_outputs(found[0], batch.identity.shape[0])
    check_changed(variables, found[1])
    return found


def check_outputs(outputs: Outputs, size: int) -> None:
    """Raises UserError where the outputs are not those of a batch of `size` samples."""
    embedding = outputs.embedding
    if shape_of(embedding)[:1] != (size,) or len(shape_of(embedding)) != 2:
        raise UserError(
            f"The model's embedding is {described(embedding)}; it must be [{size}, E], a row for "
            "each sample of the batch."
        )
    width = embedding.shape[1]
    if not outputs.parts:
        raise UserError(
            f"The model's Outputs have no parts; name the columns of the embedding, as in "
            f'parts={{"all": (0, {width})}}.'
        )
    for name, (start, stop) in outputs.parts.items():
        if not 0 <= start < stop <= width:
            raise UserError(
                f"The model's part {name} is the columns {start} to {stop} of an embedding that "
                f"has {width}."
            )
    for field, axes in AXES.items():
        for name, array in getattr(outputs, field).items():
            shape = shape_of(array)
            if len(shape) != len(axes) or shape[0] != size:
                wanted = ", ".join([str(size), *axes[1:]])
                raise UserError(
                    f'The model\'s {field}["{name}"] is {described(array)}; it must be [{wanted}].'
                )


def check_changed(variables: Variables, changed: Variables) -> None:
    """Raises UserError where the changed collections have other paths, shapes or types."""
    for name, tree in changed.items():
        if name == "params" or name not in variables:
            has = ", ".join(each for each in variables if each != "params") or "none"
            raise UserError(
                f"The model's apply changes the collection {name}; it may change those that its "
                f"init makes besides params: {has}."
            )
        before, after = leaves(variables[name]), leaves(tree)
        for path in {**before, **after}:
            was, now = (described(each.get(path)) for each in (before, after))
            if was != now:
                raise UserError(
                    f"The model's apply changes {name}{path} from {was} to {now}; a collection "
                    "keeps its arrays, their shapes and types."
                )


def check_loaded(before: Variables, after: Variables) -> None:
    """Raises UserError where a model's `load` changed the paths, shapes or types of variables."""
    ours, theirs = leaves(before), leaves(after)
    for path in {**ours, **theirs}:
        was, now = (described(each.get(path)) for each in (ours, theirs))
        if was != now:
            raise UserError(
                f"The model's load gives {path} as {now} where the model has {was}; it must give "
                "all variables (params and the other collections) as it got them, filled."
            )


def leaves(tree: Any) -> dict[str, Any]:
    """{path: leaf} of a tree."""
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def shape_of(array: Any) -> tuple[int, ...]:
    """The shape of an array; () of what has none."""
    return tuple(getattr(array, "shape", ()))


def described(array: Any) -> str:
    """Type and shape of an array in words."""
    if array is None:
        return "nothing"
    if not hasattr(array, "shape"):
        return f"a {type(array).__name__}"
    return f"{array.dtype} {list(array.shape)}"
