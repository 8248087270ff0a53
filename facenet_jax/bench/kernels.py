"""The costliest kernels of a profiler's trace, read with JAX alone."""

import collections
import pathlib
from typing import Any

import jax

from data_tfds.errors import UserError


def costliest(folder: str | pathlib.Path, count: int = 3) -> list[dict[str, Any]]:
    """The kernels that took most of the devices' time in the newest trace below `folder`.

    Each has its name, seconds in the whole trace, number of runs, and share of the time of all.
    Raises UserError where there is no trace, or where this JAX cannot read one.
    """
    files = sorted(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise UserError(f"There is no trace below {folder}.")
    reader = getattr(jax.profiler, "ProfileData", None)
    if reader is None:
        raise UserError("This version of JAX cannot read a trace without the package xprof.")
    return ranked(reader.from_file(str(files[-1])), count)


def ranked(data: Any, count: int) -> list[dict[str, Any]]:
    """The same of a `jax.profiler.ProfileData`; UserError where it has no kernel of a device."""
    seconds, runs, seen = collections.Counter(), collections.Counter(), []
    for plane in data.planes:
        if not plane.name.startswith("/device:"):
            continue
        lines = list(plane.lines)
        seen += [line.name for line in lines]
        # CUDA's streams. A TPU has one line of operations, which other lines only sum up.
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in streams or [line for line in lines if line.name == "XLA Ops"]:
            for event in line.events:
                seconds[event.name] += event.duration_ns / 1e9
                runs[event.name] += 1
    if not seconds:
        raise UserError(
            f"The trace has no kernels of a device; its lines are {', '.join(seen) or 'none'}."
        )
    total = sum(seconds.values())
    return [
        {"name": name, "seconds": spent, "runs": runs[name], "share": spent / total}
        for name, spent in seconds.most_common(count)
    ]
