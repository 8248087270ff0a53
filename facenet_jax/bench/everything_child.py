"""The process of one measurement: reads what to do from stdin, writes the figures to a file.

It ends when stdin does, so that it does not outlast the command that started it.
"""

import base64
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models
from facenet_jax.bench import kernels, synthetic, timing
from facenet_jax.bench.measures import WHAT, Options
from facenet_jax.runtime import compile_cache, workdir
from facenet_jax.runtime.details import sentence
from facenet_jax.runtime.mesh import make_mesh
from facenet_jax.runtime.writers import write_json

SIDE = 8192
"""Of the square bfloat16 matrices whose product is the peak rate."""

CHUNKS = 5
"""Timed calls."""


def main() -> None:
    """Do one measurement: {"result": figures} or {"failed": a sentence} into the file asked for."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_stdin, name="end_with_stdin", daemon=True).start()
    config = pickle.loads(base64.b64decode(request["config"]))
    config.update_from_flattened_dict(request["changes"])
    try:
        answer = {"result": measured(request["what"], config, request)}
    except UserError as error:
        answer = {"failed": str(error)}
    except Exception as error:  # whatever it is, the other measurements go on
        answer = {"failed": sentence(error)}
    write_json(pathlib.Path(request["file"]), answer)


def end_with_stdin() -> None:
    """End this process when the one that wrote to stdin has ended."""
    while os.read(sys.stdin.fileno(), 1024):  # not sys.stdin, whose lock would outlast main()
        pass
    os._exit(1)


def measured(
    what: str, config: ml_collections.ConfigDict, request: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of one measurement, see `everything_points.Point.what`."""
    if what == "device":
        return device(config)
    compile_cache.use(request.get("compile_cache", ""))
    options = Options(
        what,
        1 if what == "first" else CHUNKS,
        request["started"],
        peak=tuple(request["peak"]),
        count_xla=False,
    )
    if what != "kernels":
        found = WHAT["train" if what == "first" else what](config, options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            WHAT["train"](config, Options(**vars(options) | {"profile": folder}))
            found = {"kernels": kernels.costliest(folder)}
    return {**found, "dtype": timing.dtype(config), "device": name(), "commit": workdir.commit()}


def name() -> str:
    """The kind and the number of the devices."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def device(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The device and its driver, versions, peak rate, and what cannot be measured on it, and why.

    Raises UserError for a config that is none.
    """
    configs.check(config)
    mesh, environment = make_mesh(), timing.environment()
    limit = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    most, how = timing.peak(timing.dtype(config), mesh, SIDE)
    return {
        "device": name(),
        "platform": jax.default_backend(),
        "driver": driver(),
        "device_limit": limit,
        "python": environment["python"],
        "packages": environment["packages"],
        "commit": environment["commit"],
        "variables": environment["variables"],
        "peak_flops_per_second": most,
        "peak_how": how,
        "refused": refused(config),
        "torch": without_torch(),
    }


def driver() -> str | None:
    """The version of NVIDIA's driver, None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def refused(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Why attention of cuDNN cannot run in training and for embeddings here; "" where it can."""
    if "attention" not in config.model:
        return {}
    config = config.copy_and_resolve_references()
    config.model.attention = "cudnn"
    model = models.build(config.model, synthetic.spec(config.data))
    backend = jax.default_backend()
    return {what: model.refuses(backend, what == "train") for what in ("train", "embed")}


def without_torch() -> str:
    """Why PyTorch cannot be measured beside JAX here; "" where it can."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported ({error})"
    return "" if torch.cuda.is_available() else "PyTorch sees no GPU"
