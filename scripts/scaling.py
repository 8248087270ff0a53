"""What one training step costs each of 1 to 256 devices, read from the compiled programs.

python scripts/scaling.py [--config configs/wmveid863.py] [--devices 1,2,4,...] [--batch 32]
    [--weak] [--divided] [--json FILE]

Nothing runs: the program is compiled for that many virtual CPU devices, in float32. `--batch` is
the whole batch, or each device's with `--weak`; `--divided` divides the state (train.shard_state).
XLA counts a loop body once, so the layers are unrolled, in networks of 2 and 3 layers: each further
layer adds what the third does. A model without the option `depth` is compiled as it is.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

import _checkout  # noqa: F401
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from facenet_jax import config as configs
from facenet_jax import run as runs
from facenet_jax.bench import synthetic, timing
from facenet_jax.bench.collectives import KINDS, collectives
from facenet_jax.inputs.device import DeviceSplit
from facenet_jax.inputs.sampler import Plan
from facenet_jax.models import vit
from facenet_jax.runtime import script

MOST = 256
"""The most virtual devices that there can be."""


def lowered(config: ml_collections.ConfigDict, batch: int, mesh: Mesh) -> jax.stages.Lowered:
    """One training step of `config` on shapes of images and parameters alone."""
    dataset = synthetic.load(config.data, test=False, pixels=False)
    rows = np.zeros((100, len(dataset.modalities), batch), np.int32)
    plan = Plan(rows, np.ones(len(rows), np.int32))
    run = runs.assemble(config, dataset, mesh=mesh, spec=synthetic.spec(config.data), plan=plan)
    return runs.trace_step(run, runs.state_shapes(run), resident(run), run.schedule).lower()


def resident(run: runs.Run) -> DeviceSplit:
    """The training split with its labels on the devices, and shapes in place of its images."""
    split = run.dataset.split("train")
    data = runs.training_images(dataclasses.replace(run, streams=True))
    everywhere = NamedSharding(run.mesh, P())
    images = (
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=everywhere)
        for array in split.images.values()
    )
    return dataclasses.replace(data.labels, images=tuple(images))


def costs(config: ml_collections.ConfigDict, batch: int, devices: int) -> dict[str, float]:
    """GFLOPs of one step on each of `devices`, and gigabytes sent by kind of collective."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    config = timing.countable(config, dtype="float32", remat="none", unroll=0)
    if "depth" not in config.model:
        return cost(config, batch, mesh)
    layers = vit.size(config.model)["depth"]
    config.model.update(vit.size(config.model), variant="")
    found = []
    for depth in (2, 3):
        config.model.depth = depth
        found.append(cost(config, batch, mesh))
    two, three = found
    return {name: two[name] + (layers - 2) * (three[name] - two[name]) for name in two}


def cost(config: ml_collections.ConfigDict, batch: int, mesh: Mesh) -> dict[str, float]:
    """The same of a network as it is, in which a loop counts once."""
    program = lowered(config, batch, mesh).compile()
    moved = collectives(program.as_text())
    return {"GFLOP": program.cost_analysis()["flops"] / 1e9} | {
        kind: sum(x.sent(mesh.size) for x in moved if x.kind == kind) / 1e9 for kind in KINDS
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/wmveid863.py")
    parser.add_argument("--devices", default="1,2,4,8,16,32,64,128,256")
    parser.add_argument("--batch", type=int, default=32, help="samples, of all devices together")
    parser.add_argument("--weak", action="store_true", help="--batch is that of each device")
    parser.add_argument("--divided", action="store_true", help="divide the state over the devices")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args(arguments)
    config = script.load_config(options.config)
    config.train.shard_state = "always" if options.divided else "never"
    configs.check(config)
    rows = []
    print(f"{'devices':>8}{'batch':>8}{'GFLOP':>10}" + "".join(f"{kind:>20}" for kind in KINDS))
    for devices in (int(count) for count in options.devices.split(",")):
        batch = options.batch * devices if options.weak else options.batch
        row = {"devices": devices, "batch": batch} | costs(config, batch, devices)
        rows.append(row)
        sent = "".join(f"{row[kind]:>17.4f} GB" for kind in KINDS)
        print(f"{devices:>8}{batch:>8}{row['GFLOP']:>10.1f}{sent}", flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", MOST)
    sys.exit(script.run(main))
