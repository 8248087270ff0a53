"""What a run appends to, by process 0 only: metrics.jsonl, TensorBoard events, a run on wandb."""

import io
import json
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from absl import logging

from data_tfds.paths import Place, is_remote, write_bytes
from facenet_jax.runtime import wandb_run


def refuse_missing(names: str) -> None:
    """Raises UserError where `config.train.writers` names a package that is not installed."""
    if "wandb" in str(names):
        wandb_run.package()


class Writer:
    """Scalars by step, into `metrics.jsonl` of the folder and what `names` says beside it.

    A bucket cannot append to a file: both files are kept in a temporary folder, and `flush` uploads
    them. A killed run loses the lines since the last flush, so flush before a checkpoint is saved:
    the steps after it are run again.

    Args:
        folder: the workdir.
        names: `config.train.writers`.
        config: the values of the config, which wandb shows beside the run.
        resumed: whether steps were done before.
    """

    def __init__(
        self,
        folder: Place,
        names: str = "tensorboard",
        config: Mapping[str, Any] | None = None,
        resumed: bool = False,
    ):
        self.folder, self.temporary, local = folder, None, folder
        if is_remote(folder):
            self.temporary = tempfile.TemporaryDirectory(prefix="facenet_jax-")
            local = pathlib.Path(self.temporary.name)
            history = folder / "metrics.jsonl"
            if history.exists():
                (local / "metrics.jsonl").write_bytes(history.read_bytes())
        self.local, self.events, self.wandb = local, None, None
        # Line by line, so that a killed run leaves complete lines.
        self.lines = open(local / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115
        if "tensorboard" in names:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self.events = EventFileWriter(str(local / "tensorboard"))
        if "wandb" in names:
            self.wandb = wandb_run.WandbRun(folder, local, config or {}, resumed)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one event: `step` steps done, scalars by name such as "train/loss"."""
        now = time.time()
        values = {name: float(value) for name, value in scalars.items()}
        self.lines.write(json.dumps({"step": step, "time": round(now, 3), **values}) + "\n")
        if self.events:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary

            scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            summary = Summary(value=scalars)
            self.events.add_event(Event(wall_time=now, step=step, summary=summary))
        if self.wandb:
            self.wandb.write(step, values)

    def results(self, result: Mapping[str, Any]) -> None:
        """Show the scores of result.json beside the run, where it is on wandb."""
        if self.wandb:
            self.wandb.summary(
                {
                    f"{name}/{score}": scores[score]
                    for name, scores in result.items()
                    if isinstance(scores, Mapping)
                    for score in ("mAP", "mINP")
                    if score in scores
                }
            )

    def images(self, step: int, images: Mapping[str, tuple[Any, str]]) -> None:
        """Show Pillow images with captions by name such as "ranked/best_1", after `step` steps."""
        if self.events:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary

            for tag, (image, _) in images.items():
                file = io.BytesIO()
                image.save(file, "PNG")
                shown = Summary.Image(
                    height=image.height,
                    width=image.width,
                    colorspace=3,
                    encoded_image_string=file.getvalue(),
                )
                summary = Summary(value=[Summary.Value(tag=tag, image=shown)])
                self.events.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        if self.wandb:
            self.wandb.images(images)

    def flush(self) -> None:
        """Make everything written so far readable by others."""
        if self.events:
            self.events.flush()
        if self.temporary:
            paths = [self.local / "metrics.jsonl"]
            paths += (self.local / "tensorboard").iterdir() if self.events else []
            for path in paths:
                write_bytes(self.folder / path.relative_to(self.local), path.read_bytes())

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """After an error nothing more is written: wandb is told that the run has failed."""
        if self.wandb and kind and issubclass(kind, Exception):
            self.wandb.close(failed=True)

    def close(self) -> None:
        """Flush the files for the last time, and end a run on wandb."""
        self.flush()
        self.lines.close()
        if self.events:
            self.events.close()
        if self.wandb:
            self.wandb.close()
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
