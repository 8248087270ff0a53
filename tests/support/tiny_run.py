"""A run whose steps take milliseconds. Also a config: main.py --config tests/tiny.py."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from configs import common
from facenet_jax import models, optim
from facenet_jax.inputs import sampler
from facenet_jax.runtime import mesh as meshes
from facenet_jax.step import Resident, Schedule, State, make_chunk, state_sharding
from facenet_jax.types import Batch

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = (32, 16)  # height, width: 4 x 2 patches
BANDS = ("vis", "ni", "th")
IDENTITIES, SAMPLES = 8, 4


def get_config() -> ml_collections.ConfigDict:
    """FACENet of width 16 and depth 2 on 32 x 16 pixels, batches of 4 x 2, epochs of 4 steps."""
    c = common.get_config()
    c.data.image_size = SIZE
    c.model.variant = ""
    c.model.width, c.model.depth, c.model.heads, c.model.patch = 16, 2, 2, 8
    c.model.pretrained = "none"
    c.model.fce.mask, c.model.fce.mask_bias = "soft", 0.0  # so that masks matter from the start
    c.augment.pad = 2
    c.train.identities_per_batch, c.train.samples_per_identity = 4, 2
    c.train.epochs = 50
    c.train.steps_per_dispatch = 3
    c.train.evaluate_every = c.train.save_every = 0
    c.optim.learning_rate = 0.02
    c.optim.warmup = 1.0
    c.evaluate.batch = 8
    return c


def config(**changes) -> ml_collections.ConfigDict:
    """The tiny config with changes such as model__fce__enabled=False."""
    c = get_config()
    c.update_from_flattened_dict({name.replace("__", "."): x for name, x in changes.items()})
    return c


def pictures(identities: int, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [3, N, H, W, 3], flare bool [N, 2]): a colour for each identity and band, and noise.

    Every triplet is tinted at random, so that colour alone does not tell the identities apart.
    Every third visible and every fourth near-infrared picture has a saturated quarter.
    """
    rng = np.random.default_rng(seed)
    colour = rng.integers(80, 180, (3, identities, 1, 1, 1, 3))
    tint = rng.integers(-50, 51, (3, identities, samples, 1, 1, 3))
    images = colour + tint + rng.integers(-25, 26, (3, identities, samples, *SIZE, 3))
    images = images.reshape(3, -1, *SIZE, 3).astype(np.uint8)
    rows = np.arange(images.shape[1])
    flare = np.stack([rows % 3 == 0, rows % 4 == 1], axis=1)
    for band in (0, 1):
        images[band, flare[:, band], :16, :8] = 255
    return images, flare


def resident(mesh: jax.sharding.Mesh, identities: int = IDENTITIES) -> Resident:
    """A training split on the devices of `mesh`; rows of an identity are not neighbours."""
    images, flare = pictures(identities, SAMPLES)
    order = np.random.default_rng(1).permutation(images.shape[1])
    identity = np.repeat(np.arange(identities, dtype=np.int32), SAMPLES)[order]
    zero = np.zeros_like(identity)
    return meshes.replicate(
        Resident(tuple(images[:, order]), identity, zero, zero - 1, flare[order]), mesh
    )


def make_mesh(devices: int) -> jax.sharding.Mesh:
    """The first devices, as `facenet_jax.mesh.make_mesh` would make a mesh of them."""
    return jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )


