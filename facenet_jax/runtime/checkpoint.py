"""Checkpoints of a run: the latest and the best are kept. The only file that imports Orbax."""

import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from data_tfds.errors import UserError
from data_tfds.paths import Place, is_remote

SELECT = "select"
"""The key, beside the scores of a checkpoint, of the name of the score that ranks checkpoints."""


class Checkpoints:
    """Numbered states in one folder, written in the background; each is complete or absent."""

    def __init__(self, folder: Place, select: str = "mAP"):
        """The checkpoints in `folder`; the best one has the highest `select`, see `selected`.

        `select` is stored with each score, so that the best checkpoint of a run is the same for
        whoever opens it.
        """
        self.folder, self.select = folder, select

        def score(metrics: dict[str, Any]) -> float:
            return selected(metrics, metrics.get(SELECT, select))

        # `max_to_keep` with `best_fn` would delete the newest checkpoints and break resuming.
        keep = managers.AnyPreservationPolicy(
            [
                managers.LatestN(1),
                managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep, best_fn=score, best_mode="max", cleanup_tmp_directories=True
        )
        self.manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        # However the block ends, checkpoints that were being written are completed.
        self.wait()

    def steps(self) -> list[int]:
        """The steps of all checkpoints."""
        return list(self.manager.all_steps())

    def latest(self) -> int | None:
        """The step of the newest checkpoint, None without one."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step of the checkpoint with the highest score, None where none has one."""
        scored = [step for step in self.steps() if self.manager.metrics(step)]
        return self.manager.best_step() if scored else None

    def metrics(self, step: int) -> dict[str, Any] | None:
        """What was passed as `metrics` when this step was saved."""
        found = self.manager.metrics(step)
        return found and {name: value for name, value in found.items() if name != SELECT}

    def save(self, step: int, state: Any, metrics: dict[str, Any] | None = None) -> None:
        """Start to save `state` (a pytree of arrays) as `step`; waits only for an earlier save.

        Raises UserError where the disk is full or the folder cannot be written. Earlier checkpoints
        stay as they are.
        """
        metrics = metrics and {**metrics, SELECT: self.select}
        self.check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        try:
            self.manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)
        except Exception as error:
            raise self.failed(error) from error

    def check_space(self, needed: int) -> None:
        """Raises UserError where the disk has fewer than `needed` bytes left."""
        if is_remote(self.folder):
            return  # a bucket does not report its space
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"A checkpoint of {needed / 1e6:.1f} MB does not fit on the disk of {self.folder}, "
                f"which has {free / 1e6:.1f} MB left; free space there or choose another "
                "--workdir. The checkpoints already there are untouched."
            )

    def wait(self) -> None:
        """Return when what was saved is on disk; raises as `save`."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> UserError:
        """One sentence for a save that did not work."""
        return UserError(
            f"A checkpoint could not be written to {self.folder} ({first_line(error)}); free space "
            "there or choose another --workdir. The checkpoints already there are untouched."
        )

    def restore(self, step: int, like: Any) -> Any:
        """The state saved as `step`, with the structure, types and sharding of `like`."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        try:
            return self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:
            raise UserError(
                f"The checkpoint of step {step} in {self.folder} cannot be read "
                f"({first_line(error)}); delete its folder to go on from the one before."
            ) from error

    def close(self) -> None:
        """Wait for the last save and release the folder."""
        self.wait()
        self.manager.close()


def selected(scores: Mapping[str, Any], select: str) -> float:
    """The score that names the best checkpoint: "mAP", "mINP", or a CMC rank as "R1"."""
    return scores["cmc"][select[1:]] if select.startswith("R") else scores[select]


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
