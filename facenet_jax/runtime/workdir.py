"""The folder of a run: locked for one process, and the JSON files in it."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from data_tfds.errors import UserError
from data_tfds.paths import Place, as_os_error, is_remote
from facenet_jax.runtime import form
from facenet_jax.runtime.details import DETAILS
from facenet_jax.runtime.writers import write_json

HOME = pathlib.Path(__file__).resolve().parents[2]

FOLDERS = ("checkpoints", "tensorboard", "embeddings", "profile", "other_data", "export", "search")
FILES = (
    *("config.json", "spec.json", "data.json", "result.json", "per_modality.json"),
    *("scores.json", "report.html"),
    *("metrics.jsonl", "parameters.txt", "environment.json"),
)
"""What a run writes into its folder."""


def refuse_wrong_kinds(workdir: Place) -> None:
    """Raises UserError for a file where a run writes a folder, and the other way round."""
    for name in FOLDERS:
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is a file where a run has a folder; move it away.")
    for name in FILES:
        if (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is a folder where a run has a file; move it away.")


@contextlib.contextmanager
def locked(workdir: Place) -> Iterator[None]:
    """Lock the folder while the block runs, by process 0 where a run has several processes.

    The system releases the lock when the process ends. A bucket has no locks: only whether it can
    be written is checked, and the user must avoid two runs at once. Raises UserError where the
    folder cannot be written or is in use. A folder that was not there before and in which the block
    wrote nothing is removed again.
    """
    if jax.process_index() > 0:
        yield
        return
    made = not is_remote(workdir) and not workdir.exists()
    try:
        with as_os_error(workdir):
            if not is_remote(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
                lock = open(workdir / ".lock", "a+")  # noqa: SIM115
            (workdir / ".writable").write_text("1")
            (workdir / ".writable").unlink()
            if not is_remote(workdir):
                refuse_wrong_kinds(workdir)
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
        DETAILS.folder = workdir  # it stays after the block, where errors are told
        try:
            yield
        finally:
            if made and os.listdir(workdir) == [".lock"]:
                shutil.rmtree(workdir)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"section.option": value} of nested mappings; tuples become lists, as in JSON."""
    values = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = json.loads(json.dumps(value))
    return values


def read_json(path: Place, workdir: Place, pattern: Any = object) -> Any:
    """The content of a JSON file of a workdir.

    Raises UserError where it cannot be read or has not the form of `pattern`, see `form.fits`.
    """
    if not is_remote(workdir) and not workdir.exists():
        raise UserError(f"There is no folder {workdir}; correct the name of the workdir.")
    try:
        with as_os_error(path):
            found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); is {workdir} a workdir?") from error
    if not form.fits(found, pattern):
        raise damaged(path)
    return found


def damaged(path: Place) -> UserError:
    """The error for a file of a workdir that has not the form it is written in."""
    return UserError(
        f"{path} is damaged: it lacks what facenet_jax writes there. Remove it and run the "
        "command that wrote it again."
    )


def write_environment(folder: Place, mode: str) -> None:
    """Write environment.json of a training, or environment-MODE.json of another mode."""
    name = "environment.json" if mode == "train" else f"environment-{mode}.json"
    write_json(folder / name, environment())


def commit() -> str | None:
    """The git commit of this code, with a "+" if files differ from it; None outside of git."""
    if not (HOME / ".git").exists():  # an installed wheel may lie within a repository of yours
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(HOME), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def packages() -> dict[str, str]:
    """{name: version} of this package and of all that it needs, as far as they are installed."""
    file = HOME / "pyproject.toml"
    if file.is_file():  # a checkout, which need not be installed
        project = tomllib.loads(file.read_text())["project"]
        own, needs = project["version"], project["dependencies"]
    else:
        own = importlib.metadata.version("facenet_jax")
        needs = [x for x in importlib.metadata.requires("facenet_jax") if "extra ==" not in x]
    names = ["jaxlib", *(re.match(r"[\w.-]+", line)[0] for line in needs)]
    found = {}
    for name in sorted(names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # speed needs few
            found[name] = importlib.metadata.version(name)
    return {"facenet_jax": own, **found}


def environment() -> dict[str, Any]:
    """Commit, versions, devices and the command."""
    devices = jax.devices()
    return {
        "commit": commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": packages(),
        "backend": jax.default_backend(),
        "devices": [f"{device.device_kind} {device.id}" for device in devices],
        "processes": jax.process_count(),
        "variables": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("XLA_", "JAX_", "LIBTPU_"))
        },
    }
