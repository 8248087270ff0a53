"""What each model costs, in the columns of the paper's Table 10 and more.

python scripts/complexity.py [CONFIG.py ...] [--measure] [--json FILE] [--chunks N] [options ...]

Parameters and FLOPs are counted. With --measure, time and memory come from scripts/benchmark.py, a
process for each figure; further options go there, such as --config.model.remat=full, and may not
change the network.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import ml_collections
from _checkout import ROOT

from configs.backbones import wmveid863 as backbones
from configs.hosts import wmveid863 as hosts
from configs.joined import wmveid863 as joined
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models
from facenet_jax.bench import flops, synthetic
from facenet_jax.bench.timing import countable, model_flops
from facenet_jax.runtime import script
from facenet_jax.runtime.cli import run_name
from facenet_jax.runtime.writers import write_json
from facenet_jax.step import embedding_batch

CONFIGS = [
    f"configs/{name}"
    for name in (
        "wmveid863.py",
        "wmveid863_baseline.py",
        "wmveid863_official.py",
        "rgbnt100.py",
        "msvr310.py",
        "demo.py",
        "demo_baseline.py",
        "agw/sysu_mm01.py",
        "ffdml/sysu_mm01.py",
        "mun/sysu_mm01.py",
        "transreid/wmveid863.py",
        *(f"hosts/wmveid863.py:{name}" for name in hosts.ROWS),
        *(f"joined/wmveid863.py:{name}" for name in joined.ROWS),
        *(f"backbones/wmveid863.py:{name}" for name in backbones.BACKBONES),
        *(f"backbones/wmveid863.py:facenet_{name}" for name in backbones.BACKBONES),
    )
]

COLUMNS = {
    "parameters": ("parameters, M", 1e6),
    "embedding_parameters": ("for embedding, M", 1e6),
    "training_flops": ("GFLOP, training", 1e9),
    "embedding_flops": ("GFLOP, embedding", 1e9),
    "training_seconds": ("ms, training", 1e-3),
    "embedding_seconds": ("ms, embedding", 1e-3),
    "training_memory": ("GiB, training", 2**30),
    "embedding_memory": ("GiB, embedding", 2**30),
}
"""Field of a row: (heading, unit). FLOPs and seconds are for one sample."""


def main(arguments: list[str] | None = None) -> None:
    """Print the table; raises UserError for what cannot be counted or measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", default=CONFIGS, help="config files; default: all")
    parser.add_argument("--measure", action="store_true", help="measure time and memory here")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the rows to")
    parser.add_argument("--chunks", type=int, default=10, help="timed calls of each measurement")
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.measure:
        raise UserError(f"{rest[0]} is no option without --measure.", 2)
    rows = {}
    for file in options.configs:
        rows[file] = counted(script.load_config(file))
        if options.measure:
            extra = [f"--chunks={options.chunks}", *rest]
            rows[file] |= measured(file, rows[file], extra)
    print(table(rows))
    if options.json:
        write_json(options.json, rows)


def counted(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Parameters of the network, those that an embedding needs, and FLOPs of one sample.

    Also by part of the network: parameters from their shapes, FLOPs from the traced computation.
    Nothing is known here of any model.
    """
    spec = synthetic.spec(config.data)
    parts, of_embedding = parameters(config)
    training, embedding = (model_flops(config, spec, train=train) for train in (True, False))
    return {
        "parameters": sum(parts.values()),
        "embedding_parameters": of_embedding,
        "training_flops": sum(training.values()),
        "embedding_flops": sum(embedding.values()),
        "by_part": {
            "parameters": parts,
            "training_flops": training,
            "embedding_flops": embedding,
        },
    }


def parameters(config: ml_collections.ConfigDict) -> tuple[dict[str, int], int]:
    """({part of the network: its parameters}, how many of all an embedding depends on)."""
    configs.check(config)
    spec = synthetic.spec(config.data)
    model = models.build(countable(config).model, spec)
    shapes = jax.eval_shape(model.init, flops.key_shape())["params"]
    parts = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for name, part in shapes.items()
    }
    batch = synthetic.batch_shapes(spec, embedding_batch(config))
    return parts, flops.embedding_parameters(model, batch)


def measured(file: str, row: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """Seconds for one sample and peak memory in bytes, of training and of embedding.

    `memory_of` is "device", or "process" where devices do not report theirs, such as CPUs.
    """
    found = {}
    for what, name in (("train", "training"), ("embed", "embedding")):
        result = benchmark(file, what, options)
        if result["flops_per_sample"] != row[f"{name}_flops"]:
            raise UserError(
                f"{' '.join(options)} change the network of {file}, {row[f'{name}_flops']} to "
                f"{result['flops_per_sample']} FLOPs: measure a config file of its own.",
                2,
            )
        memory = result["memory"]
        device = memory["device_peak"] is not None
        found |= {
            f"{name}_seconds": 1 / result["rate"],
            f"{name}_memory": memory["device_peak" if device else "process_peak"],
            f"{name}_batch": result["batch"],
            "dtype": result["dtype"],
            "memory_of": "device" if device else "process",
            "devices": result["devices"],
        }
    return found


def benchmark(file: str, what: str, options: list[str]) -> dict[str, Any]:
    """The result of scripts/benchmark.py in a process of its own, for its peak memory.

    What it prints goes to stderr; stdout has the table alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "result.json"
        path = str(pathlib.Path(file).resolve() if pathlib.Path(file).is_file() else ROOT / file)
        command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), f"--config={path}"]
        command += [f"--what={what}", f"--json={target}", *options]
        process = subprocess.run(command, stdout=sys.stderr, check=False)
        if process.returncode:
            raise UserError(f"{' '.join(command[1:])} failed; its message is above.")
        return json.loads(target.read_text())


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows in Markdown, with the columns that they have."""
    shown = [name for name in COLUMNS if any(name in row for row in rows.values())]
    lines = ["| config | " + " | ".join(COLUMNS[name][0] for name in shown) + " |"]
    lines.append("|---" * (len(shown) + 1) + "|")
    for file, row in rows.items():
        cells = [f"{row[name] / COLUMNS[name][1]:.4g}" for name in shown]
        lines.append(" | ".join([f"| {run_name(file)}", *cells]) + " |")
    notes = {
        f"{row['dtype']}, batch {row['training_batch']} in training and {row['embedding_batch']} "
        f"in embedding, memory of the {row['memory_of']}, {', '.join(row['devices'])}"
        for row in rows.values()
        if "dtype" in row
    }
    return "\n".join([*lines, *(f"\nMeasured: {note}." for note in sorted(notes))])


if __name__ == "__main__":
    sys.exit(script.run(main))
