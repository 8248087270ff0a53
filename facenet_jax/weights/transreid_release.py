"""A TransReID checkpoint of the authors' PyTorch release to our variables of one branch.

The release's last trunk block, the norm behind it and its ImageNet classifier take no part where
there are local features; they are left out.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.files import as_float32
from facenet_jax.weights.messages import listed, shown
from facenet_jax.weights.torch_rows import (
    Layout,
    Row,
    block,
    linear,
    neck,
    norm,
    to_ours,
    trunk,
)

TABLE = Layout(lambda x: x[:, 0], lambda x: x[:, None])
UNUSED = re.compile(r".*\.num_batches_tracked|base\.fc\.(weight|bias)")


def used_rows(depth: int, local: int, side: bool) -> Iterator[Row]:
    """Rows of a model of `depth` blocks with so many `local` features, with SIE or without."""
    yield from trunk("base", 0, depth - 1)
    if side:
        yield "base.sie_embed", "params/side/table", (0,), TABLE
    copies = {"last": ("b1.0", "b1.1"), "last_local": ("b2.0", "b2.1")}
    if not local:
        copies = {"last": (f"base.blocks.{depth - 1}", "base.norm")}
    for ours, (last, final) in copies.items():
        yield from block(last, f"params/{ours}/block", (0,))
        yield from norm(final, f"params/{ours}/norm", (0,))
    for i in range(1 + local):
        theirs, ours = (f"_{i}", f"_local_{i}") if i else ("", "_global")
        yield from neck(f"bottleneck{theirs}", f"neck{ours}", (0,))
        yield from linear(f"classifier{theirs}", f"params/classifier{ours}", (0,), bias=False)


def import_release(
    state: Mapping[str, np.ndarray], source: str = "the checkpoint"
) -> tuple[dict[str, Any], list[Row]]:
    """({"params": ..., "batch_stats": ...} float32 of one modality, the rows they came by).

    Raises UserError for a state dict that is not the release's TransReID, naming what differs.
    """
    state = {name.removeprefix("module."): array for name, array in state.items()}
    blocks = [re.match(r"base\.blocks\.(\d{1,3})\.", name) for name in state]
    depth = 1 + max((int(match[1]) for match in blocks if match), default=-1)
    if not depth or "classifier.weight" not in state:
        raise UserError(f"{source} is no TransReID of the PyTorch release: it has no base.blocks.*")
    local = sum(re.fullmatch(r"classifier_\d\.weight", name) is not None for name in state)
    rows = list(used_rows(depth, local, "base.sie_embed" in state))
    expected = {row[0] for row in rows}
    spare = (f"base.blocks.{depth - 1}.", "base.norm.") if local else ()
    theirs = {n for n in state if not UNUSED.fullmatch(n) and not n.startswith(spare)}
    problems = [f"it lacks {name}" for name in sorted(expected - theirs)]
    problems += [f"there is no place for {shown(name)}" for name in sorted(theirs - expected)]
    if problems:
        raise UserError(f"{source} is not the release's TransReID: {listed(problems)}")
    return to_ours(as_float32({name: state[name] for name in expected}, source), rows), rows
