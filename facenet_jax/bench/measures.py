"""What `facenet benchmark` measures of a config on random pixels, one function for each word."""

import dataclasses
import functools
import math
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data_tfds.errors import UserError
from facenet_jax import retrieval
from facenet_jax.bench import synthetic, timing
from facenet_jax.embed import embed, test_set
from facenet_jax.inputs.stream import Batches, open_reader
from facenet_jax.models import vit
from facenet_jax.run import Run, on_devices, training_images, untrained_state
from facenet_jax.step import embedding_batch, make_extract


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and how."""

    what: str
    chunks: int  # timed calls
    started: float  # when the process started, time.time()
    profile: str = ""  # folder of a trace
    folder: str | None = None  # where `input` writes its file
    peak: tuple[float, str] | None = None  # see `timing.peak`; None: it is measured
    count_xla: bool = True  # whether XLA counts FLOPs too, for which it reads an unrolled network


def measure_train(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """Samples per second in training, with FLOPs, MFU, memory and the times to start."""
    count = config.train.steps_per_dispatch
    run = synthetic.run(config, (options.chunks + 5) * count, train=True, test=False)
    data = training_images(run)
    training = timing.Training(run, data)
    with training.reader() as read:
        training.steps(1, read).block_until_ready()
        first = time.time() - options.started
        call = functools.partial(training.steps, count, read)
        call().block_until_ready()  # warm
        seconds = timing.timed(call, options.chunks)
        holds = timing.memory(training.program.compiled, run.mesh)
        timing.trace(call, options.profile)
        loss = float(call())
    if not math.isfinite(loss):
        raise UserError(
            f"The loss became {loss} after {training.done} steps on random pixels, so the time is "
            "not that of finite numbers; lower config.optim.learning_rate."
        )
    by_part = timing.model_flops(config, run.model.spec, train=True)
    backend, unroll = jax.default_backend(), config.model.get("unroll")
    return {
        "unit": "training samples/s",
        **of_batches(run, run.plan.batch, seconds, by_part, options.peak),
        **counted(options, lambda: timing.xla_training_flops(run, training.state, data)),
        "remat": training.program.remat or config.model.get("remat", ""),
        "unroll": "" if unroll is None else vit.layers_at_once(unroll, backend),
        "compile_seconds": training.program.compile_seconds,
        "start_to_first_step_seconds": first,
        "memory": holds,
        "loss": loss,
    }


def of_batches(
    run: Run,
    batch: int,
    seconds: list[float],
    by_part: dict[str, int],
    peak: tuple[float, str] | None = None,
) -> dict[str, Any]:
    """The figures of chunks of batches that took `seconds` each."""
    count, median = run.config.train.steps_per_dispatch, float(np.median(seconds))
    return {
        "batch": batch,
        "steps_per_chunk": count,
        **timing.rates(batch * count, seconds),
        "ms_per_step": 1e3 * median / count,
        **timing.mfu(run, by_part, median / (batch * count), peak),
    }


def counted(options: Options, count: Callable[[], float]) -> dict[str, float]:
    """XLA's FLOPs of a sample under their name; empty where they are not to be counted."""
    return {"xla_flops_per_sample": count()} if options.count_xla else {}


