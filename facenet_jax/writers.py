"""What a run writes while it goes: metrics.jsonl and TensorBoard event files, by process 0 only."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class Writer:
    """Scalars by step, into `metrics.jsonl` and an event file of the folder."""

    def __init__(self, folder: pathlib.Path):
        # Line by line, so that a killed run leaves whole lines.
        self.lines = open(folder / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115
        self.events = EventFileWriter(str(folder / "tensorboard"))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one event: `step` steps done, scalars by name such as "train/loss"."""
        now = time.time()
        values = {name: float(value) for name, value in scalars.items()}
        self.lines.write(json.dumps({"step": step, "time": round(now, 3), **values}) + "\n")
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self.events.add_event(Event(wall_time=now, step=step, summary=summary))

    def close(self) -> None:
        """Flush both files."""
        self.lines.close()
        self.events.close()


def drop_after(path: pathlib.Path, step: int) -> None:
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


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a value as indented JSON, as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")
