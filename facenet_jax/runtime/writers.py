"""Files that a run appends to: metrics.jsonl and TensorBoard events, by process 0 only."""

import json
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from absl import logging
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from data_tfds.paths import Place, is_remote, write_bytes


class Writer:
    """Scalars by step, into `metrics.jsonl` and an event file of the folder.

    A bucket cannot append to a file: both files are kept in a temporary folder, and `flush` uploads
    them. A killed run loses the lines since the last flush, so flush before a checkpoint is saved:
    the steps after it are run again.
    """

    def __init__(self, folder: Place):
        self.folder, self.temporary, local = folder, None, folder
        if is_remote(folder):
            self.temporary = tempfile.TemporaryDirectory(prefix="facenet_jax-")
            local = pathlib.Path(self.temporary.name)
            history = folder / "metrics.jsonl"
            if history.exists():
                (local / "metrics.jsonl").write_bytes(history.read_bytes())
        self.local = local
        # Line by line, so that a killed run leaves complete lines.
        self.lines = open(local / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115
        self.events = EventFileWriter(str(local / "tensorboard"))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one event: `step` steps done, scalars by name such as "train/loss"."""
        now = time.time()
        values = {name: float(value) for name, value in scalars.items()}
        self.lines.write(json.dumps({"step": step, "time": round(now, 3), **values}) + "\n")
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self.events.add_event(Event(wall_time=now, step=step, summary=summary))

    def flush(self) -> None:
        """Make everything written so far readable by others."""
        self.events.flush()
        if self.temporary:
            for path in (self.local / "metrics.jsonl", *(self.local / "tensorboard").iterdir()):
                write_bytes(self.folder / path.relative_to(self.local), path.read_bytes())

    def close(self) -> None:
        """Flush both files for the last time."""
        self.flush()
        self.lines.close()
        self.events.close()
        if self.temporary:
            self.temporary.cleanup()


def drop_after(path: Place, step: int, evaluated: bool = True) -> None:
    """Remove the lines of a metrics.jsonl beyond `step`: a resumed run writes those steps again.

    Without `evaluated` the line of the evaluation after `step` goes too. A line that is incomplete
    or damaged is removed as well, and how many these were is said in the log.
    """
    if not path.exists():
        return
    kept, damaged = [], 0
    for line in path.read_bytes().decode(errors="replace").split("\n"):
        try:
            values = json.loads(line)
            if values["step"] < step + (evaluated or "train/loss" in values):
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += bool(line.strip())
    if damaged:
        logging.warning("%s: %d damaged lines are removed.", path, damaged)
    write_text(path, "".join(line + "\n" for line in kept))


def write_text(path: Place, text: str) -> None:
    """Write a file completely or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Place, value: Any) -> None:
    """Write a value as indented JSON, completely or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")
