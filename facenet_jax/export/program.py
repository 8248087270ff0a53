"""The function that is exported, and the check that what was written computes it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.errors import UserError
from facenet_jax import models, step
from facenet_jax.api import Network
from facenet_jax.types import Batch

TOLERANCE = 1e-5
"""Largest difference of an embedding, relative to its largest absolute value."""

SIZES = (1, 5)
"""Samples in the batches that are compared."""


def in_float32(network: Network) -> Network:
    """The network with products in float32 and attention that runs everywhere."""
    wanted = {"dtype": "float32", "attention": "xla"}
    config = network.config.copy_and_resolve_references()
    other = {name: x for name, x in wanted.items() if config.model.get(name, x) != x}
    if not other:
        return network
    config.model.update(other)
    model = models.build(config.model, network.model.spec)
    return dataclasses.replace(network, config=config, model=model)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Images of some modalities to embeddings.

    call(*images, [flare]): images uint8 [b, H, W, 3], one argument for each modality, already
    resized; `flare` bool [b, M], where the network mixes modalities by it. The result is
    float32 [b, E], not normalised. Labels such as camera or view are unknown to it.
    """

    modalities: tuple[str, ...]
    image_size: tuple[int, int]
    parts: dict[str, tuple[int, int]]
    flare: bool  # whether the last argument is the flare label
    call: Callable[..., jax.Array]

    @classmethod
    def of(cls, network: Network, modalities: tuple[str, ...]) -> "Program":
        """The program of a network for these modalities."""
        model = network.model
        flare = bool(model.mixes) and modalities == tuple(model.spec.modalities)

        def call(*arguments: jax.Array) -> jax.Array:
            images = arguments[: len(modalities)]
            # Not jnp.stack, which jax2onnx does not know.
            pixels = jnp.concatenate([one[None] for one in images])
            shape = pixels.shape[:2]
            labels = {name: jnp.full(shape, -1, jnp.int32) for name in model.spec.labels}
            labels["flare"] = arguments[-1].T if flare else jnp.zeros(shape, bool)
            batch = Batch(None, jnp.zeros(shape[1], jnp.int32), labels)
            return step.outputs(model, network.variables, pixels, batch, modalities).embedding

        size = tuple(model.spec.image_size)
        return cls(modalities, size, network.parts(modalities), flare, call)

    @property
    def names(self) -> list[str]:
        """Of the arguments."""
        return [*self.modalities, *(["flare"] if self.flare else [])]

    def shapes(self, samples: Any) -> list[jax.ShapeDtypeStruct]:
        """Of the arguments for so many samples, a number or a symbol."""
        image = jax.ShapeDtypeStruct((samples, *self.image_size, 3), jnp.uint8)
        flare = jax.ShapeDtypeStruct((samples, len(self.modalities)), jnp.bool_)
        return [image] * len(self.modalities) + ([flare] if self.flare else [])

    def some(self, samples: int, seed: int = 0) -> list[np.ndarray]:
        """Random arguments."""
        rng = np.random.default_rng(seed)
        shape = (samples, *self.image_size, 3)
        images = [rng.integers(0, 256, shape, np.uint8) for _ in self.modalities]
        flare = rng.integers(0, 2, (samples, len(self.modalities))).astype(bool)
        return [*images, *([flare] if self.flare else [])]


def references(network: Network, program: Program) -> list[np.ndarray]:
    """What the network itself gives for `program.some` of each of the SIZES."""
    found = []
    for size in SIZES:
        arguments = program.some(size)
        pixels = np.stack(arguments[: len(program.modalities)])
        labels = {
            name: np.full(pixels.shape[:2], -1, np.int32) for name in network.model.spec.labels
        }
        labels["flare"] = arguments[-1].T if program.flare else np.zeros(pixels.shape[:2], bool)
        forward = network.forward(program.modalities)
        found.append(np.asarray(forward(network.variables, pixels, labels)))
    return found


def check(
    program: Program, opened: Callable[..., np.ndarray], expected: Sequence[np.ndarray]
) -> float:
    """The largest difference, see TOLERANCE, of what was written and read again.

    UserError where it is too large.
    """
    worst = 0.0
    for size, reference in zip(SIZES, expected, strict=True):
        found = np.asarray(opened(*program.some(size)))
        difference = np.inf
        if found.shape == reference.shape and np.isfinite(found).all():
            difference = np.abs(found - reference).max() / np.abs(reference).max()
        worst = max(worst, float(difference))
    if not worst <= TOLERANCE:
        raise UserError(
            f"The exported program for {', '.join(program.modalities)} gives embeddings that "
            f"differ from the network's by {worst:.1e} of their size, more than {TOLERANCE:g}, so "
            "it was not written."
        )
    return worst
