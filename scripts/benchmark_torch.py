"""Our training step, or embedding, against the same network in PyTorch, timed in alternation.

python scripts/benchmark_torch.py --config configs/demo.py [--what train|embed] [--nocompile]
    [--json FILE] [--config.section.option=value]

Needs torch (pip install -e '.[bench]'). Both start from the same parameters and hold the same
synthetic uint8 samples on the same device, each in a process of its own that sleeps while the other
is timed: ours, theirs, ours, theirs. The ratio is that of the medians of the chunks. On a CPU that
others use too, the ratio of CPU time says more if both have one core (taskset -c 0), since threads
that wait for each other count as busy.
"""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import _checkout  # noqa: F401
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import objective, optim
from facenet_jax.bench import synthetic, timing
from facenet_jax.bench.alternate import Worker
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.inputs.sampler import Plan, make_plan
from facenet_jax.runtime import cli, script, workdir
from facenet_jax.runtime.writers import write_json
from facenet_jax.step import embedding_batch

WARM_UP = 3  # calls before the first that counts, the compiling one included

VALUES = flags.FlagValues()
config_flags.DEFINE_config_file("config", None, "the experiment", flag_values=VALUES)
flags.DEFINE_enum("what", "train", ["train", "embed"], "what to time", flag_values=VALUES)
flags.DEFINE_bool(
    "compile", None, "torch.compile; by default where it can work", flag_values=VALUES
)
flags.DEFINE_string("json", None, "file to write the figures to", flag_values=VALUES)
flags.DEFINE_integer("chunks", 10, "timed chunks of each side", 10, flag_values=VALUES)
flags.DEFINE_float(
    "seconds",
    1.0,
    "how long a chunk takes at least, up to config.train.steps_per_dispatch steps",
    0.0,
    flag_values=VALUES,
)


def inputs(config: ml_collections.ConfigDict, chunks: int) -> tuple[Dataset, Plan]:
    """Noise in the size of the config's data set and the order of the steps; the same for both."""
    dataset, train = synthetic.load(config.data, test=False), config.train
    plan = make_plan(
        config.sampler.to_dict(),
        dataset.split("train"),
        seed=config.seed,
        options=train.to_dict(),
        epochs=0,
        steps=(chunks + WARM_UP) * train.steps_per_dispatch,
    )
    return dataset, plan


class Ours:
    """facenet_jax on one device, through the functions that training and evaluation call."""

    def __init__(self, config: ml_collections.ConfigDict, chunks: int, compiled: bool | None):
        # Two processes share the device, and JAX would take three quarters of a GPU at once.
        if "XLA_CLIENT_MEM_FRACTION" not in os.environ:  # JAX refuses both names at once
            os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
        import jax
        from jax.sharding import Mesh

        from facenet_jax import run, step

        del compiled
        dataset, plan = inputs(config, chunks)
        mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        spec = synthetic.spec(config.data)
        self.jax, self.run = jax, run.assemble(config, dataset, mesh=mesh, spec=spec, plan=plan)
        self.data, self.rows = run.on_devices(self.run, dataset.split("train"))
        self.state = run.untrained_state(self.run)()
        self.program = run.compile_step(self.run, self.data)
        self.extract = step.make_extract(self.run.model, mesh, dataset.modalities)

    def variables(self) -> dict[str, Any]:
        """Parameters and statistics as NumPy arrays."""
        return self.jax.device_get(self.state.variables)

    def train(self, steps: int) -> float:
        """Steps of training in one dispatch; the last loss."""
        self.state, scalars = self.program(self.state, self.data, steps)
        return float(scalars["loss"][steps - 1])

    def embeddings(self, batches: np.ndarray) -> np.ndarray:
        """Embeddings of the last of `batches` [count, B] of samples, all of them computed."""
        real = np.ones(batches.shape[1], bool)
        for samples in batches:
            rows = self.rows[:, samples]
            embedding = self.extract(self.state.variables, self.data, rows, real)
        return np.asarray(embedding)

    first_embeddings = embeddings

    def facts(self) -> dict[str, Any]:
        """Version, compilation and device, for the report."""
        device = self.jax.devices()[0]
        return {
            "version": f"jax {self.jax.__version__}",
            "how": "jit",
            "device": device.device_kind,
        }


def arrays(config: ml_collections.ConfigDict, chunks: int) -> dict[str, Any]:
    """The same inputs as arrays by name, without a device: what the peer takes."""
    dataset, plan = inputs(config, chunks)
    split = dataset.split("train")
    progress = np.arange(len(plan.epoch)) / len(plan.epoch)
    weights = [weight for weight, _ in objective.terms(config).values()]
    columns = [
        np.interp(progress, *zip(*w, strict=True)) if np.ndim(w) else np.full(len(progress), w)
        for w in weights
    ]
    # What assemble makes of it; the peer's models have no parameter groups of their own.
    groups = optim.parameter_groups({}, config.optim.bias_lr_factor)
    epochs = int(plan.epoch[-1]) if config.train.steps else config.train.epochs
    return {
        "identities": synthetic.spec(config.data).identities,
        "images": list(split.images.values()),
        "identity": split.identity,
        "flare": split.labels["flare"][:, :2],
        "rows": plan.rows,
        "rates": optim.rate_table(config.optim, plan.epoch, epochs, groups),
        "weights": np.stack(columns, axis=1).astype(np.float32),
    }


