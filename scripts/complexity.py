"""What each model costs, in the columns of the paper's Table 10 and more.

python scripts/complexity.py [CONFIG.py ...] [--measure] [--json FILE] [--chunks N] [options ...]

Parameters and FLOPs are counted. With --measure, time and memory come from scripts/benchmark.py, a
process for each figure; further options go there, such as --config.model.remat=full, and may not
change the network.
"""

import argparse
import importlib.util
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import ml_collections

from data_tfds.errors import UserError
from facenet_jax import models
from facenet_jax.bench import flops
from facenet_jax.bench.synthetic import SIZES
from facenet_jax.runtime.writers import write_json
from facenet_jax.step import used_losses

HOME = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = [
    f"configs/{name}.py"
    for name in (
        "wmveid863",
        "wmveid863_baseline",
        "wmveid863_official",
        "rgbnt100",
        "msvr310",
        "demo",
        "demo_baseline",
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
"""Field of a row: (heading, unit). FLOPs and seconds are for one triplet."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", default=CONFIGS, help="config files; default: all")
    parser.add_argument("--measure", action="store_true", help="measure time and memory here")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the rows to")
    parser.add_argument("--chunks", type=int, default=10, help="timed calls of each measurement")
    options, rest = parser.parse_known_args(arguments)
    try:
        if rest and not options.measure:
            raise UserError(f"{rest[0]} is no option without --measure.", 2)
        rows = {}
        for file in options.configs:
            rows[file] = counted(load(file))
            if options.measure:
                extra = [f"--chunks={options.chunks}", *rest]
                rows[file] |= measured(file, rows[file], extra)
        print(table(rows))
        if options.json:
            write_json(options.json, rows)
    except UserError as error:
        print(f"{pathlib.Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def load(file: str) -> ml_collections.ConfigDict:
    """The config of a file, whose path may start at the project's root."""
    path = pathlib.Path(file) if pathlib.Path(file).is_file() else HOME / file
    if not path.is_file():
        raise UserError(f"The config file {file} does not exist; the recipes are in configs/.", 2)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def counted(config: ml_collections.ConfigDict) -> dict[str, int]:
    """Parameters of the network, those that an embedding needs, and FLOPs of one triplet."""
    if config.data.name not in SIZES:
        raise UserError(
            f"config.data.name is '{config.data.name}', whose identities are not known here; name "
            f"one of {', '.join(SIZES)}."
        )
    identities, image_size = SIZES[config.data.name].identities, config.data.image_size
    model = models.build(config.model, image_size, identities)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    parts = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for name, tree in shapes.items()
    }
    used = {"trunk", "last"} | ({"mfmp"} if config.model.fce.enabled else set())
    used |= {"neck"} if config.model.neck_feature == "after" else set()
    training = flops.training(config.model, image_size, identities, used_losses(config))
    return {
        "parameters": sum(parts.values()),
        "embedding_parameters": sum(n for name, n in parts.items() if name in used),
        "training_flops": sum(training.values()),
        "embedding_flops": sum(flops.embedding(config.model, image_size).values()),
    }


def measured(file: str, row: dict[str, int], options: list[str]) -> dict[str, Any]:
    """Seconds for one triplet and peak memory in bytes, of training and of embedding.

    `memory_of` is "device", or "process" where devices do not tell, as CPUs.
    """
    found = {}
    for what, name in (("train", "training"), ("embed", "embedding")):
        result = benchmark(file, what, options)
        if result["flops_per_triplet"] != row[f"{name}_flops"]:
            raise UserError(
                f"{' '.join(options)} change the network of {file}, {row[f'{name}_flops']} to "
                f"{result['flops_per_triplet']} FLOPs: measure a config file of its own.",
                2,
            )
        memory = result["memory"]
        device = memory["device_peak"] is not None
        found |= {
            f"{name}_seconds": 1 / result["rate"],
            f"{name}_memory": memory["device_peak" if device else "process_peak"],
            f"{name}_batch": result["batch"],
            "dtype": result["config"]["model"]["dtype"],
            "memory_of": "device" if device else "process",
            "devices": result["devices"],
        }
    return found


def benchmark(file: str, what: str, options: list[str]) -> dict[str, Any]:
    """The result of scripts/benchmark.py in a process of its own, so that memory is its own.

    What it prints goes to stderr: the table stands alone on stdout.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "result.json"
        path = str(pathlib.Path(file).resolve() if pathlib.Path(file).is_file() else HOME / file)
        command = [sys.executable, str(HOME / "scripts" / "benchmark.py"), f"--config={path}"]
        command += [f"--what={what}", f"--json={target}", *options]
        process = subprocess.run(command, stdout=sys.stderr, check=False)
        if process.returncode:
            raise UserError(f"{' '.join(command[1:])} failed; its own words are above.")
        return json.loads(target.read_text())


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows in Markdown, with the columns that they have."""
    shown = [name for name in COLUMNS if any(name in row for row in rows.values())]
    lines = ["| config | " + " | ".join(COLUMNS[name][0] for name in shown) + " |"]
    lines.append("|---" * (len(shown) + 1) + "|")
    for file, row in rows.items():
        cells = [f"{row[name] / COLUMNS[name][1]:.4g}" for name in shown]
        lines.append(" | ".join([f"| {pathlib.Path(file).stem}", *cells]) + " |")
    notes = {
        f"{row['dtype']}, batch {row['training_batch']} in training and {row['embedding_batch']} "
        f"in embedding, memory of the {row['memory_of']}, {', '.join(row['devices'])}"
        for row in rows.values()
        if "dtype" in row
    }
    return "\n".join([*lines, *(f"\nMeasured: {note}." for note in sorted(notes))])


if __name__ == "__main__":
    sys.exit(main())
