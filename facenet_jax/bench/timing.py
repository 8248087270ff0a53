"""What the scripts that measure share: a compiled training, timing, FLOPs, peak, memory."""

import functools
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from facenet_jax import models
from facenet_jax.inputs.stream import Streamed, feed, shapes
from facenet_jax.run import Run, untrained_state
from facenet_jax.runtime import workdir
from facenet_jax.runtime.mesh import replicate
from facenet_jax.step import Resident, Schedule, State, make_chunk, make_extract, train_step
from facenet_jax.train import tables

HOME = pathlib.Path(__file__).resolve().parents[2]


class Training:
    """A run on noise, compiled: `steps(k)` does k of them."""

    def __init__(self, run: Run, data: Resident | Streamed):
        per_dispatch = run.config.train.steps_per_dispatch
        self.rows, rates = tables(run)
        self.run, self.done = run, 0
        self.state: State = untrained_state(run)()
        self.schedule = replicate(Schedule(self.rows, rates), run.mesh)
        self.reads = shapes(data, per_dispatch, self.rows.shape[-1], run.mesh)
        start = time.perf_counter()
        chunk = make_chunk(run.model, run.optimizer, run.config, run.mesh)
        lowered = chunk.lower(self.state, self.reads, self.schedule, np.int32(0))
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self.feed = functools.partial(feed, data, self.rows, per_dispatch, run.mesh)

    def steps(self, count: int, batches: Callable[[int], Resident]) -> jax.Array:
        """The loss of the last of `count` more steps, once it is there."""
        data = batches(count)
        self.state, logs = self.program(self.state, data, self.schedule, np.int32(count))
        self.done += count
        return logs["loss"][count - 1]


def timed(call: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of so many calls, each until its result is there."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds


def rates(amount: float, seconds: Sequence[float]) -> dict[str, Any]:
    """`amount` per second: the median and the quartiles of the calls, and the seconds of each."""
    low, median, high = np.quantile(amount / np.array(seconds), (0.25, 0.5, 0.75))
    return {
        "rate": float(median),
        "rate_quartiles": [float(low), float(high)],
        "chunk_seconds": list(seconds),
    }


def peak(dtype: str, mesh: Mesh) -> tuple[float, str]:
    """(FLOP/s of all devices together, how measured): the best of ten large square products.

    On one device, times their number. Accelerators multiply bfloat16 whatever the config says, the
    CPU `dtype`.
    """
    device = mesh.local_devices[0]
    side, kind = (2048, dtype) if device.platform == "cpu" else (16384, "bfloat16")
    x = jax.device_put(jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(kind)), device)
    multiply = jax.jit(jnp.matmul)
    best = min(timed(lambda: multiply(x, x), 11)[1:])  # the first call compiles
    how = f"best of 10 products [{side}, {side}] {kind}"
    return 2 * side**3 / best * mesh.size, how if mesh.size == 1 else f"{how}, x {mesh.size}"


def utilised(run: Run, own: Mapping[str, int], seconds: float) -> dict[str, Any]:
    """FLOPs of a triplet that takes so many seconds, and their share of the peak: MFU."""
    total, (most, how) = sum(own.values()), peak(run.config.model.dtype, run.mesh)
    return {
        "flops_per_triplet": total,
        "flops_by_part": dict(own),
        "peak_flops_per_second": most,
        "peak_how": how,
        "mfu": total / seconds / most,
    }


def unlooped(run: Run) -> tuple[ml_collections.ConfigDict, models.Model]:
    """The run's config and model without a loop over layers, of which XLA would count one turn.

    And without rematerialisation, and with an attention that XLA sees into.
    """
    config = run.config.copy_and_resolve_references()
    config.model.update({"unroll": 0, "remat": "none", "attention": "xla"})
    identities = len(np.unique(run.dataset.train.identity))
    return config, models.build(config.model, config.data.image_size, identities)


def xla_training_flops(run: Run, state: State, data: Resident, schedule: Schedule) -> float:
    """XLA's own count for a training triplet, everything elementwise included, unoptimised."""
    config, model = unlooped(run)
    step = functools.partial(
        train_step, model=model, optimizer=run.optimizer, config=config, mesh=run.mesh
    )
    cost = jax.jit(step).lower(state, data, schedule).cost_analysis()
    return cost["flops"] / run.plan.rows.shape[1]


def xla_embedding_flops(run: Run, variables: Mapping, data: Resident, rows: jax.Array) -> float:
    """XLA's own count for an embedding, everything elementwise included, unoptimised."""
    extract = make_extract(unlooped(run)[1], run.mesh)
    return extract.lower(variables, data, rows, rows >= 0).cost_analysis()["flops"] / len(rows)


def trace(call: Callable[[], Any], folder: str) -> None:
    """Write a trace of three calls into a folder, for xprof; nothing for an empty name."""
    if folder:
        with jax.profiler.trace(folder):
            timed(call, 3)


def memory(program: jax.stages.Compiled, mesh: Mesh) -> dict[str, int | None]:
    """Bytes: what the program was compiled to hold, what a device held at most, the process too.

    `device_peak` and `device_limit` are None where devices do not tell, as CPUs; the resident set
    of the process has all that Python and the compiler held as well.
    """
    program_holds = program.memory_analysis()
    device = mesh.local_devices[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "program_arguments": program_holds.argument_size_in_bytes,
        "program_temporaries": program_holds.temp_size_in_bytes,
        "device_peak": device.get("peak_bytes_in_use"),
        "device_limit": device.get("bytes_limit"),
        "process_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def commit() -> str | None:
    """The git commit of this code, "+" if it was changed since; None outside a git checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(HOME), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def circumstances() -> dict[str, Any]:
    """Where and with what it was measured."""
    return {"commit": commit(), "device_count": jax.device_count(), **workdir.environment()}