def theirs(config: ml_collections.ConfigDict, chunks: int, compiled: bool | None) -> Any:
    """The PyTorch network with the same data."""
    from facenet_jax.bench.torch_training import Peer

    return Peer(config, arrays(config, chunks), list(objective.terms(config)), compiled)


def compare(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of both; see `report`."""
    chunks, train = values["chunks"], values["what"] == "train"
    batch = embedding_batch(config)
    if train:
        batch = config.train.identities_per_batch * config.train.samples_per_identity
    arguments = config, chunks, values["compile"]
    workers = [Worker("facenet_jax", Ours, *arguments), Worker("PyTorch", theirs, *arguments)]

    workers[1].ask("load", workers[0].ask("variables")[-1])
    first = np.arange(embedding_batch(config), dtype=np.int32)[None]
    ours, peers = (worker.ask("first_embeddings", first)[-1] for worker in workers)

    def chunk(worker: Worker, steps: int) -> tuple[float, float]:
        if not train:
            return worker.ask("embeddings", np.repeat(first, steps, axis=0))[:2]
        *seconds, loss = worker.ask("train", steps)
        if not np.isfinite(loss):
            raise UserError(f"The loss of {worker.name} is {loss}; lower the learning rate.")
        return seconds

    compiling = [chunk(worker, 1)[0] for worker in workers]
    quick = min(chunk(worker, 1)[0] for worker in workers)
    steps = int(np.clip(np.ceil(values["seconds"] / quick), 1, config.train.steps_per_dispatch))
    load = [os.getloadavg()[0]]
    for worker in workers:
        chunk(worker, steps)
    seconds = [[chunk(worker, steps) for worker in workers] for _ in range(chunks)]
    seconds = np.array(seconds) / steps
    load.append(os.getloadavg()[0])
    (ours_wall, ours_busy), (peers_wall, peers_busy) = np.median(seconds, axis=0)

    result = {
        "what": values["what"],
        "batch": batch,
        "dtype": timing.dtype(config),
        "steps_per_chunk": steps,
        "chunks": chunks,
        "load": load,
        "cores": os.cpu_count(),
        "embedding_difference": float(np.linalg.norm(ours - peers) / np.linalg.norm(peers)),
        "ratio": peers_wall / ours_wall,
        "ratio_of_cpu_time": peers_busy / ours_busy,
        "commit": workdir.commit(),
        "config": config.to_dict(),
    }
    columns = seconds.transpose(1, 2, 0)
    for worker, (wall, busy), first_call in zip(workers, columns, compiling, strict=True):
        result[worker.name] = worker.ask("facts")[-1] | {
            "seconds_per_step": wall.tolist(),
            "cpu_seconds_per_step": busy.tolist(),
            "median_ms": 1e3 * np.median(wall),
            "samples_per_second": batch / np.median(wall),
            "first_call_seconds": first_call,
        }
        worker.close()
    return result


def report(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{result['what']}, batch {result['batch']}, {result['dtype']}: {result['chunks']} chunks "
        f"of {result['steps_per_chunk']} steps each, in alternation"
    ]
    for name in ("facenet_jax", "PyTorch"):
        r = result[name]
        low, high = (1e3 * f(r["seconds_per_step"]) for f in (min, max))
        lines.append(
            f"{name:12} {r['median_ms']:9.1f} ms per step ({low:.1f} to {high:.1f}), "
            f"{r['samples_per_second']:8.1f} samples/s, first call "
            f"{r['first_call_seconds']:.1f} s ({r['version']}, {r['how']}, {r['device']})"
        )
    return "\n".join(
        [
            *lines,
            f"ratio of medians {result['ratio']:.2f}, of the CPU time of the processes "
            f"{result['ratio_of_cpu_time']:.2f}; above 1 where facenet_jax is faster",
            f"embeddings of the same parameters differ by {result['embedding_difference']:.1e} of "
            f"their size; load of the machine {result['load'][0]:.1f} before, "
            f"{result['load'][1]:.1f} after, {result['cores']} cores",
        ]
    )


def main() -> None:
    """Compare, print, write."""
    if cli.wants_help(sys.argv):
        usage = "benchmark_torch.py --config FILE [options] [--config.section.option=value ...]"
        options = {"options": [VALUES[name] for name in VALUES]}
        print(cli.help_text(usage, __doc__.splitlines()[0], options))
        return
    cli.parse(VALUES, sys.argv)
    if not VALUES["config"].present:
        raise UserError("Give an experiment: --config configs/demo.py.", 2)
    file = VALUES["config"].config_filename
    if not pathlib.Path(file).is_file():
        raise UserError(f"The config file {file} does not exist; they are in configs/.", 2)
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "This comparison needs PyTorch, which is not installed: pip install -e '.[bench]'.", 2
        )
    configs.check(VALUES.config)
    result = compare(VALUES.config, VALUES.flag_values_dict())
    print(report(result))
    if VALUES.json:
        write_json(pathlib.Path(VALUES.json), result)


if __name__ == "__main__":
    sys.exit(script.run(main))