class Trainer:
    """What a run compiles and reads, without files."""

    def __init__(self, c: ml_collections.ConfigDict, devices: int = 1, steps: int = 200):
        self.config, self.mesh = c, make_mesh(devices)
        self.model = models.build(c.model, c.data.image_size, IDENTITIES)
        self.optimizer = optim.optimizer(c.optim)
        self.data = resident(self.mesh)
        plan = sampler.pk_plan(
            np.asarray(self.data.identity),
            seed=c.seed,
            p=c.train.identities_per_batch,
            k=c.train.samples_per_identity,
            epochs=0,
            steps=steps,
        )
        rows = np.broadcast_to(plan.rows[:, None], (steps, 3, plan.rows.shape[1]))
        rates = optim.rate_table(c.optim, plan.epoch, c.train.epochs)
        self.schedule = meshes.replicate(Schedule(rows, rates), self.mesh)
        self.chunk = make_chunk(self.model, self.optimizer, c, self.mesh)

    def start(self) -> State:
        """The state at step 0 on the devices, with the parameters of `variables`."""
        collections = variables(self.model)
        params = collections.pop("params")
        state = State(np.int32(0), params, collections, self.optimizer.init(params))
        return meshes.put(state, state_sharding(state, self.config, self.mesh))

    def count(self, steps: int) -> jax.Array:
        """A number of steps, on the devices."""
        return meshes.replicate(np.int32(steps), self.mesh)

    def run(self, steps: int, state: State | None = None):
        """(the state after `steps` more steps, the scalars [steps] of each by name)."""
        state, done, logs = state or self.start(), 0, []
        while done < steps:
            count = min(steps - done, self.config.train.steps_per_dispatch)
            state, scalars = self.chunk(state, self.data, self.schedule, self.count(count))
            logs.append({name: np.asarray(x)[:count] for name, x in scalars.items()})
            done += count
        return state, {name: np.concatenate([log[name] for log in logs]) for name in logs[0]}


def batch(size: int = 6, seed: int = 0, flare=None, image_size=SIZE) -> Batch:
    """A batch of noise for a model; `flare` [size, 2] or a mix."""
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(-1, 1, (3, size, *image_size, 3)), jnp.float32)
    identity = jnp.asarray(np.arange(size) // 2, jnp.int32)
    if flare is None:
        flare = np.stack([np.arange(size) % 2 == 0, np.arange(size) % 3 == 0], axis=1)
    return Batch(images, identity, identity, identity, jnp.asarray(flare))


def draw(shapes, seed: int = 0):
    """Random parameters and statistics of these shapes, none of them zero, one or equal by design.

    Drawn by NumPy: compiling an `init` takes longer than most of the tests.
    """
    rng = np.random.default_rng(seed)

    def leaf(path, like):
        name, x = path[-1].key, rng.standard_normal(like.shape)
        if name in ("scale", "var"):
            x = np.exp(0.3 * x)
        elif name == "kernel":
            x = x / like.shape[-2] ** 0.5
        else:
            x = 0.3 * x
        return jnp.asarray(x, like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def variables(model: models.Model, seed: int = 0) -> dict:
    """Random variables of a model."""
    return draw(dict(jax.eval_shape(model.init, jax.random.key(0))), seed)


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> jax.Array:
    """Normal float32 numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


def tree(root: pathlib.Path) -> pathlib.Path:
    """JPEG files in WMVeID863's tree: 8 identities to train with, 4 to test with in three views."""
    for split, first, identities, samples, views in (
        ("train", 1, IDENTITIES, SAMPLES, (1, 2)),
        ("test", 101, 4, 3, (1, 2, 3)),
        ("query", 101, 4, 3, (1,)),
    ):
        images, _ = pictures(identities, samples, seed=first)
        for row in range(images.shape[1]):
            identity, sample = first + row // samples, row % samples
            view = 1 + sample % 3
            if view not in views and split == "query":
                continue
            name = f"{identity:04d}_v{view}_n1_s{sample:03d}_{sample:03d}.jpg"
            for band, folder in enumerate(BANDS):
                path = root / split / f"{identity:04d}" / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[band, row]).save(path, quality=95)
    return root


def command(*options: str) -> list[str]:
    """The command line of main.py on the tiny config."""
    cache = f"--compile_cache={ROOT / '.cache' / 'jax-tests'}"
    return [sys.executable, str(ROOT / "main.py"), f"--config={__file__}", cache, *options]


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a child process with so many CPU devices."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def main(*options: str, devices: int = 1, **keywords) -> subprocess.CompletedProcess:
    """main.py run to its end on the tiny config."""
    return subprocess.run(
        command(*options),
        env=environment(devices),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        **keywords,
    )


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
