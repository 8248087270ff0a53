"""What a program of a config would cost on a TPU slice, by the slice's own compiler; nothing runs.

Times and shares are the estimate of the compiler's cost model (libtpu), not a measurement.
"""

import dataclasses
import functools
import importlib.metadata
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from facenet_jax import config as configs
from facenet_jax import run as runs
from facenet_jax.bench import hlo, slices, synthetic, timing
from facenet_jax.inputs import dataset as datasets
from facenet_jax.inputs.device import DeviceSplit, tiled
from facenet_jax.inputs.stream import shapes
from facenet_jax.models import vit
from facenet_jax.run import Run
from facenet_jax.runtime import memory
from facenet_jax.runtime.mesh import check_divides, make_mesh
from facenet_jax.step import embedding_batch, make_extract, schedule

PEAK_SIDE = 4096
"""Of the square bfloat16 product whose estimate is taken as the peak; larger ones are slower."""

LIMIT = re.compile(r"exceeds available HBM \(([\d.]+)G\)")


@dataclasses.dataclass(frozen=True)
class Target:
    """A slice as its compiler knows it."""

    name: str
    mesh: Mesh
    chip: slices.Chip
    limit: int  # bytes of memory of one device
    peak: float  # FLOP/s of one device in bfloat16, by the estimate for a large product
    compiler: str  # of which version every figure is

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.mesh.size


@functools.cache
def target(name: str) -> Target:
    """A slice, with the memory limit and the peak that its compiler states; compiles for seconds.

    Raises UserError for a slice that is not known, and where libtpu is not installed.
    """
    mesh, chip = slices.mesh(name), slices.chip(name)
    whole = NamedSharding(mesh, P())
    try:  # much more than any chip has: the refusal names the limit
        huge = jax.ShapeDtypeStruct((1 << 38,), jnp.float32, sharding=whole)
        jax.jit(lambda x: x + 1).lower(huge).compile()
        raise AssertionError("a terabyte fitted")
    except jax.errors.JaxRuntimeError as error:
        limit = int(float(LIMIT.search(str(error))[1]) * 2**30)
    square = jax.ShapeDtypeStruct((PEAK_SIDE, PEAK_SIDE), jnp.bfloat16, sharding=whole)
    product = jax.jit(jnp.matmul).lower(square, square).compile()
    cycles = sum(cost.cycles for cost in hlo.Program(product.as_text()).costs)
    return Target(
        name=name,
        mesh=mesh,
        chip=chip,
        limit=limit,
        peak=2 * PEAK_SIDE**3 / (cycles / chip.clock),
        compiler=f"libtpu {importlib.metadata.version('libtpu')}",
    )


def placed(tree: Any, mesh: Mesh) -> Any:
    """The shapes of a tree of arrays (or shapes), each complete on every device of a mesh."""
    whole = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)


def open_run(config: ml_collections.ConfigDict, what: str, on: Target) -> tuple[Run, DeviceSplit]:
    """(the run of a config for a slice, the shapes of the data that its program reads)."""
    configs.check(config)
    config, train = as_on_a_tpu(config), what == "train"
    dataset = synthetic.load(config.data, training=train, test=not train, pixels=False)
    run = runs.assemble(
        config, dataset, mesh=first_cpu(), spec=synthetic.spec(config.data), training=train
    )
    batch = run.plan.batch if train else embedding_batch(config, on.devices)
    check_divides("The batch", batch, on.mesh)
    total = datasets.image_bytes(dataset, config, train)[0]
    streams = memory.streamed(config.data, total, on.limit)
    splits = [dataset.split(name) for name in (("train",) if train else ("query", "gallery"))]
    labels = runs.on_devices(dataclasses.replace(run, streams=True), *splits)[0]
    run = dataclasses.replace(run, mesh=on.mesh, streams=streams)
    data = dataclasses.replace(labels, labels=placed(labels.labels, on.mesh))
    if streams:
        length = config.train.steps_per_dispatch if train else 1
        return run, shapes(data, length, batch, on.mesh)
    counts = [sum(len(split.images[m]) for split in splits) for m in dataset.modalities]
    size = tuple(config.data.image_size)
    tiles = tiled(size, on.mesh)
    images = [jax.ShapeDtypeStruct((count, *(tiles or (*size, 3))), np.uint8) for count in counts]
    images = tuple(placed(images, on.mesh))
    return run, dataclasses.replace(data.labels, images=images, size=size if tiles else None)


