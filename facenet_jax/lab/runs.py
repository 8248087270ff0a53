"""The runs of a table, one process at a time: each trains a row with a seed and scores it.

A run's folder is named after the row and a digest of its config, so that rows with the same
training share it, and a config that was changed never goes on in the folder of another. What is
finished is not done again; what was stopped goes on.
"""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections

from data_tfds.errors import UserError
from data_tfds.paths import Place, open_path
from facenet_jax import config as configs
from facenet_jax import stored
from facenet_jax.lab import scores
from facenet_jax.lab.tables import Row, Start, Table, config_of
from facenet_jax.options import defaults
from facenet_jax.runtime import cli, compile_cache, memory, workdir
from facenet_jax.runtime.workdir import flat
from facenet_jax.runtime.writers import write_json
from facenet_jax.train import train

NOT_LEARNED = (*stored.RESUMABLE, "evaluate.", "seed")
"""Options that are no part of a folder's digest."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A row with a seed."""

    row: Row
    seed: int
    config: ml_collections.ConfigDict
    folder: Place
    which: str  # subsets of the modalities to score, see `scores.subsets_of`

    @property
    def done(self) -> bool:
        """Whether it is trained and scored."""
        return scores.listed(self.folder, self.row.scored, self.which).exists()


def digest(config: ml_collections.ConfigDict) -> str:
    """A short name of what a config trains, whatever its seed and wherever its data lie.

    Options at their defaults have no part in it, so that an option that is added later leaves the
    folders of earlier runs as they are.
    """
    usual = flat(defaults(configs.schema(config)))
    values = {k: v for k, v in sorted(flat(config.to_dict()).items()) if v != usual.get(k)}
    kept = {k: v for k, v in values.items() if not k.startswith(NOT_LEARNED)}
    if "model.pretrained" in kept:
        kept["model.pretrained"] = re.split(r"[/\\]", str(kept["model.pretrained"]))[-1]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:8]


def jobs(
    table: Table,
    out: Place,
    seeds: Sequence[int],
    which: str,
    start: Start,
) -> list[Job]:
    """All runs of a table, seed by seed, so that every row has its first one early."""
    found = []
    for seed in seeds:
        for row in table.rows:
            config = config_of(table, row, seed, start)
            folder = out / f"{config.model.name.rpartition('.')[2]}-{digest(config)}-{seed}"
            found.append(Job(row, seed, config, folder, which))
    return found


def run_all(todo: Sequence[Job], say: Callable[[str], None]) -> None:
    """Train and score, one process after the other. UserError where one fails."""
    for number, job in enumerate(todo, start=1):
        title = f"[{number}/{len(todo)}] {job.row.name}, seed {job.seed}: {job.folder}"
        if job.done:
            say(f"{title}: finished before")
            continue
        say(f"{title} ...")
        prepare(job)
        start, line = time.time(), "from facenet_jax.lab.runs import main; main()"
        words = [str(job.folder), json.dumps(dict(job.row.scored)), job.which]
        code = subprocess.run([sys.executable, "-c", line, *words], check=False).returncode
        if code or not job.done:
            raise UserError(
                f"The run of the row '{job.row.name}' with seed {job.seed} in {job.folder} stopped "
                f"with exit code {code}; the same command goes on from there."
            )
        say(f"{title}: done in {time.time() - start:.0f} s")


def prepare(job: Job) -> None:
    """Write the config of a run that has none yet; UserError where its folder has another one."""
    if (job.folder / "config.json").exists():
        stored.refuse_other_run(job.folder, job.config)
    write_json(job.folder / "config.json", job.config.to_dict())


def main() -> None:
    """Train and score one run: the process that `run_all` starts, with a folder and how to score.

    Ends with an exit code.
    """
    folder, scored, which = sys.argv[1:]
    sys.exit(cli.guarded(lambda: one(open_path(folder), json.loads(scored), which)))


def one(folder: Place, scored: dict[str, Any], which: str) -> None:
    """Train what config.json of the folder says, unless it is trained, and score it."""
    compile_cache.use(str(compile_cache.default()))
    cli.set_up_log()
    config = stored.read_config(folder)
    with workdir.locked(folder), memory.explained(config, jax.device_count()):
        if not (folder / "result.json").exists() and train(config, folder) is None:
            raise UserError(f"The training in {folder} was stopped by a signal.")
        scores.write(folder, tuples(scored), which)


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where options have tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
