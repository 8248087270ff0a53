"""CCNet checkpoints of the authors' PyTorch release <-> our variables, by one table.

`rows` lists every tensor under its name there, with its place in our tree and its shape. Nothing is
computed, so what is imported and exported again is equal bit by bit; only torch's counters of
batches (num_batches_tracked), which nothing reads, come out as 0.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.files import as_float32
from facenet_jax.weights.merge import flatten, nest
from facenet_jax.weights.messages import listed, shown

COUNTER = ".num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of a release checkpoint say about its model."""

    branches: int
    width: int  # channels of the stem
    depths: tuple[int, int, int, int]  # blocks of layer1 to layer4
    identities: int
    alnu: bool  # whether the maps of layer2 are normalised


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of the release."""

    theirs: str
    ours: str  # path in our variables
    branch: int | None  # row of our leaf, where it holds all branches
    shape: tuple[int, ...]  # in torch's order

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor in our layout."""
        if self.ours.endswith("out/kernel"):  # a 1 x 1 convolution there, a Dense here
            return tensor[:, :, 0, 0].T
        return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T

    def to_theirs(self, leaf: np.ndarray) -> np.ndarray:
        """Our leaf, or its row, in torch's layout."""
        leaf = leaf if self.branch is None else leaf[self.branch]
        if self.ours.endswith("out/kernel"):
            leaf = leaf[None, None]
        return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T


def rows(sizes: Sizes, modalities: Sequence[str]) -> Iterator[Row]:
    """Every tensor but the counters; branch i is the i-th modality."""
    for i, modality in enumerate(modalities):
        yield from _branch(sizes, i, f"trunk_{modality}", f"last_{modality}")