def as_on_a_tpu(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with what a model chooses by the kind of device as it is on a TPU."""
    config = config.copy_and_resolve_references()
    if "unroll" in config.model:
        config.model.unroll = vit.layers_at_once(config.model.unroll, "tpu")
    return config


def first_cpu() -> Mesh:
    """A mesh of one device of this machine, to put a run together on."""
    mesh = make_mesh()
    return Mesh(mesh.devices.ravel()[:1], mesh.axis_names, axis_types=mesh.axis_types)


def estimate(config: ml_collections.ConfigDict, what: str, on: Target) -> dict[str, Any]:
    """The figures of one program of a config, "train" or "embed", on a slice.

    With "fits" False there is but the compiler's sentence, in "refused".
    """
    run, data = open_run(config, what, on)
    start = time.perf_counter()
    known = {"what": what, "slice": on.name, "devices": on.devices, "compiler": on.compiler}
    known |= {"memory_limit": on.limit, "peak_flops_per_second": on.peak}
    try:
        if what == "train":
            batch, steps = run.plan.batch, config.train.steps_per_dispatch
            plan = placed(schedule(run.plan.rows, run.rates), on.mesh)
            state = runs.state_shapes(run)
            remat, compiled = runs.fitted_step(run, state, data, plan, limit=on.limit)
            known["training_steps"] = len(run.plan.epoch)
            known["remat"] = remat or config.model.get("remat", "")
        else:
            batch, steps = embedding_batch(config, on.devices), 1
            variables = placed(runs.state_shapes(run).variables, on.mesh)  # as `embed.whole`
            rows = np.zeros((len(run.dataset.modalities), batch), np.int32)
            arguments = placed((rows, np.ones(batch, bool)), on.mesh)
            extract = make_extract(run.model, on.mesh, run.dataset.modalities)
            compiled = extract.lower(variables, data, *arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return known | {"fits": False, "refused": str(error).splitlines()[0]}
    known["compile_seconds"] = time.perf_counter() - start
    flops = sum(timing.model_flops(config, run.model.spec, train=what == "train").values())
    program = hlo.Program(compiled.as_text(), steps)
    return known | bytes_held(compiled, on) | times(program, batch, steps, flops, on)


def bytes_held(compiled: jax.stages.Compiled, on: Target) -> dict[str, Any]:
    """What a program needs on one device by kind, and whether it is there."""
    found = compiled.memory_analysis()
    held = {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "program": found.generated_code_size_in_bytes,
    }
    return {"bytes": held, "fits": sum(held.values()) <= on.limit}


def times(program: hlo.Program, batch: int, steps: int, flops: int, on: Target) -> dict[str, Any]:
    """Estimated seconds of a step and where they go, of a program that does `steps` of them."""
    costs, clock = program.costs, on.chip.clock * steps
    total = sum(cost.cycles for cost in costs)
    seconds, background = total / clock, program.background() / steps
    sent = [(one, runs_ / steps) for one, runs_ in program.collectives()]
    by_kind: dict[str, float] = {}
    for one, often in sent:
        by_kind[one.kind] = by_kind.get(one.kind, 0.0) + often * one.sent(on.devices)
    return {
        "batch": batch,
        "step_seconds": seconds,
        "samples_per_second": batch / seconds,
        "flops_per_sample": flops,
        "share_of_peak": flops * batch / on.devices / seconds / on.peak,
        "moves_share": sum(cost.cycles for cost in costs if cost.moves) / total,
        "background_bytes": background,
        "background_seconds": background / on.chip.memory,
        "stacks_share": sum(cost.cycles for cost in costs if cost.takes) / total,
        "kernels_without_estimate": sum(
            cost.instruction.opcode == "custom-call" and "tpu_custom_call" in cost.instruction.text
            for cost in costs
        ),
        "collective_bytes": by_kind,
        "collective_seconds": sum(by_kind.values()) / on.chip.link,
        "costliest": [
            {
                "share": cost.cycles / total,
                "seconds": cost.cycles / clock,
                "runs": cost.times,
                "source": cost.source,
                "operation": cost.instruction.operation,
                "result": cost.instruction.text.split(" ", 1)[0].partition("{")[0].strip("("),
                "moves": cost.moves,
            }
            for cost in sorted(costs, key=lambda cost: -cost.cycles)[:10]
        ],
    }


def report(found: Mapping[str, Any]) -> str:
    """The figures for a person."""
    by = f"by the estimate of {found['compiler']}"
    head = f"{found['what']} on {found['slice']} ({found['devices']} devices), {by}:"
    limit = memory.size(found["memory_limit"])
    if "bytes" not in found:
        return f"{head}\n  DOES NOT FIT in {limit} a device: {found['refused']}"
    held = found["bytes"]
    words = ", ".join(f"{name} {memory.size(amount)}" for name, amount in held.items())
    fits = "fits" if found["fits"] else "DOES NOT FIT"
    remat = f"; config.model.remat {found['remat']}" if found.get("remat") else ""
    step, peak = 1e3 * found["step_seconds"], found["peak_flops_per_second"] / 1e12
    lines = [
        head,
        f"  {fits}: {memory.size(sum(held.values()))} of {limit} a device ({words}){remat}",
        f"  {step:.1f} ms a step of {found['batch']} without collectives: "
        f"{found['samples_per_second']:.0f} samples/s",
        f"  {100 * found['share_of_peak']:.1f} % of the {peak:.0f} TFLOP/s of a device that it "
        f"estimates for a bfloat16 product of {PEAK_SIDE}^3",
        f"  copies and changes of layout: {100 * found['moves_share']:.1f} % of the estimate; "
        f"entries of layers taken out of stacks: {100 * found['stacks_share']:.1f} %",
    ]
    if found["background_bytes"]:
        lines.append(
            f"  copied in the background: {memory.size(found['background_bytes'])} a step, "
            f"{1e3 * found['background_seconds']:.1f} ms at the bandwidth of the memory, not "
            "counted above"
        )
    if "training_steps" in found:
        hours = found["training_steps"] * found["step_seconds"] / 3600
        lines.append(f"  the {found['training_steps']} steps of the run: {hours:.2f} h")
    if found["collective_bytes"]:
        sent = (f"{kind} {memory.size(n)}" for kind, n in found["collective_bytes"].items())
        lines.append(
            f"  each device sends {', '.join(sent)} a step: "
            f"{1e3 * found['collective_seconds']:.1f} ms at the bandwidth of its links, which may "
            "overlap with the rest"
        )
    if found["kernels_without_estimate"]:
        lines.append(f"  {found['kernels_without_estimate']} kernels have no estimate: not counted")
    lines.append(f"  compiled in {found['compile_seconds']:.0f} s; the ten costliest operations:")
    for one in found["costliest"]:
        moves = ", a copy" if one["moves"] else ""
        lines.append(
            f"  {100 * one['share']:5.1f} %  {one['source'] or 'no line of ours'}: "
            f"{one['operation'].rpartition('/')[2] or '-'} to {one['result']}{moves}"
        )
    return "\n".join(lines)
