"""main.py --distributed where Slurm has started it: the processes find each other by themselves."""

import json
import random
import socket
import subprocess

import pytest

from tests.support import tiny_run as tiny

FIRST_PORT = 61440  # JAX takes this plus the last 12 bits of the job number


def free_job():
    """A job number whose port nobody uses."""
    while True:
        job = random.SystemRandom().randrange(4096)
        with socket.socket() as server:
            try:
                server.bind(("localhost", FIRST_PORT + job))
            except OSError:
                continue
            return job


@pytest.mark.slow
def test_two_tasks_of_a_job_are_one_run(tmp_path):
    tiny.tree(tmp_path / "tree")
    command = tiny.command(
        "--distributed",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.root={tmp_path / 'tree'}",
        f"--config.data.prepared={tmp_path / 'prepared'}",
        "--config.train.steps=6",
        config=tiny.BASELINE,
    )
    job = {
        "SLURM_JOB_ID": str(free_job()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    tasks = [
        subprocess.Popen(
            command,
            env=tiny.environment() | job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            cwd=tiny.ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    errors = [task.communicate(timeout=200)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["processes"] == len(environment["devices"]) == 2
    lines = [line["step"] for line in tiny.metrics(tmp_path / "run") if "train/loss" in line]
    assert lines == [1, 2, 3, 4, 5, 6]  # one of them writes
    assert (tmp_path / "run" / "result.json").exists()
