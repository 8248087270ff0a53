"""Measures a config on noise of its data set's size; no data set is needed.

python scripts/benchmark.py --config configs/wmveid863.py [--what train|embed|input|evaluate]
    [--chunks 10] [--steps_per_chunk K] [--json FILE] [--profile DIR] [--config.model.dtype=...]

train: training steps, as main.py runs them. embed: embeddings, as an evaluation takes them.
evaluate: all embeddings of the test set and their ranking. input: images streamed from a file,
against what training takes.
"""
# ruff: noqa: E402 - the clock starts before JAX is imported, which takes seconds

import dataclasses
import functools
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

HOME = pathlib.Path(__file__).resolve().parent.parent
STARTED = time.time()
if __name__ == "__main__":
    sys.path.insert(0, str(HOME))

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from data_tfds.errors import UserError
from facenet_jax import evaluate
from facenet_jax.bench import flops, synthetic
from facenet_jax.bench import timing as measure
from facenet_jax.inputs.stream import Batches, feed
from facenet_jax.run import Run, on_devices, untrained_state
from facenet_jax.runtime import cli
from facenet_jax.runtime.writers import write_json
from facenet_jax.step import make_extract, used_losses
from facenet_jax.train import tables


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure."""

    what: str
    chunks: int  # timed calls
    started: float  # when the process started, time.time()
    profile: str = ""  # folder of a trace
    folder: str | None = None  # where `input` writes its file


def measure_train(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """Training triplets per second and all that belongs to them."""
    count = config.train.steps_per_dispatch
    run = synthetic.run(config, (options.chunks + 5) * count, train=True, test=False)
    data = on_devices(run, run.dataset.train)
    training = measure.Training(run, data)
    batch = run.plan.rows.shape[1]
    with training.feed(workers=config.data.workers) as batches:
        training.steps(1, batches).block_until_ready()
        first = time.time() - options.started
        call = functools.partial(training.steps, count, batches)
        call().block_until_ready()  # warm
        seconds = measure.timed(call, options.chunks)
        holds = measure.memory(training.program, run.mesh)
        measure.trace(call, options.profile)
        loss = float(call())
    if not math.isfinite(loss):
        raise UserError(
            f"The loss became {loss} after {training.done} steps on noise, so the time is not that "
            "of real numbers; lower config.optim.learning_rate."
        )
    classes, losses = run.dataset.train.identity[-1] + 1, used_losses(config)
    own = flops.training(config.model, config.data.image_size, int(classes), losses)
    return {
        "unit": "training triplets/s",
        "batch": batch,
        "steps_per_chunk": count,
        **measure.rates(batch * count, seconds),
        "ms_per_step": 1e3 * float(np.median(seconds)) / count,
        **measure.utilised(run, own, float(np.median(seconds)) / (batch * count)),
        "xla_flops_per_triplet": measure.xla_training_flops(
            run, training.state, training.reads, training.schedule
        ),
        "compile_seconds": training.compile_seconds,
        "start_to_first_step_seconds": first,
        "memory": holds,
        "loss": loss,
    }


def measure_embed(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """Embeddings per second with the program that evaluation runs."""
    run = synthetic.run(config, 1, train=False, test=True)
    data, batch = evaluate.test_probe(run).data, config.evaluate.batch
    state, count = untrained_state(run)(), config.train.steps_per_dispatch
    variables = {"params": state.params, **state.collections}
    total = len(run.dataset.query) + len(run.dataset.gallery)
    rows = jnp.arange(count * batch, dtype=jnp.int32).reshape(count, batch) % total
    rows, real = list(rows), jnp.ones(batch, bool)
    start = time.perf_counter()
    lowered = make_extract(run.model, run.mesh).lower(variables, data, rows[0], real)
    program = lowered.compile()
    compile_seconds = time.perf_counter() - start

    def call() -> list[jax.Array]:
        return [program(variables, data, row, real) for row in rows]

    program(variables, data, rows[0], real).block_until_ready()
    first = time.time() - options.started
    jax.block_until_ready(call())
    seconds = measure.timed(call, options.chunks)
    holds = measure.memory(program, run.mesh)
    measure.trace(call, options.profile)
    own = flops.embedding(config.model, config.data.image_size)
    return {
        "unit": "embeddings/s",
        "batch": batch,
        "steps_per_chunk": count,
        **measure.rates(batch * count, seconds),
        "ms_per_step": 1e3 * float(np.median(seconds)) / count,
        **measure.utilised(run, own, float(np.median(seconds)) / (batch * count)),
        "xla_flops_per_triplet": measure.xla_embedding_flops(run, variables, data, rows[0]),
        "compile_seconds": compile_seconds,
        "start_to_first_step_seconds": first,
        "memory": holds,
    }


def measure_evaluate(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """Seconds of one evaluation: the embeddings of the test set, and their ranking on the host."""
    run = synthetic.run(config, 1, train=False, test=True)
    probe, state = evaluate.test_probe(run), untrained_state(run)()
    embedded = evaluate.embed(run, state, probe)  # compiles
    first = time.time() - options.started
    extract = measure.timed(lambda: evaluate.embed(run, state, probe), options.chunks)
    rank = measure.timed(lambda: evaluate.rank(probe, *embedded).metrics()["mAP"], options.chunks)
    measure.trace(lambda: evaluate.embed(run, state, probe), options.profile)
    return {
        "unit": "evaluations/s",
        "queries": len(probe.query),
        "gallery": len(probe.gallery),
        **measure.rates(1, [sum(both) for both in zip(extract, rank, strict=True)]),
        "embed_seconds": float(np.median(extract)),
        "rank_seconds": float(np.median(rank)),
        "start_to_first_evaluation_seconds": first,
    }


def measure_input(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """Triplets per second out of a file just written, alone and while training takes them."""
    count, workers = config.train.steps_per_dispatch, config.data.workers
    resident = synthetic.run(config, (options.chunks + 4) * count, train=True, test=False)
    batch, rate = resident.plan.rows.shape[1], {}

    def timed(call: Callable[[], Any]) -> dict[str, Any]:
        jax.block_until_ready(call())
        return measure.rates(batch * count, measure.timed(call, options.chunks))

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = streaming(resident, pathlib.Path(folder))
        data, (rows, _) = on_devices(run, run.dataset.train), tables(run)
        source, steps = Batches(data.images, rows), iter(range(len(rows)))
        rate["host"] = timed(lambda: [source[next(steps)] for _ in range(count)])
        with feed(data, rows, count, run.mesh, workers=workers) as batches:
            rate["devices"] = timed(lambda: batches(count).images)
        training = measure.Training(run, data)
        with training.feed(workers=workers) as batches:
            rate["training_streamed"] = timed(lambda: training.steps(count, batches))
            measure.trace(lambda: training.steps(count, batches), options.profile)
    data = on_devices(resident, resident.dataset.train)
    resident_training = measure.Training(resident, data)
    rate["training_resident"] = timed(lambda: resident_training.steps(count, lambda _: data))
    return {
        "unit": "triplets/s",
        "batch": batch,
        "steps_per_chunk": count,
        "workers": workers,
        "bytes_per_triplet": data.images[0][0].nbytes * len(data.images),
        **{f"{name}_rate": values["rate"] for name, values in rate.items()},
        **{f"{name}_rate_quartiles": values["rate_quartiles"] for name, values in rate.items()},
        "devices_to_training": rate["devices"]["rate"] / rate["training_resident"]["rate"],
    }


def streaming(run: Run, folder: pathlib.Path) -> Run:
    """The run with its training images in a file, to be read as they are needed."""
    images = run.dataset.train.images
    np.save(folder / "images.npy", images)
    mapped = np.load(folder / "images.npy", mmap_mode="r")
    train = dataclasses.replace(run.dataset.train, images=mapped)
    dataset = dataclasses.replace(run.dataset, train=train)
    return dataclasses.replace(run, dataset=dataset, streams=True)


WHAT = {
    "train": measure_train,
    "embed": measure_embed,
    "input": measure_input,
    "evaluate": measure_evaluate,
}


def run_benchmark(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """All that is known afterwards, as it goes into the JSON file."""
    result = WHAT[options.what](config, options)
    return {
        "what": options.what,
        "chunks": options.chunks,
        **result,
        "config": config.to_dict(),
        **measure.circumstances(),
    }


def report(result: dict[str, Any]) -> str:
    """The result as a table for a person."""
    options, packages = result["config"], result["packages"]
    kinds = [device.rsplit(" ", 1)[0] for device in result["devices"]]
    low, high = result.get("rate_quartiles", (0, 0))
    lines = {
        "measured": "{} of {} on noise, {} x {} pixels, {}, {} x {}".format(
            result["what"],
            result["file"],
            *options["data"]["image_size"],
            options["model"]["dtype"],
            len(kinds),
            kinds[0],
        ),
        "versions": ", ".join(
            [f"python {result['python']}"]
            + [f"{name} {packages[name]}" for name in ("jax", "jaxlib", "flax", "optax")]
            + [f"commit {result['commit'] or 'unknown'}"]
        ),
    }
    if "rate" in result:
        lines[result["unit"]] = "{:.4g}, quartiles {:.4g} to {:.4g}, {} chunks".format(
            result["rate"], low, high, result["chunks"]
        )
    if "batch" in result:
        lines["batch"] = f"{result['batch']}, {result['steps_per_chunk']} batches in a chunk"
    if "flops_per_triplet" in result:
        lines["ms per step"] = f"{result['ms_per_step']:.4g}"
        lines["model FLOPs"] = (
            "{:.5g} G a triplet; XLA counts {:.5g} G with all elementwise".format(
                result["flops_per_triplet"] / 1e9, result["xla_flops_per_triplet"] / 1e9
            )
        )
        lines["MFU"] = "{:.1f} % of {:.4g} TFLOP/s ({})".format(
            100 * result["mfu"], result["peak_flops_per_second"] / 1e12, result["peak_how"]
        )
        lines["memory"] = ", ".join(
            f"{name.replace('_', ' ')} {amount / 2**30:.2f} GiB"
            for name, amount in result["memory"].items()
            if amount is not None
        )
    lines |= {
        name.replace("_", " "): f"{value:.4g}"
        for name, value in result.items()
        if name.endswith(("_seconds", "_rate", "_to_training")) and isinstance(value, float)
    }
    return "\n".join(f"{name:34}{text}" for name, text in lines.items())


def define() -> flags.FlagValues:
    """The options of the command line."""
    v = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "the experiment", flag_values=v)
    flags.DEFINE_enum("what", "train", list(WHAT), "what to measure", flag_values=v)
    flags.DEFINE_integer("chunks", 10, "timed calls", lower_bound=1, flag_values=v)
    flags.DEFINE_integer(
        "steps_per_chunk", None, "batches in a call, instead of the config's", 1, flag_values=v
    )
    flags.DEFINE_string("json", "", "file to write the result to", flag_values=v)
    flags.DEFINE_string("profile", "", "folder to write a trace of three calls to", flag_values=v)
    flags.DEFINE_string("folder", None, "where `input` writes its file", flag_values=v)
    cache = str(HOME / ".cache" / "jax")
    flags.DEFINE_string("compile_cache", cache, "compiled programs, empty for none", flag_values=v)
    return v


def main() -> None:
    """Do what the command line says."""
    values = define()
    cli.parse(values, sys.argv)
    if values.compile_cache:
        jax.config.update("jax_compilation_cache_dir", values.compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    file = values["config"].config_filename if values["config"].present else None
    config, _ = cli.config_and_workdir(lambda: values.config, file, None)
    if values.steps_per_chunk:
        config.train.steps_per_dispatch = values.steps_per_chunk
    elif values.what == "input":  # four measurements in one
        config.train.steps_per_dispatch = min(10, config.train.steps_per_dispatch)
    target = pathlib.Path(values.json) if values.json else None
    if target and not target.absolute().parent.is_dir():
        raise UserError(f"--json {target} lies in a folder that does not exist; make it first.", 2)
    options = Options(values.what, values.chunks, STARTED, values.profile, values.folder)
    result = {"file": file, **run_benchmark(config, options)}
    print(report(result))
    if target:
        write_json(target, result)


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