def _branch(sizes: Sizes, branch: int, trunk: str, last: str) -> Iterator[Row]:
    base, feature = f"branch_{branch}", sizes.width * 32

    def conv(theirs: str, ours: str, *shape: int) -> Row:
        return Row(f"{base}.{theirs}.weight", f"params/{ours}/kernel", None, shape)

    def norm(theirs: str, ours: str, width: int, row: int | None = None) -> Iterator[Row]:
        bias = "params" if row is None else "batch_stats"  # frozen, so no parameter
        for their, our in (
            ("weight", "params/{}/scale"),
            ("bias", bias + "/{}/bias"),
            ("running_mean", "batch_stats/{}/mean"),
            ("running_var", "batch_stats/{}/var"),
        ):
            yield Row(f"{base}.{theirs}.{their}", our.format(ours), row, (width,))

    yield conv("base.conv1", f"{trunk}/conv1", sizes.width, 3, 7, 7)
    yield from norm("base.bn1", f"{trunk}/bn1", sizes.width)
    entering = sizes.width
    for stage, depth in enumerate(sizes.depths, start=1):
        inside = sizes.width * 2 ** (stage - 1)
        for block in range(depth):
            theirs = f"base.layer{stage}.{block}"
            ours = f"{last if stage == 4 else trunk}/layer{stage}_{block}"
            shapes = ((inside, entering, 1, 1), (inside, inside, 3, 3), (4 * inside, inside, 1, 1))
            for j, shape in enumerate(shapes, start=1):
                yield conv(f"{theirs}.conv{j}", f"{ours}/conv{j}", *shape)
                yield from norm(f"{theirs}.bn{j}", f"{ours}/bn{j}", shape[0])
            if block == 0:
                shape = (4 * inside, entering, 1, 1)
                yield conv(f"{theirs}.downsample.0", f"{ours}/shortcut_conv", *shape)
                yield from norm(f"{theirs}.downsample.1", f"{ours}/shortcut_bn", shape[0])
            entering = 4 * inside
    for number in ("gamma", "beta") if sizes.alnu else ():
        theirs, ours = f"modalnorm.conv_{number}", f"{trunk}/norm/{number}"
        entering = 8 * sizes.width  # what leaves layer2
        for j, width in enumerate((entering // 4, entering // 16)):
            yield conv(f"{theirs}.conv1.{j}.0", f"{ours}/conv{j + 1}", width, entering, 3, 3)
            yield from norm(f"{theirs}.conv1.{j}.1", f"{ours}/bn{j + 1}", width)
            entering = width
        yield conv(f"{theirs}.conv_alpha.0", f"{ours}/out", 1, 2 * entering, 1, 1)
        yield Row(f"{base}.{theirs}.conv_alpha.0.bias", f"params/{ours}/out/bias", None, (1,))
    yield from norm("bottleneck", "neck", feature, branch)
    yield Row(
        f"{base}.classifier.weight",
        "params/classifier/kernel",
        branch,
        (sizes.identities, feature),
    )


def is_release(state: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of a whole CCNet of the release."""
    return any(re.match(r"(module\.)?branch_0\.base\.layer1\.", name) for name in state)


def import_release(
    state: Mapping[str, np.ndarray],
    modalities: Sequence[str],
    source: str = "the checkpoint",
) -> tuple[dict[str, Any], Sizes]:
    """({"params": ..., "batch_stats": ...} float32, sizes) of a state dict of the release.

    `modalities` names its branches in order. Raises `UserError` with both sides of every mismatch,
    and for arrays that are no finite floating numbers.
    """
    state = {name.removeprefix("module."): array for name, array in state.items()}
    if not is_release(state):
        raise UserError(f"{source} is no CCNet of the PyTorch release: it has no branch_0.base.*")
    sizes = _sizes(state, source)
    if sizes.branches != len(modalities):
        raise UserError(
            f"{source} has {sizes.branches} branches, but the data set has the modalities "
            f"{', '.join(modalities)}"
        )
    table = list(rows(sizes, modalities))
    expected = {row.theirs for row in table}
    theirs = {name for name in state if not name.endswith(COUNTER)}
    problems = [f"it lacks {name}" for name in sorted(expected - theirs)]
    problems += [f"there is no place for {shown(name)}" for name in sorted(theirs - expected)]
    problems += [
        f"{row.theirs} is {list(state[row.theirs].shape)} instead of {list(row.shape)}"
        for row in table
        if row.theirs in state and state[row.theirs].shape != row.shape
    ]
    if problems:
        raise UserError(f"{source} is not the release's CCNet: {listed(problems)}")
    used = as_float32({row.theirs: state[row.theirs] for row in table}, source)
    leaves: dict[str, Any] = {}
    for row in table:
        value = row.to_ours(used[row.theirs])
        if row.branch is None:
            leaves[row.ours] = value
        else:
            leaves.setdefault(row.ours, []).append(value)
    stacked = {k: np.stack(v) if isinstance(v, list) else v for k, v in leaves.items()}
    return nest(stacked), sizes


def export_release(
    variables: Mapping[str, Any], modalities: Sequence[str]
) -> dict[str, np.ndarray]:
    """The state dict of the release that `variables` of a CCNet of these modalities amount to.

    Raises `UserError` where the tree is that of another model, with both sides of the difference.
    """
    ours = flatten({key: variables[key] for key in ("params", "batch_stats")})
    trunk = f"params/trunk_{modalities[0]}"
    if f"{trunk}/conv1/kernel" not in ours or "params/classifier/kernel" not in ours:
        raise UserError("Only a CCNet whose branches share nothing can be exported.")
    depths = [len({p.split("/")[2] for p in ours if f"/layer{i}_" in p}) for i in (1, 2, 3, 4)]
    sizes = Sizes(
        branches=len(modalities),
        width=ours[f"{trunk}/conv1/kernel"].shape[-1],
        depths=tuple(depths),
        identities=ours["params/classifier/kernel"].shape[-1],
        alnu=f"{trunk}/norm/gamma/out/bias" in ours,
    )
    table = list(rows(sizes, modalities))
    wanted = {row.ours for row in table}
    problems = [f"it has no {path}" for path in sorted(wanted - set(ours))]
    problems += [f"the release has no {path}" for path in sorted(set(ours) - wanted)]
    state = {
        row.theirs: np.ascontiguousarray(row.to_theirs(np.asarray(ours[row.ours], np.float32)))
        for row in table
        if row.ours in ours
    }
    problems += [
        f"{row.ours} gives {list(state[row.theirs].shape)} where the release has {list(row.shape)}"
        for row in table
        if row.theirs in state and state[row.theirs].shape != row.shape
    ]
    if problems:
        raise UserError(f"Only a CCNet as the release has it can be exported: {listed(problems)}.")
    counters = [name.removesuffix(".running_var") for name in state if "running_var" in name]
    return state | {f"{name}{COUNTER}": np.zeros((), np.int64) for name in counters}


def _sizes(state: Mapping[str, np.ndarray], source: str) -> Sizes:
    found = [re.match(r"branch_(\d)\.base\.layer(\d)\.(\d{1,3})\.", name) for name in state]
    blocks = [tuple(map(int, match.groups())) for match in found if match]
    try:
        width, _, _, _ = state["branch_0.base.conv1.weight"].shape
        identities, _ = state["branch_0.classifier.weight"].shape
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{source} lacks a stem or a classifier of branch_0, or they have other ranks than the "
            "release's CCNet"
        ) from error
    return Sizes(
        branches=1 + max(branch for branch, _, _ in blocks),
        width=width,
        depths=tuple(
            1 + max((block for _, at, block in blocks if at == stage), default=0)
            for stage in (1, 2, 3, 4)
        ),
        identities=identities,
        alnu=any(".modalnorm." in name for name in state),
    )
