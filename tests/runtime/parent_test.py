"""Workers end with the process that started them, however it ends."""

import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np

from facenet_jax.inputs import stream
from tests.support import tiny_run as tiny


def ended(pid, seconds):
    """Whether a process is gone, or a zombie that nobody reaps, within some seconds."""
    stat, deadline = pathlib.Path(f"/proc/{pid}/stat"), time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_worker_ends_with_a_parent_that_was_killed():
    command = [sys.executable, "-m", "tests.support.lasting_worker"]
    parent = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert not ended(worker, 0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert ended(worker, 5)


def test_the_workers_of_a_stream_watch_their_parent(monkeypatch):
    """Grain gives them the source of batches as a pickle."""
    calls = []
    monkeypatch.setattr(stream, "end_with_parent", lambda: calls.append(1))
    images = np.zeros((2, 4, 4, 3), np.uint8)
    source = stream.Batches([[images]], np.zeros((1, 1, 2), np.int32))
    assert not calls
    again = pickle.loads(pickle.dumps(source))
    assert calls == [1]
    np.testing.assert_array_equal(again[0], source[0])
