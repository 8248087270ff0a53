"""What a run writes while it goes: metrics.jsonl and TensorBoard event files, by process 0 only."""

import json
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from data_tfds.paths import Place, is_remote, write_bytes


class Writer:
    """Scalars by step, into `metrics.jsonl` and an event file of the folder.

    Nothing can be appended to on a bucket: there both files grow in a temporary folder, and `flush`
    publishes them whole. A kill loses the lines since, which the run goes through again: flush
    before a checkpoint is saved.
    """

    def __init__(self, folder: Place):
        self.folder, self.temporary, here = folder, None, folder
        if is_remote(folder):
            self.temporary = tempfile.TemporaryDirectory(prefix="facenet_jax-")
            here = pathlib.Path(self.temporary.name)
            history = folder / "metrics.jsonl"
            if history.exists():
                (here / "metrics.jsonl").write_bytes(history.read_bytes())
        self.here = here
        # Line by line, so that a killed run leaves whole lines.
        self.lines = open(here / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115
        self.events = EventFileWriter(str(here / "tensorboard"))

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
        """Have what was written where others can read it."""
        self.events.flush()
        if self.temporary:
            for path in (self.here / "metrics.jsonl", *(self.here / "tensorboard").iterdir()):
                write_bytes(self.folder / path.relative_to(self.here), path.read_bytes())

    def close(self) -> None:
        """Flush both files for the last time."""
        self.flush()
        self.lines.close()
        self.events.close()
        if self.temporary:
            self.temporary.cleanup()


def drop_after(path: Place, step: int) -> None:
    """Remove the lines of a metrics.jsonl beyond `step`: a resumed run writes those steps again.

    A line that a kill cut short goes too.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    write_text(path, "".join(line + "\n" for line in kept))


def write_text(path: Place, text: str) -> None:
    """Write a file as a whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Place, value: Any) -> None:
    """Write a value as indented JSON, as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")
