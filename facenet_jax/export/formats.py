"""The two formats: how a program is written, and how the bytes are run again to check them."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from data_tfds.errors import UserError
from facenet_jax.export.program import Program
from facenet_jax.models.platforms import traced_for

PLATFORMS = ("cpu", "cuda", "tpu")


class Format(NamedTuple):
    """A format."""

    packages: tuple[str, ...]  # what it needs beside JAX
    make: Callable[[Program], bytes]
    opened: Callable[[bytes], Callable[..., np.ndarray]]


def make_stablehlo(program: Program) -> bytes:
    """What jax.export gives: one program for all PLATFORMS and any number of samples."""
    from jax import export

    (samples,) = export.symbolic_shape("b")
    exported = export.export(jax.jit(program.call), platforms=PLATFORMS)(*program.shapes(samples))
    return bytes(exported.serialize())


def open_stablehlo(data: bytes) -> Callable[..., np.ndarray]:
    """The program of such bytes."""
    from jax import export

    exported = export.deserialize(bytearray(data))
    return lambda *arguments: np.asarray(exported.call(*arguments))


def make_onnx(program: Program) -> bytes:
    """An ONNX model by jax2onnx, from the program as JAX traces it.

    UserError where it knows no counterpart of something that the network does.
    """
    from jax import export
    from jax.extend.core import jaxpr_as_fun

    (samples,) = export.symbolic_shape("b")
    shapes = program.shapes(samples)
    # Before jax2onnx is imported, which puts functions of its own into JAX and Flax.
    with traced_for("onnx"):  # which knows no choice of platforms
        # A function of its own: JAX keeps what it has traced of another, with the choice in it.
        traced = jaxpr_as_fun(jax.make_jaxpr(lambda *x: program.call(*x))(*shapes))
    for name in ("jax2onnx", "onnx_ir"):  # they warn of what the check below would find
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import jax2onnx

    try:
        model = jax2onnx.to_onnx(
            lambda *arguments: traced(*arguments)[0],
            shapes,
            model_name="facenet_jax",
            input_names=program.names,
            output_names=["embedding"],
        )
    except (NotImplementedError, ValueError, TypeError) as error:
        raise UserError(
            f"jax2onnx cannot write this network as ONNX ({error}); take --format stablehlo."
        ) from error
    return model.SerializeToString()


def open_onnx(data: bytes) -> Callable[..., np.ndarray]:
    """The model of such bytes in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def call(*arguments: np.ndarray) -> np.ndarray:
        (embedding,) = session.run(None, dict(zip(names, arguments, strict=True)))
        return embedding

    return call


FORMATS = {
    "stablehlo": Format(("flatbuffers",), make_stablehlo, open_stablehlo),
    "onnx": Format(("jax2onnx", "onnxruntime"), make_onnx, open_onnx),
}
