"""The folder of a run: one process at a time, one config for life, files written whole."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections

from data_tfds.errors import UserError
from data_tfds.paths import Place, is_remote, reaching
from facenet_jax.runtime.writers import write_json

FREE = (
    "evaluate.",
    "train.evaluate_every",
    "train.save_every",
    "train.shard_",
    "data.root",
    "data.prepared",
    "data.resident",
    "data.workers",
)
"""Options that may change between the starts of one run: nothing learned depends on them."""


@contextlib.contextmanager
def locked(workdir: Place) -> Iterator[None]:
    """Own the folder while the block runs; of several processes of one run, process 0 does.

    The system drops the lock when the process dies. A bucket has no locks: there it is only tried
    whether the folder can be written, and two runs at once are the user's to avoid.
    """
    if jax.process_index() > 0:
        yield
        return
    try:
        with reaching(workdir):
            if not is_remote(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
                lock = open(workdir / ".lock", "a+")  # noqa: SIM115
            (workdir / ".writable").write_text("1")
            (workdir / ".writable").unlink()
    except OSError as error:
        raise UserError(
            f"The workdir {workdir} cannot be written ({error.strerror or error}); choose another "
            "--workdir."
        ) from error
    if is_remote(workdir):
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise UserError(
                f"The workdir {workdir} is in use by process {lock.read() or 'unknown'}; wait for "
                "it or choose another --workdir."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"section.option": value} of nested mappings; tuples become lists, as in JSON."""
    values = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = json.loads(json.dumps(value))
    return values


def claim(workdir: Place, config: ml_collections.ConfigDict, trained: bool) -> None:
    """Write config.json and environment.json; check the config where the folder is `trained` in.

    Raises UserError when the folder belongs to a run of another config, with the values that clash.
    Before the first checkpoint it belongs to none: an attempt that failed may be mended.
    """
    path = workdir / "config.json"
    if trained:
        before, now = flat(read_config(workdir).to_dict()), flat(config.to_dict())
        clashes = [
            f"config.{name} was {before.get(name, 'absent')!r} and is {now.get(name, 'absent')!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and not name.startswith(FREE)
        ]
        if clashes:
            raise UserError(
                f"The workdir {workdir} belongs to a run with another config: "
                f"{'; '.join(clashes)}. Choose another --workdir, or give the old values."
            )
    if jax.process_index() == 0:
        write_json(path, config.to_dict())
        write_json(workdir / "environment.json", environment())


def read_config(workdir: Place) -> ml_collections.ConfigDict:
    """The config that a run was started with."""
    path = workdir / "config.json"
    try:
        with reaching(path):
            text = path.read_text()
        return ml_collections.ConfigDict(json.loads(text))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); is {workdir} a workdir?") from error


def environment() -> dict[str, Any]:
    """Versions, devices and the command, for environment.json."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")
    devices = jax.devices()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "backend": jax.default_backend(),
        "devices": [f"{device.device_kind} {device.id}" for device in devices],
        "processes": jax.process_count(),
        "variables": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("XLA_", "JAX_", "LIBTPU_"))
        },
    }
