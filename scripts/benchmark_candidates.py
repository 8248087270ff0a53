"""Variants of the training step and its parts against the present ones, as ratios of times.

python scripts/benchmark_candidates.py [--rounds 7] [--steps 2]
    [--variant Ti] [--depth 12] [--image_size 128 64] [--batch 4 2]

Every round runs all of them once, so that a machine of changing speed does not favour one. The
first line is the base: float32, a plain loop over layers, no rematerialisation.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import _checkout  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np

from configs import wmveid863
from facenet_jax import models
from facenet_jax.bench import synthetic, timing
from facenet_jax.models import vit
from facenet_jax.models.layers import plain_block
from facenet_jax.run import trace_step, training_images
from facenet_jax.runtime import script
from facenet_jax.runtime.arguments import image_size
from facenet_jax.step import make_chunk

MODEL = {
    "base": {},
    "dtype bfloat16": {"dtype": "bfloat16"},
    "unroll 2": {"unroll": 2},
    "unroll all": {"unroll": 0},
    "remat dots": {"remat": "dots"},
    "remat full": {"remat": "full"},
}
"""Changes of config.model, one candidate each."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A call to time, and what compiling it took."""

    call: Callable[[], Any]
    compile_seconds: float | None = None
    temporaries: int | None = None  # bytes


def main() -> None:
    """Print one line for each candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="training steps of a call")
    parser.add_argument("--variant", default="Ti", choices=vit.VARIANTS)
    parser.add_argument("--depth", type=int, help="layers, instead of the variant's")
    parser.add_argument("--image_size", type=image_size, default=(128, 64), metavar="H,W")
    parser.add_argument("--batch", type=int, nargs=2, default=(4, 2), metavar=("P", "K"))
    options = parser.parse_args()
    candidates = {name: trained(options, changes) for name, changes in MODEL.items()}
    compare("training steps", candidates, options.rounds)
    compare("20 steps", dispatches(options), options.rounds)
    donation(options)
    for title, parts in (("last block", blocks(options)), ("q, k, v", projections(options))):
        compare(title, parts, 4 * options.rounds)


def config_of(options: argparse.Namespace, changes: dict[str, Any]):
    """WMVeID863's recipe in the size of `options`."""
    c = wmveid863.get_config()
    c.data.image_size = tuple(options.image_size)
    size = vit.VARIANTS[options.variant]
    size = size | {"depth": options.depth or size["depth"], "variant": "", "dtype": "float32"}
    c.model.update(size | changes)
    c.train.identities_per_batch, c.train.samples_per_identity = options.batch
    return c


def trained(options: argparse.Namespace, changes: dict[str, Any]) -> Candidate:
    """A call of `options.steps` training steps."""
    training = compiled(options, changes, options.steps)
    temporaries = training.program.compiled.memory_analysis().temp_size_in_bytes
    call = functools.partial(training.steps, options.steps, lambda _: training.data)
    return Candidate(call, training.program.compile_seconds, temporaries)


