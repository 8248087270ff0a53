"""Our training step, or embedding, against the same network in PyTorch, timed in turns.

python scripts/benchmark_torch.py --config configs/demo.py [--what train|embed] [--nocompile]
    [--json FILE] [--config.section.option=value]

Needs torch (pip install -e '.[bench]'). Both sides start from the same parameters, hold the same
synthetic uint8 triplets on the same device, and live in a process of their own that sleeps while
the other is timed: ours, theirs, ours, theirs. The ratio is that of the medians of the chunks. On a
CPU that others use too, the ratio of CPU time says more if both have one core (taskset -c 0), since
threads that wait for each other count as busy.
"""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from data_tfds.errors import UserError
from facenet_jax import optim
from facenet_jax.bench import timing as measure
from facenet_jax.bench.alternate import Side
from facenet_jax.bench.synthetic import SIZES
from facenet_jax.inputs import sampler
from facenet_jax.runtime import cli
from facenet_jax.runtime.writers import write_json
from facenet_jax.step import used_losses

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
    "how long a chunk shall take at least, up to config.train.steps_per_dispatch steps",
    0.0,
    flag_values=VALUES,
)


def synthetic(config: ml_collections.ConfigDict, chunks: int) -> dict[str, Any]:
    """Data and tables of a run on noise, as NumPy arrays by name; the same for both sides."""
    c, rng = config.train, np.random.default_rng(config.seed)
    if config.data.name not in SIZES:
        raise UserError(
            f"config.data.name is '{config.data.name}', whose size is not known here; compare with "
            f"one of {', '.join(SIZES)}."
        )
    identities = SIZES[config.data.name].identities
    identity = np.repeat(np.arange(identities, dtype=np.int32), c.samples_per_identity)
    steps = (chunks + WARM_UP) * c.steps_per_dispatch
    plan = sampler.pk_plan(
        identity,
        seed=config.seed,
        p=c.identities_per_batch,
        k=c.samples_per_identity,
        epochs=0,
        steps=steps,
    )
    progress = np.arange(steps) / steps
    weights = [config.losses[name] for name in used_losses(config)]
    columns = [
        np.interp(progress, *zip(*w, strict=True)) if np.ndim(w) else np.full(steps, w)
        for w in weights
    ]
    return {
        "identities": identities,
        "images": rng.integers(
            0, 256, (3, len(identity), *config.data.image_size, 3), dtype=np.uint8
        ),
        "identity": identity,
        "flare": rng.random((len(identity), 2)) < 0.3,
        "rows": np.repeat(plan.rows[:, None], 3, axis=1),
        "rates": optim.rate_table(config.optim, plan.epoch, c.epochs),
        "weights": np.stack(columns, axis=1).astype(np.float32),
    }


