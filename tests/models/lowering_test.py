"""The programs for TPU and GPU, as far as a machine with neither can see: lowered, not compiled."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from configs import wmveid863
from facenet_jax import models, optim, step
from facenet_jax.inputs.device import DeviceSplit
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny

CONFIG = wmveid863.get_config()  # the real size; nothing is computed
SPEC = DataSpec(tiny.MODALITIES, tuple(CONFIG.data.image_size), 603, {"camera": 9})
SAMPLES, STEPS = 3481, 100
PRODUCT = re.compile(
    r"stablehlo\.dot_general .*contracting_dims = \[([\d, ]*)\] x .*"
    r": \(tensor<([\dx]*)x(\w+)>, tensor<[\dx]*x(\w+)>\) -> tensor<([\dx]*)x(\w+)>"
)


def like(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


def split(samples):
    """A split of the data set, without its content."""
    image = like(np.uint8, samples, *CONFIG.data.image_size, 3)
    label, flare = (like(np.int32, samples),) * 3, (like(bool, samples),) * 3
    return DeviceSplit((image,) * 3, label, {"camera": label, "flare": flare})


@pytest.fixture(scope="module")
def traced():
    """The training chunk and the extraction on 8 devices, before any platform is chosen."""
    mesh = tiny.make_mesh(8)
    model = models.build(CONFIG.model, SPEC)
    optimizer = optim.optimizer(CONFIG.optim)
    groups = optim.parameter_groups(model.groups, CONFIG.optim.bias_lr_factor)
    state = jax.eval_shape(functools.partial(step.initial_state, model, optimizer, 0))
    batch = CONFIG.train.identities_per_batch * CONFIG.train.samples_per_identity
    schedule = step.Schedule(
        like(np.int32, STEPS, 3, batch), like(np.float32, STEPS, 2), like(np.float32)
    )
    chunk = step.make_chunk(model, optimizer, groups, CONFIG, mesh)
    size = step.embedding_batch(CONFIG)
    extract = step.make_extract(model, mesh, SPEC.modalities)
    data, rows, real = split(SAMPLES), like(np.int32, 3, size), like(bool, size)
    return {
        "train": chunk.trace(state, data, schedule, like(np.int32)),
        "embed": extract.trace(state.variables, data, rows, real),
    }


def share_of_bfloat16(text):
    """Of all multiplications in matrix products, those of two bfloat16 operands."""
    total = narrow = 0
    products = PRODUCT.findall(text)
    assert len(products) == text.count("stablehlo.dot_general ")
    for contracted, left, left_type, right_type, out, _ in products:
        left, out = ([int(size) for size in shape.split("x")] for shape in (left, out))
        work = math.prod(out) * math.prod(left[int(axis)] for axis in contracted.split(","))
        total += work
        narrow += work if left_type == right_type == "bf16" else 0
    return narrow / total


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("program", "share"), [("train", 0.9995), ("embed", 1.0)])
def test_it_lowers_for_accelerators(traced, platform, program, share):
    """In bfloat16, but for the distances of the triplet loss, and without the host."""
    assert CONFIG.model.dtype == "bfloat16"
    text = traced[program].lower(lowering_platforms=(platform,)).as_text()
    assert share_of_bfloat16(text) >= share
    assert not re.findall(r"stablehlo\.(?:infeed|outfeed|send|recv)\b|callback", text)
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {"Sharding"}
    types = set(re.findall(r"x(f\d+|bf\d+)>", text))
    assert types == {"f32", "bf16"}
