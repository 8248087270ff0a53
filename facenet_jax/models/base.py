"""What every model is to the rest of the package: pure functions, free of Flax, and facts."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from facenet_jax.types import Batch, DataSpec, Outputs

Variables = Mapping[str, Any]
"""{"params": nested dict of arrays, and further collections such as "batch_stats"}."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters with a learning rate of their own."""

    pattern: str  # a regular expression that a parameter's path "part/.../leaf" begins with
    factor: float  # their learning rate relative to config.optim.learning_rate

    def holds(self, path: str) -> bool:
        """Whether the parameter at this path belongs to the group."""
        return re.match(self.pattern, path) is not None


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as pure functions, and facts that only the model knows.

    init(key) -> variables
    apply(variables, batch, *, train, modalities, progress, key) -> (Outputs, changed collections)

    `modalities` names what is in `batch.images`, some of `spec.modalities` in their order; None is
    all. `progress` in 0..1 and `key` matter in training only. The changed collections are those
    other than "params", complete, as they are after the batch; one that is not among them stays.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., tuple[Outputs, Variables]]
    spec: DataSpec
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of values in 0..1
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)  # besides biases, others
    # Of which modalities a part of the embedding may hold something of others, if all are there.
    mixes: tuple[str, ...] = ()
    # load(variables as NumPy arrays, path) -> (variables, report for the log); None: no weights
    load: Callable[[Variables, str], tuple[Variables, Any]] | None = None
    # A sentence why it cannot run on devices of this kind ("cpu", ...), in training or not; or "".
    refuses: Callable[[str, bool], str] = lambda backend, train: ""

    __hash__ = object.__hash__  # one model is one set of compiled programs
    __eq__ = object.__eq__


def init_batch(spec: DataSpec) -> Batch:
    """A batch of one black sample of such data, to make parameters with."""
    count = len(spec.modalities)
    labels = {name: jnp.zeros((count, 1), jnp.int32) for name in spec.labels}
    labels["flare"] = jnp.zeros((count, 1), bool)
    images = jnp.zeros((count, 1, *spec.image_size, 3), jnp.float32)
    return Batch(images, jnp.zeros(1, jnp.int32), labels)