class Ours:
    """facenet_jax on one device, through the functions that training and evaluation call."""

    def __init__(self, config: ml_collections.ConfigDict, chunks: int, compiled: bool | None):
        # Two processes share the device, and JAX would take three quarters of a GPU at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
        import jax
        from jax.sharding import AxisType, NamedSharding, PartitionSpec

        from facenet_jax import models, step
        from facenet_jax.runtime import mesh as meshes

        del compiled
        arrays, self.jax, self.replicate = synthetic(config, chunks), jax, meshes.replicate
        self.mesh = jax.make_mesh(
            (1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
        )
        model = models.build(config.model, config.data.image_size, arrays["identities"])
        optimizer = optim.optimizer(config.optim)
        labels = arrays["identity"]
        data = step.Resident(
            tuple(arrays["images"]), labels, np.zeros_like(labels), labels * 0 - 1, arrays["flare"]
        )
        self.data = self.put(data)
        self.schedule = self.put(step.Schedule(arrays["rows"], arrays["rates"]))
        where = NamedSharding(self.mesh, PartitionSpec())
        start = jax.jit(
            lambda: step.initial_state(model, optimizer, config.seed), out_shardings=where
        )
        self.state = start()
        self.chunk = step.make_chunk(model, optimizer, config, self.mesh)
        self.extract = step.make_extract(model, self.mesh)

    def put(self, tree: Any) -> Any:
        """Host arrays on the device."""
        return self.replicate(tree, self.mesh)

    def variables(self) -> dict[str, Any]:
        """Parameters and statistics as NumPy arrays."""
        state = self.state
        return self.jax.device_get({"params": state.params, **state.collections})

    def train(self, steps: int) -> float:
        """Steps of training in one dispatch; the last loss."""
        self.state, logs = self.chunk(
            self.state, self.data, self.schedule, self.put(np.int32(steps))
        )
        return float(logs["loss"][steps - 1])

    def embeddings(self, batches: np.ndarray) -> np.ndarray:
        """Embeddings of the last of `batches` [count, B] of rows, all of them computed."""
        variables = {"params": self.state.params, **self.state.collections}
        real = self.put(np.ones(batches.shape[1], bool))
        for rows in batches:
            embedding = self.extract(variables, self.data, self.put(rows), real)
        return np.asarray(embedding)

    first_embeddings = embeddings

    def facts(self) -> dict[str, Any]:
        """What the report says of this side."""
        device = self.jax.devices()[0]
        return {
            "version": f"jax {self.jax.__version__}",
            "how": "jit",
            "device": device.device_kind,
        }


def theirs(config: ml_collections.ConfigDict, chunks: int, compiled: bool | None) -> Any:
    """The PyTorch peer with the same data."""
    from facenet_jax.bench.torch_training import Peer

    arrays = synthetic(config, chunks)
    return Peer(config, arrays, used_losses(config), compiled)


def compare(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of both sides; see `report`."""
    chunks, train = values["chunks"], values["what"] == "train"
    batch = config.evaluate.batch
    if train:
        batch = config.train.identities_per_batch * config.train.samples_per_identity
    arguments = config, chunks, values["compile"]
    sides = [Side("facenet_jax", Ours, *arguments), Side("PyTorch", theirs, *arguments)]

    sides[1].ask("load", sides[0].ask("variables")[-1])
    first = np.arange(config.evaluate.batch, dtype=np.int32)[None]
    ours, peers = (side.ask("first_embeddings", first)[-1] for side in sides)

    def chunk(side: Side, steps: int) -> tuple[float, float]:
        if not train:
            return side.ask("embeddings", np.repeat(first, steps, axis=0))[:2]
        *seconds, loss = side.ask("train", steps)
        if not np.isfinite(loss):
            raise UserError(f"The loss of {side.name} is {loss}; lower the learning rate.")
        return seconds

    compiling = [chunk(side, 1)[0] for side in sides]
    quick = min(chunk(side, 1)[0] for side in sides)
    steps = int(np.clip(np.ceil(values["seconds"] / quick), 1, config.train.steps_per_dispatch))
    load = [os.getloadavg()[0]]
    for side in sides:
        chunk(side, steps)
    seconds = np.array([[chunk(side, steps) for side in sides] for _ in range(chunks)]) / steps
    load.append(os.getloadavg()[0])
    (ours_wall, ours_busy), (peers_wall, peers_busy) = np.median(seconds, axis=0)

    result = {
        "what": values["what"],
        "batch": batch,
        "dtype": config.model.dtype,
        "steps_per_chunk": steps,
        "chunks": chunks,
        "load": load,
        "cores": os.cpu_count(),
        "embedding_difference": float(np.linalg.norm(ours - peers) / np.linalg.norm(peers)),
        "ratio": peers_wall / ours_wall,
        "ratio_of_cpu_time": peers_busy / ours_busy,
        "commit": measure.commit(),
        "config": config.to_dict(),
    }
    columns = seconds.transpose(1, 2, 0)
    for side, (wall, busy), first_call in zip(sides, columns, compiling, strict=True):
        result[side.name] = side.ask("facts")[-1] | {
            "seconds_per_step": wall.tolist(),
            "cpu_seconds_per_step": busy.tolist(),
            "median_ms": 1e3 * np.median(wall),
            "triplets_per_second": batch / np.median(wall),
            "first_call_seconds": first_call,
        }
        side.close()
    return result


def report(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{result['what']}, batch {result['batch']}, {result['dtype']}: {result['chunks']} chunks "
        f"of {result['steps_per_chunk']} steps each, in turns"
    ]
    for name in ("facenet_jax", "PyTorch"):
        r = result[name]
        low, high = (1e3 * f(r["seconds_per_step"]) for f in (min, max))
        lines.append(
            f"{name:12} {r['median_ms']:9.1f} ms per step ({low:.1f} to {high:.1f}), "
            f"{r['triplets_per_second']:8.1f} triplets/s, first call "
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
    result = compare(VALUES.config, VALUES.flag_values_dict())
    print(report(result))
    if VALUES.json:
        write_json(pathlib.Path(VALUES.json), result)


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
