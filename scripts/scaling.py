"""What one training step costs each of 1 to 256 devices, read from the compiled programs.

python scripts/scaling.py [--config configs/wmveid863.py] [--devices 1,2,4,...] [--batch 32]
    [--weak] [--divided] [--json FILE]

Nothing runs: the program is compiled for so many virtual CPU devices, in float32. `--batch` is the
whole batch, or each device's with `--weak`; `--divided` divides the state (train.shard_state). XLA
counts a loop once, so the layers are unrolled, in networks of 2 and 3 layers: what the third adds,
every further one adds too.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import sys

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from facenet_jax import models, optim
from facenet_jax.bench import synthetic
from facenet_jax.bench.collectives import KINDS, collectives
from facenet_jax.models import vit
from facenet_jax.step import Resident, Schedule, initial_state, make_chunk, state_sharding

MOST = 256
"""Virtual devices, at most."""


def lowered(config: ml_collections.ConfigDict, batch: int, mesh: Mesh) -> jax.stages.Lowered:
    """One training step of `config` on shapes alone."""
    size = synthetic.SIZES[config.data.name]
    model = models.build(config.model, config.data.image_size, size.identities)
    optimizer = optim.optimizer(config.optim)

    def shape(like: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)

    whole = NamedSharding(mesh, P())

    def everywhere(*lengths: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(lengths, dtype, sharding=whole)

    state = jax.eval_shape(functools.partial(initial_state, model, optimizer, 0))
    state = jax.tree.map(shape, state, state_sharding(state, config, mesh))
    n = size.train
    images = (everywhere(n, *config.data.image_size, 3, dtype=np.uint8),) * len(model.bands)
    labels = (everywhere(n), everywhere(n), everywhere(n), everywhere(n, 2, dtype=bool))
    schedule = Schedule(everywhere(100, 3, batch), everywhere(100, 2, dtype=np.float32))
    chunk = make_chunk(model, optimizer, config, mesh)
    return chunk.lower(state, Resident(images, *labels), schedule, everywhere())


def costs(config: ml_collections.ConfigDict, batch: int, devices: int) -> dict[str, float]:
    """Of one step on each of `devices`: GFLOPs, and gigabytes sent by kind of collective."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    found = []
    for depth in (2, 3):
        c = config.copy_and_resolve_references()
        c.model.dtype, c.model.remat, c.model.unroll = "float32", "none", 0
        if c.model.variant:
            c.model.update(vit.VARIANTS[c.model.variant], variant="")
        layers, c.model.depth = c.model.depth, depth
        program = lowered(c, batch, mesh).compile()
        moved = collectives(program.as_text())
        found.append(
            {"GFLOP": program.cost_analysis()["flops"] / 1e9}
            | {k: sum(x.sent(devices) for x in moved if x.kind == k) / 1e9 for k in KINDS}
        )
    two, three = found
    return {name: two[name] + (layers - 2) * (three[name] - two[name]) for name in two}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 after the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/wmveid863.py")
    parser.add_argument("--devices", default="1,2,4,8,16,32,64,128,256")
    parser.add_argument("--batch", type=int, default=32, help="triplets, of all devices together")
    parser.add_argument("--weak", action="store_true", help="--batch is that of each device")
    parser.add_argument("--divided", action="store_true", help="divide the state over the devices")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args(arguments)
    spec = importlib.util.spec_from_file_location("config", options.config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.train.shard_state = options.divided
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
    return 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", MOST)
    sys.exit(main())
