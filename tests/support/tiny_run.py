"""A run whose steps take milliseconds; also a config: --config tests/support/tiny_run.py."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import common
from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE, Protocol, Split
from facenet_jax import api, export, models
from facenet_jax import run as runs
from facenet_jax import train as training
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.inputs.device import DeviceSplit
from facenet_jax.runtime import mesh as meshes
from facenet_jax.runtime import workdir as workdirs
from facenet_jax.step import State, state_sharding
from facenet_jax.types import Batch, DataSpec

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = (32, 16)  # height, width: 4 x 2 patches
MODALITIES = (VISIBLE, NEAR_INFRARED, THERMAL)
FOLDERS = ("vis", "ni", "th")
IDENTITIES, SAMPLES = 8, 4
SPEC = DataSpec(MODALITIES, SIZE, IDENTITIES, {"camera": 1})


def get_config(model: str = "facenet") -> ml_collections.ConfigDict:
    """A model of width 16 and depth 2 on 32 x 16 pixels, batches of 4 x 2, epochs of 4 steps."""
    c = common.get_config(model)
    c.data.image_size = SIZE
    c.model.variant = ""
    c.model.width, c.model.depth, c.model.heads, c.model.patch = 16, 2, 2, 8
    c.model.pretrained = "none"
    if model == "facenet":  # masks that matter from the start
        c.model.fce.mask, c.model.fce.mask_bias = "soft", 0.0
    c.augment.pad = 2
    c.train.identities_per_batch, c.train.samples_per_identity = 4, 2
    c.train.epochs = 50
    c.train.steps_per_dispatch = 3
    c.train.evaluate_every = c.train.save_every = 0
    c.optim.learning_rate = 0.02
    c.optim.warmup = 1.0
    c.evaluate.batch = 8
    return c


def config(model: str = "facenet", **changes) -> ml_collections.ConfigDict:
    """The tiny config with changes such as model__fce__enabled=False."""
    c = get_config(model)
    c.update_from_flattened_dict({name.replace("__", "."): x for name, x in changes.items()})
    return c


def build(c: ml_collections.ConfigDict, spec: DataSpec = SPEC) -> models.Model:
    """The model of a config for tiny data."""
    return models.build(c.model, spec)


def pictures(identities: int, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [3, N, H, W, 3], flare bool [N, 2]): a colour for each identity, modality, and noise.

    Every sample is tinted at random, so that colour alone does not tell the identities apart.
    Every third visible and every fourth near-infrared picture has a saturated quarter.
    """
    rng = np.random.default_rng(seed)
    colour = rng.integers(80, 180, (3, identities, 1, 1, 1, 3))
    tint = rng.integers(-50, 51, (3, identities, samples, 1, 1, 3))
    images = colour + tint + rng.integers(-25, 26, (3, identities, samples, *SIZE, 3))
    images = images.reshape(3, -1, *SIZE, 3).astype(np.uint8)
    rows = np.arange(images.shape[1])
    flare = np.stack([rows % 3 == 0, rows % 4 == 1], axis=1)
    for modality in (0, 1):
        images[modality, flare[:, modality], :16, :8] = 255
    return images, flare


def split(images: dict[str, np.ndarray], identity: np.ndarray, rows=None, **labels) -> Split:
    """A split of arrays; complete unless `rows` [M, N] says otherwise. camera 0 unless given."""
    count = len(identity)
    if rows is None:
        rows = np.broadcast_to(np.arange(count, dtype=np.int32), (len(images), count))
    zero = np.zeros(count, np.int32)
    return Split(
        images=images,
        rows=rows,
        identity=np.asarray(identity, np.int32),
        identity_name=np.asarray(identity).astype(str),
        name=np.arange(count).astype(str),
        labels={
            "camera": zero,
            "scene": zero - 1,
            "flare": np.zeros((count, len(images)), bool),
            **labels,
        },
    )


def training_split(identities: int = IDENTITIES, seed: int = 0) -> Split:
    """Samples to train on; those of an identity are not neighbours."""
    images, flare = pictures(identities, SAMPLES, seed)
    order = np.random.default_rng(1).permutation(images.shape[1])
    identity = np.repeat(np.arange(identities, dtype=np.int32), SAMPLES)[order]
    flare = np.pad(flare[order], ((0, 0), (0, 1)))
    return split(dict(zip(MODALITIES, images[:, order], strict=True)), identity, flare=flare)


def dataset(identities: int = IDENTITIES, **splits: Split) -> Dataset:
    """A data set of arrays; query and gallery are other pictures unless given."""
    found = {"train": training_split(identities), "gallery": training_split(4, seed=5), **splits}
    found.setdefault("query", found["gallery"])
    modalities = found["train"].modalities
    return Dataset("tiny", modalities, found, Protocol("tiny/none"), "memory")


def make_mesh(devices: int) -> jax.sharding.Mesh:
    """The first devices, as `runtime.mesh.make_mesh` would make a mesh of them."""
    return jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )


def small_demo(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`c`, a demo's config, for six steps on the tiny `tree`; the caller sets the model's sizes."""
    c.data.update(name="wmveid863", image_size=SIZE)
    c.model.variant = ""
    c.train.update(steps=6, identities_per_batch=4, samples_per_identity=2)
    c.train.update(evaluate_every=0, save_every=0, steps_per_dispatch=3)
    c.evaluate.update(batch=8, sanity_baselines=False, per_modality=False)
    c.augment.pad = 2
    return c


class Trainer:
    """A run on arrays, compiled once."""

    def __init__(
        self,
        c: ml_collections.ConfigDict,
        devices: int = 1,
        steps: int = 200,
        data: Dataset | None = None,
    ):
        c = c.copy_and_resolve_references()
        c.train.steps = steps
        self.config = c
        self.run_ = runs.assemble(c, data or dataset(), mesh=make_mesh(devices))
        self.mesh, self.model, self.optimizer = self.run_.mesh, self.run_.model, self.run_.optimizer
        self.data = runs.training_images(self.run_)
        self.schedule = self.run_.schedule
        self.program = runs.compile_step(self.run_, self.data)

    def start(self) -> State:
        """The state at step 0 on the devices, with the parameters of `variables`."""
        collections = variables(self.model)
        params = collections.pop("params")
        state = State(np.int32(0), params, collections, self.optimizer.init(params))
        return meshes.device_put(state, state_sharding(state, self.config, self.mesh))

    def chunk(self, state: State, data: DeviceSplit, count: int):
        """(the state after `count` more steps, their scalars)."""
        return self.program(state, data, count)

    def run(self, steps: int, state: State | None = None):
        """(the state after `steps` more steps, the scalars [steps] of each by name)."""
        state, done, logs = state or self.start(), 0, []
        while done < steps:
            count = min(steps - done, self.config.train.steps_per_dispatch)
            state, scalars = self.chunk(state, self.data, count)
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
    flare = np.pad(np.asarray(flare, bool), ((0, 0), (0, 1))).T
    labels = {"camera": jnp.zeros((3, size), jnp.int32), "flare": jnp.asarray(flare)}
    return Batch(images, identity, labels)


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
            for modality, folder in enumerate(FOLDERS):
                path = root / split / f"{identity:04d}" / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[modality, row]).save(path, quality=95)
    return root


BASELINE = pathlib.Path(__file__).with_name("tiny_baseline.py")
"""The config of three_stream, for runs of main.py that need not be FACENet's."""


def folder(root: pathlib.Path) -> pathlib.Path:
    """PNG files of the user's own to test with, under two cameras; none to train with."""
    for split, seed, cameras in (("query", 301, (1,)), ("gallery", 302, (1, 2))):
        images, _ = pictures(3, 2, seed=seed)
        for row, (identity, camera) in enumerate((i, c) for i in (7, 8, 9) for c in (1, 2)):
            for modality, name in enumerate(FOLDERS):
                path = root / split / str(identity) / name / f"shot_c{camera}_s4.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if camera in cameras:
                    Image.fromarray(images[modality, row]).save(path)
    return root


def command(*options: str, config: pathlib.Path | str = __file__) -> list[str]:
    """The command line of main.py on the tiny config, or on that of the workdir for ""."""
    cache = f"--compile_cache={ROOT / '.cache' / 'jax-tests'}"
    named = [f"--config={config}"] if config else []
    return [sys.executable, str(ROOT / "main.py"), *named, cache, *options]


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a child process with so many CPU devices."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def main(
    *options: str, devices: int = 1, config: pathlib.Path | str = __file__, **keywords
) -> subprocess.CompletedProcess:
    """main.py run to its end on the tiny config."""
    return subprocess.run(
        command(*options, config=config),
        env=environment(devices),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        **keywords,
    )


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the loop catches it."""


@contextlib.contextmanager
def on(devices: int):
    """Inside, `open_run` uses the first devices of this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_mesh", lambda: make_mesh(devices))
        yield


def train(
    c: ml_collections.ConfigDict, workdir, stop_at: int = 0, end=None, devices: int = 1, **keywords
) -> dict | None:
    """Train in this process; the content of result.json.

    At the chunk number `stop_at` SIGTERM has come, or `end` is raised. `keywords` go to `train`.
    """
    chunks = []

    def requested(self) -> bool:
        chunks.append(1)
        if len(chunks) == stop_at and end:
            raise end
        return len(chunks) == stop_at

    with pytest.MonkeyPatch.context() as patch, workdirs.locked(workdir), on(devices):
        patch.setattr(training.Preemption, "requested", requested)
        return training.train(c.copy_and_resolve_references(), workdir, **keywords)


def trained(place: pathlib.Path, workdir: pathlib.Path, **changes) -> dict:
    """The result of three_stream trained for 3 steps on a `tree` made in `place`."""
    c = config("three_stream", **{"train__steps": 3, **changes})
    c.data.root, c.data.prepared = str(tree(place / "tree")), str(place / "prepared")
    return train(c, workdir)


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def resumed_and_exported(c: ml_collections.ConfigDict, place: pathlib.Path, folder: pathlib.Path):
    """Asserts that a run stopped after a chunk goes on bit-equal, and that its network exports.

    `place` has the tiny `tree`; `c` trains 6 steps in chunks of 3.
    """
    c.data.root, c.data.prepared = str(place / "tree"), str(place / "prepared")
    with jax.numpy_dtype_promotion("standard"):  # which optax.scale_by_adam needs
        whole = train(c, folder / "whole")
        assert train(c, folder / "cut", stop_at=1) is None
        cut = train(c, folder / "cut")
        assert whole["last"] == cut["last"]
        one, other = (api.load(folder / run) for run in ("whole", "cut"))
        jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
        losses = [line["train/loss"] for line in metrics(folder / "whole") if "train/loss" in line]
        assert len(losses) == 6
        assert np.isfinite(losses).all()
        (written,) = export.write(one, folder)
    assert written.difference < 1e-5