def measure_embed(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """Embeddings per second with the program that evaluation runs."""
    run = synthetic.run(config, 1, train=False, test=True)
    data, all_rows = on_devices(run, run.dataset.split("query"), run.dataset.split("gallery"))
    batch, count = embedding_batch(config, run.mesh.size), config.train.steps_per_dispatch
    variables = untrained_state(run)().variables
    numbers = np.arange(count * batch).reshape(count, batch) % all_rows.shape[1]
    rows = [jnp.asarray(all_rows[:, number]) for number in numbers]
    real = jnp.ones(batch, bool)
    start = time.perf_counter()
    extract = make_extract(run.model, run.mesh, run.dataset.modalities)
    program = extract.lower(variables, data, rows[0], real).compile()
    compile_seconds = time.perf_counter() - start

    def call() -> list[jax.Array]:
        return [program(variables, data, row, real) for row in rows]

    program(variables, data, rows[0], real).block_until_ready()
    first = time.time() - options.started
    jax.block_until_ready(call())
    seconds = timing.timed(call, options.chunks)
    holds = timing.memory(program, run.mesh)
    timing.trace(call, options.profile)
    by_part = timing.model_flops(config, run.model.spec, train=False)
    return {
        "unit": "embeddings/s",
        **of_batches(run, batch, seconds, by_part, options.peak),
        **counted(options, lambda: timing.xla_embedding_flops(run, variables, data, rows[0])),
        "compile_seconds": compile_seconds,
        "start_to_first_step_seconds": first,
        "memory": holds,
    }


def measure_evaluate(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """Seconds of one evaluation: the embeddings of the test set, and their ranking on the host."""
    run = synthetic.run(config, 1, train=False, test=True)
    of, state = test_set(run), untrained_state(run)()
    embedded = embed(run, state, of)  # compiles
    first = time.time() - options.started
    extract = timing.timed(lambda: embed(run, state, of)[0].embedding, options.chunks)
    rank = timing.timed(
        lambda: retrieval.evaluate(*embedded, of.protocol).metrics()["mAP"], options.chunks
    )
    timing.trace(lambda: embed(run, state, of)[0].embedding, options.profile)
    return {
        "unit": "evaluations/s",
        "queries": len(of.query.split),
        "gallery": len(of.gallery.split),
        **timing.rates(1, [sum(both) for both in zip(extract, rank, strict=True)]),
        "embed_seconds": float(np.median(extract)),
        "rank_seconds": float(np.median(rank)),
        "start_to_first_evaluation_seconds": first,
    }


def measure_input(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """Samples per second read from files just written, alone and during training."""
    count, workers = config.train.steps_per_dispatch, config.data.workers
    resident = synthetic.run(config, (options.chunks + 4) * count, train=True, test=False)
    batch, plan, rate = resident.plan.batch, resident.plan.rows, {}

    def timed(call: Callable[[], Any]) -> dict[str, Any]:
        jax.block_until_ready(call())
        return timing.rates(batch * count, timing.timed(call, options.chunks))

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = streaming(resident, pathlib.Path(folder))
        data = training_images(run)
        source, steps = Batches(data.images, plan), iter(range(len(plan)))
        rate["host"] = timed(lambda: [source[next(steps)] for _ in range(count)])
        with open_reader(data, plan, count, run.mesh, workers=workers) as read:
            rate["devices"] = timed(lambda: read(count).images)
        training = timing.Training(run, data)
        with training.reader() as read:
            rate["training_streamed"] = timed(lambda: training.steps(count, read))
            timing.trace(lambda: training.steps(count, read), options.profile)
    train = resident.dataset.split("train")
    resident_training = timing.Training(resident, training_images(resident))
    with resident_training.reader() as read:
        rate["training_resident"] = timed(lambda: resident_training.steps(count, read))
    return {
        "unit": "samples/s",
        "batch": batch,
        "steps_per_chunk": count,
        "workers": workers,
        "bytes_per_sample": sum(images[0].nbytes for images in train.images.values()),
        **{f"{name}_rate": values["rate"] for name, values in rate.items()},
        **{f"{name}_rate_quartiles": values["rate_quartiles"] for name, values in rate.items()},
        "devices_to_training": rate["devices"]["rate"] / rate["training_resident"]["rate"],
    }


def streaming(run: Run, folder: pathlib.Path) -> Run:
    """The run with its training images in files, read batch by batch."""
    train, mapped = run.dataset.split("train"), {}
    for modality, images in train.images.items():
        path = folder / f"{modality}.npy"
        np.save(path, images)
        mapped[modality] = np.load(path, mmap_mode="r")
    train = dataclasses.replace(train, images=mapped)
    dataset = dataclasses.replace(run.dataset, splits={"train": train})
    return dataclasses.replace(run, dataset=dataset, streams=True)


WHAT = {
    "train": measure_train,
    "embed": measure_embed,
    "input": measure_input,
    "evaluate": measure_evaluate,
}


def run_benchmark(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    """The figures, the config and the environment, as they are written to the JSON file."""
    result = WHAT[options.what](config, options)
    return {
        "what": options.what,
        "chunks": options.chunks,
        **result,
        "dtype": timing.dtype(config),
        "config": config.to_dict(),
        **timing.environment(),
    }