def dispatches(options: argparse.Namespace) -> dict[str, Candidate]:
    """The same 20 steps by one call of a program and by 20."""
    training = compiled(options, {}, 20)

    def call(times: int) -> jax.Array:
        for _ in range(times):
            loss = training.steps(20 // times, lambda _: training.data)
        return loss

    return {
        "1 dispatch": Candidate(lambda: call(1)),
        "20 dispatches": Candidate(lambda: call(20)),
    }


def compiled(options: argparse.Namespace, changes: dict[str, Any], steps: int) -> timing.Training:
    """The compiled training."""
    config = config_of(options, changes)
    config.train.steps_per_dispatch = steps
    run = synthetic.run(config, 1000 * steps, train=True, test=False)
    return timing.Training(run, training_images(run))


def compare(title: str, candidates: dict[str, Candidate], rounds: int) -> None:
    """Time all in alternation; print times over those of the first, medians and quartiles.

    Processor time as well, which on a CPU is little disturbed by other programs.
    """
    taken = {name: [] for name in candidates}
    for i in range(rounds + 1):
        for name, candidate in candidates.items():
            work = time.process_time()
            (wall,) = timing.timed(candidate.call, 1)
            if i:  # the first round warms up
                taken[name].append((wall, time.process_time() - work))
    first = np.array(next(iter(taken.values())))
    print(f"\n{title}, {rounds} rounds: (time, processor time) / those of the first", flush=True)
    for name, pairs in taken.items():
        low, middle, high = np.quantile(np.array(pairs) / first, (0.25, 0.5, 0.75), axis=0)
        line = f"{name:14}"
        for which in (0, 1):
            line += f"{middle[which]:6.2f} ({low[which]:.2f} to {high[which]:.2f})"
        line += f"{1e3 * np.median(pairs, axis=0)[0]:10.2f} ms"
        candidate = candidates[name]
        if candidate.compile_seconds:
            line += f"  compiled in {candidate.compile_seconds:5.1f} s"
            line += f"  temporaries {candidate.temporaries / 2**20:7.1f} MiB"
        print(line, flush=True)


def donation(options: argparse.Namespace) -> None:
    """Print the memory of a step that donates its state, and of one that keeps it."""
    training = compiled(options, {}, 1)
    run = training.run
    chunk = make_chunk(run.model, run.optimizer, run.groups, run.config, run.mesh).__wrapped__
    arguments = (training.state, training.data, run.schedule)
    lowered = {
        "donated": trace_step(run, *arguments).lower(),
        "kept": jax.jit(chunk).lower(*arguments, np.int32(1)),
    }
    for name, program in lowered.items():
        holds = program.compile().memory_analysis()
        new = holds.output_size_in_bytes - holds.alias_size_in_bytes + holds.temp_size_in_bytes
        print(f"state {name:10} {new / 2**20:8.1f} MiB beside the arguments", flush=True)


def differentiated(function: Callable, *arguments: Any) -> Candidate:
    """The value and all gradients of a function's sum, compiled."""
    start = time.perf_counter()
    gradient = jax.grad(lambda *a: jnp.sum(function(*a)), argnums=tuple(range(len(arguments))))
    program = jax.jit(gradient).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    temporaries = program.memory_analysis().temp_size_in_bytes
    return Candidate(lambda: program(*arguments), seconds, temporaries)


def last_block(options: argparse.Namespace) -> tuple[jax.Array, dict[str, Any], int]:
    """(tokens [B, T, D] of one modality, the parameters of its last block, heads)."""
    config = config_of(options, {})
    size, model = vit.size(config.model), models.build(config.model, synthetic.spec(config.data))
    rows, columns = vit.grid(options.image_size, config.model.patch, config.model.patch)
    shape = (options.batch[0] * options.batch[1], 1 + rows * columns, size["width"])
    block = jax.jit(model.init)(jax.random.key(0))["params"]["last"]["block"]
    block = jax.tree.map(lambda leaf: leaf[0], block)  # of the first modality
    return jax.random.normal(jax.random.key(0), shape), block, size["heads"]


def blocks(options: argparse.Namespace) -> dict[str, Candidate]:
    """The last block for all tokens, and for the class token alone."""
    x, params, heads = last_block(options)
    found = {}
    for name, alone in (("whole", False), ("class token", True)):

        def apply(params, x, alone=alone):
            return plain_block(params, x, heads, class_only=alone)[:, :1]

        found[name] = differentiated(apply, params, x)
    return found


def projections(options: argparse.Namespace) -> dict[str, Candidate]:
    """q, k and v by one product of three times the width, or by three."""
    x, params, _ = last_block(options)
    dense, width = params["qkv"], x.shape[-1]

    def fused(dense, x):
        return jnp.square(x @ dense["kernel"] + dense["bias"])

    def three(dense, x):
        parts = [slice(i * width, (i + 1) * width) for i in range(3)]
        return sum(jnp.square(x @ dense["kernel"][:, p] + dense["bias"][p]) for p in parts)

    return {"fused": differentiated(fused, dense, x), "three": differentiated(three, dense, x)}


if __name__ == "__main__":
    sys.exit(script.run(main))
