"""What the benchmark scripts share: a training to time, timing, FLOPs, peak rate, memory."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from facenet_jax import models, objective
from facenet_jax.bench import flops
from facenet_jax.bench.synthetic import batch_shapes
from facenet_jax.inputs.device import DeviceSplit
from facenet_jax.inputs.stream import OnDiskSplit, open_reader
from facenet_jax.run import Run, assemble, compile_step, trace_step, untrained_state
from facenet_jax.runtime import workdir
from facenet_jax.step import State, embedding_batch, make_extract
from facenet_jax.types import DataSpec


class Training:
    """A run with its compiled steps and its state; `steps(k)` runs k steps."""

    def __init__(self, run: Run, data: DeviceSplit | OnDiskSplit):
        self.run, self.data, self.done = run, data, 0
        self.state: State = untrained_state(run)()
        self.program = compile_step(run, data)

    def reader(self) -> contextlib.AbstractContextManager[Callable[[int], DeviceSplit]]:
        """A context with read(count), for steps from here on."""
        config, plan = self.run.config, self.run.plan
        return open_reader(
            self.data,
            plan.rows,
            config.train.steps_per_dispatch,
            self.run.mesh,
            workers=config.data.workers,
            start=self.done,
        )

    def steps(self, count: int, read: Callable[[int], DeviceSplit]) -> jax.Array:
        """Run `count` more steps; the loss of the last, still being computed."""
        self.state, scalars = self.program(self.state, read(count), count)
        self.done += count
        return scalars["loss"][count - 1]


def timed(call: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of `times` calls; a call ends when its result is computed."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds


def rates(amount: float, seconds: Sequence[float]) -> dict[str, Any]:
    """Calls of `amount` things each: median and quartiles of things per second, seconds of each."""
    low, median, high = np.quantile(amount / np.array(seconds), (0.25, 0.5, 0.75))
    return {
        "rate": float(median),
        "rate_quartiles": [float(low), float(high)],
        "chunk_seconds": list(seconds),
    }


def peak(dtype: str, mesh: Mesh, side: int = 16384) -> tuple[float, str]:
    """(peak FLOP/s of all devices together, how it was measured): best of ten large products.

    Measured on one device and multiplied by their number; in bfloat16 on an accelerator, of two
    matrices [side, side], and on a CPU in `dtype` with side 2048.
    """
    device = mesh.local_devices[0]
    side, kind = (2048, dtype) if device.platform == "cpu" else (side, "bfloat16")
    x = jax.device_put(jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(kind)), device)
    multiply = jax.jit(jnp.matmul)
    best = min(timed(lambda: multiply(x, x), 11)[1:])  # the first call compiles
    how = f"best of 10 products [{side}, {side}] {kind}"
    return 2 * side**3 / best * mesh.size, how if mesh.size == 1 else f"{how}, x {mesh.size}"


def dtype(config: ml_collections.ConfigDict) -> str:
    """The type of the model's matrix products: its option `dtype`, or float32 without one."""
    return config.model.dtype if "dtype" in config.model else "float32"


def mfu(
    run: Run, by_part: Mapping[str, int], seconds: float, known: tuple[float, str] | None = None
) -> dict[str, Any]:
    """Model FLOPs utilisation: FLOPs of a sample over what the peak does in its `seconds`.

    `known` is a peak that was measured before, see `peak`.
    """
    total, (most, how) = sum(by_part.values()), known or peak(dtype(run.config), run.mesh)
    return {
        "flops_per_sample": total,
        "flops_by_part": dict(by_part),
        "peak_flops_per_second": most,
        "peak_how": how,
        "mfu": total / seconds / most,
    }


def countable(config: ml_collections.ConfigDict, **options: Any) -> ml_collections.ConfigDict:
    """The config with an attention that FLOPs can be counted through, not a fused kernel.

    `options` of the model are set as well, each where the model has it.
    """
    config = config.copy_and_resolve_references()
    for name, value in {"attention": "xla", **options}.items():
        if name in config.model:
            config.model[name] = value
    return config


def model_flops(
    config: ml_collections.ConfigDict, spec: DataSpec, *, train: bool
) -> dict[str, int]:
    """FLOPs of one sample by part of the network, in training or for its embedding.

    As `flops` counts them, for the batch sizes of `config` and data like `spec`.
    """
    model = models.build(countable(config).model, spec)
    if not train:
        return flops.embedding(model, batch_shapes(spec, embedding_batch(config)))
    size = config.train.identities_per_batch * config.train.samples_per_identity
    return flops.training(model, objective.terms(config), batch_shapes(spec, size))


def unrolled(run: Run) -> Run:
    """The run with its layers unrolled: XLA's analysis counts the body of a loop once.

    Also without rematerialisation, and with an attention made of operations that XLA can count.
    """
    config = countable(run.config, unroll=0, remat="none")
    training = run.plan is not None
    return assemble(
        config, run.dataset, mesh=run.mesh, spec=run.model.spec, plan=run.plan, training=training
    )


def xla_training_flops(run: Run, state: State, data: DeviceSplit) -> float:
    """XLA's FLOPs of training on one sample, elementwise ones included, before optimisation."""
    lowered = trace_step(unrolled(run), state, data, run.schedule).lower()
    return lowered.cost_analysis()["flops"] / run.plan.batch


def xla_embedding_flops(run: Run, variables: Mapping, data: DeviceSplit, rows: jax.Array) -> float:
    """XLA's FLOPs of the embedding of one of the samples `rows` [M, B], counted as in training."""
    extract = make_extract(unrolled(run).model, run.mesh, run.dataset.modalities)
    cost = extract.lower(variables, data, rows, jnp.ones(rows.shape[1], bool)).cost_analysis()
    return cost["flops"] / rows.shape[1]


def trace(call: Callable[[], Any], folder: str) -> None:
    """Write a profiler trace of three calls into a folder; nothing where `folder` is empty."""
    if folder:
        with jax.profiler.trace(folder):
            timed(call, 3)


def memory(program: jax.stages.Compiled, mesh: Mesh) -> dict[str, int | None]:
    """Bytes by name: of the program as compiled, of the fullest moment of device and process.

    `device_peak` and `device_limit` are None on devices that do not report them, such as CPUs.
    `process_peak` includes what Python and the compiler held.
    """
    analysis = program.memory_analysis()
    device = mesh.local_devices[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "program_arguments": analysis.argument_size_in_bytes,
        "program_temporaries": analysis.temp_size_in_bytes,
        "device_peak": device.get("peak_bytes_in_use"),
        "device_limit": device.get("bytes_limit"),
        "process_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def environment() -> dict[str, Any]:
    """Number of devices, commit, versions and machine, as they belong to a measurement."""
    return {"device_count": jax.device_count(), **workdir.environment()}
