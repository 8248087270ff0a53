"""A trace of a few training steps, for xprof: `--profile 10:13`."""

import re

import jax
from absl import logging

from data_tfds.errors import UserError
from data_tfds.paths import Place, is_remote


class Profile:
    """Traces the steps after FIRST up to LAST of `text` into a folder; nothing for an empty text.

    Raises UserError for a folder on a bucket, and where step <= FIRST < LAST <= total (the steps of
    the run) does not hold.
    """

    def __init__(self, text: str, folder: Place, step: int, total: int):
        match = re.fullmatch(r"(\d+):(\d+)", text)
        self.edges = tuple(int(edge) for edge in match.groups()) if match else ()
        self.folder = folder
        if text and is_remote(folder):
            raise UserError(f"--profile needs a --workdir on a disk, and {folder} is none.", 2)
        if text and not (match and step <= self.edges[0] < self.edges[1] <= total):
            raise UserError(
                f"--profile={text} must be FIRST:LAST with {step} <= FIRST < LAST <= {total}, the "
                "steps that this run goes through, as in 10:13 for the three steps after the 10th.",
                2,
            )

    def until(self, step: int) -> list[int]:
        """How many steps after `step` the trace begins and ends, where dispatches must."""
        return [edge - step for edge in self.edges if edge > step]

    def at(self, step: int, state: object) -> None:
        """Begin or end the trace at its first or last step; `state` is that of the steps so far."""
        if step not in self.edges:
            return
        jax.block_until_ready(state)  # the trace must contain only its own steps
        if step == self.edges[0]:
            jax.profiler.start_trace(str(self.folder))
        else:
            jax.profiler.stop_trace()
            logging.info("Traced steps into %s; look at them with: xprof %s", *[self.folder] * 2)
