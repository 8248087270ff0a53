"""The scalars of training steps: progress lines in the log, and all of them in metrics.jsonl."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from data_tfds.errors import UserError
from facenet_jax.runtime.writers import Writer


class Log:
    """Scalars of the steps, written one chunk late so that reading them never stops the device.

    Args:
        epoch: the epoch of each step of the run [steps].
        batch: samples in a batch.
        writer: what they are written with, None in all processes but the first.
    """

    def __init__(self, epoch: np.ndarray, batch: int, writer: Writer | None):
        self.epoch, self.batch, self.writer = epoch, batch, writer
        self.first = None  # the step that `start` belongs to
        self.waiting = None  # the chunk that is not yet written
        self.read_at = self.start = time.time()
        self.logged_at = 0.0

    def push(self, step: int, count: int, scalars: Mapping[str, jax.Array]) -> None:
        """Take a chunk of `count` steps that began after `step`; write the chunk before."""
        ready, self.waiting = self.waiting, (step, count, scalars)
        if ready:
            self.write(*ready)

    def flush(self) -> None:
        """Write the chunk that is not yet written, and publish it."""
        ready, self.waiting = self.waiting, None
        if ready:
            self.write(*ready)
        if self.writer:
            self.writer.flush()

    def write(self, step: int, count: int, scalars: Mapping[str, jax.Array]) -> None:
        """Write the scalars of a chunk. Raises UserError for the first that is not finite."""
        values = {name: np.asarray(array)[:count] for name, array in scalars.items()}
        now = time.time()
        rate = count * self.batch / (now - self.read_at)
        self.read_at = now
        if self.first is None:  # the first chunk was mostly compiling
            self.first, self.start = step + count, now
        for i in range(count):
            row = {f"train/{name}": array[i] for name, array in values.items()}
            if self.writer:
                self.writer.write(step + i + 1, row | {"perf/samples_per_second": rate})
            bad = [name for name, array in values.items() if not math.isfinite(array[i])]
            if bad:
                if self.writer:
                    self.writer.flush()
                bad.sort(key=lambda name: not name.startswith("loss"))  # the cause before effects
                raise UserError(
                    f"{', '.join(bad)} became {values[bad[0]][i]} at step {step + i + 1}; the last "
                    "good checkpoint is kept. Lower config.optim.learning_rate, set "
                    "config.optim.clip or look at the data."
                )
        total = len(self.epoch)
        if now - self.logged_at > 2.0 or step + count == total:
            self.logged_at = now
            self.progress(
                step + count, total, {name: array[-1] for name, array in values.items()}, rate
            )

    def progress(self, step: int, total: int, values: Mapping[str, float], rate: float) -> None:
        """Log one line of progress. The terms are weighted, so they add up to the loss."""
        terms = " + ".join(
            f"{name.removeprefix('loss_')} {abs(value) if abs(value) < 5e-4 else value:.3f}"
            for name, value in values.items()
            if name.startswith("loss_")
        )
        done = step - self.first
        left = (total - step) * (self.read_at - self.start) / done if done else 0.0
        logging.info(
            "step %d/%d  epoch %d  loss %.3f = %s  lr %.2g  %.0f samples/s  %s left",
            step,
            total,
            self.epoch[step - 1],
            values["loss"],
            terms,
            values["learning_rate"],
            rate,
            "{}:{:02}".format(*divmod(round(left), 60)) if done else "?",
        )

    def scores(self, step: int, scores: Mapping[str, Any], split: str, line: str) -> None:
        """Write an evaluation and log it; the time it took does not count as training.

        `line` are the scores in words.
        """
        logging.info("step %d  %s %s", step, split, line)
        values = {"mAP": scores["mAP"], "mINP": scores["mINP"]}
        values |= {f"R{rank}": value for rank, value in scores["cmc"].items()}
        if self.writer:
            self.writer.write(step, {f"{split}/{name}": value for name, value in values.items()})
        now = time.time()
        self.start += now - self.read_at
        self.read_at = now
