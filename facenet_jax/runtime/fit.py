"""The rematerialisation with which a training step fits into a device's memory.

Found from the step itself, mostly with one compilation. Tracing shows what the loops over layers
keep for the backward pass; a step that keeps more than there is room for is not compiled at all.
The compiler then says what the step needs; where that is too much, or it refuses, the next follows.
"""

import math
from collections.abc import Callable, Iterator

import jax
from absl import logging
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from facenet_jax.runtime.memory import size

MODES = ("dots", "full")
"""What config.model.remat=auto chooses from: the second computes more again.

Not "none", which keeps more for the backward pass than it costs to compute again: on a CPU its
steps took 1.03 and 1.08 times as long as those of "dots", and on TPUs 1.02 to 1.3 times by the
compiler's estimate (docs/tpu.md). On a GPU neither was measured.
"""


def compiled(
    trace: Callable[[str], jax.stages.Traced], held: int, gradients: int, devices: int, limit: float
) -> tuple[str, jax.stages.Compiled]:
    """(the first of MODES that fits, its compiled step); the last one whether it fits or not.

    Args:
        trace: traces the step in a mode.
        held: bytes on a device beside what the step makes: state, images.
        gradients: bytes of the parameters' gradients on a device.
        devices: over which the batch is divided.
        limit: bytes of memory of one device, infinite where it is not known.

    Raises what the compiler raises in the last mode.
    """
    for mode in MODES:
        last = mode == MODES[-1]
        traced = trace(mode)
        kept = gradients + max(0, stacked(traced.jaxpr.jaxpr) - gradients) // devices
        if not last and held + kept > limit:
            skipped(mode, f"would keep {size(kept)}", held, limit)
            continue
        try:
            step = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if last or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            skipped(mode, "is refused by the compiler", held, limit)
            continue
        need = step.memory_analysis().temp_size_in_bytes
        if last or held + need <= limit:
            return mode, step
        skipped(mode, f"needs {size(need)}", held, limit)
    raise AssertionError("the last mode is always taken")


def skipped(mode: str, why: str, held: int, limit: float) -> None:
    """Log why a mode is not taken."""
    logging.info(
        "config.model.remat=%s %s beside %s, of %s of a device.", mode, why, size(held), size(limit)
    )


def stacked(jaxpr: Jaxpr) -> int:
    """Bytes of all that the loops over layers leave behind, one entry for each layer.

    In a training step that is what the backward pass needs again, and the gradients of the layers.
    """
    total = 0
    for equation in equations(jaxpr):
        if equation.primitive.name == "scan":
            (body,) = jaxprs_in_params(equation.params)
            # What is carried has the shape that the body gives it; JAX 0.11 no longer counts it.
            total += sum(
                math.prod(x.aval.shape) * x.aval.dtype.itemsize
                for x, once in zip(equation.outvars, body.outvars, strict=True)
                if len(x.aval.shape) > len(once.aval.shape)
            )
    return total


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """The equations of a jaxpr and of those inside it, but for the bodies of loops over layers."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "scan":
            for inner in jaxprs_in_params(equation.params):
                yield from equations(inner)
