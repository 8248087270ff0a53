"""Checkpoints of a run: the latest and the best are kept. The only file that imports Orbax.

Each has a record beside its arrays: its scores, those of the best checkpoint so far, and a digest
of every array, which is compared when it is restored. The record is part of what Orbax writes at
once or not at all.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from data_tfds.errors import UserError
from data_tfds.paths import Place, is_remote
from facenet_jax.runtime import checkpoint_record
from facenet_jax.runtime.checkpoint_record import Record, digests_of

METADATA = "_CHECKPOINT_METADATA"
"""Orbax's name of the file that has the record."""


class Checkpoints:
    """Numbered states in one folder, written in the background; each is complete or absent."""

    def __init__(self, folder: Place, select: str = "mAP"):
        """The checkpoints in `folder`; the best one has the highest `select`, see `selected`.

        `select` is stored with each score, so that the best checkpoint of a run is the same for
        whoever opens it. Raises UserError where `folder` cannot be opened.
        """
        self.folder, self.select = folder, select
        self.records: dict[int, Record | None] = {}  # as far as they were read; None: there is none
        # Orbax's own choice of the best reads a file of scores at every start, damaged or not, and
        # `max_to_keep` would delete the newest checkpoints and break resuming.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(self), cleanup_tmp_directories=True
        )
        try:
            self.manager = ocp.CheckpointManager(folder, options=options)
        except Exception as error:
            self.refuse_damaged()
            raise UserError(
                f"The checkpoints in {folder} cannot be opened ({brief(error)}); remove what is no "
                f"checkpoint there, or the file {METADATA} of the one that is damaged."
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        # However the block ends, checkpoints that were being written are completed.
        self.wait()

    def refuse_damaged(self) -> None:
        """Raises UserError for the first file of scores or record that cannot be read."""
        if self.folder.is_dir():
            for step in sorted(int(x.name) for x in self.folder.iterdir() if x.name.isdecimal()):
                checkpoint_record.read(self.folder / str(step) / METADATA)
                checkpoint_record.read_old(self.folder, step, self.select)

    def steps(self) -> list[int]:
        """The steps of all checkpoints."""
        return list(self.manager.all_steps())

    def latest(self) -> int | None:
        """The step of the newest checkpoint, None without one."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step of the checkpoint with the highest score, None where none has one.

        Raises UserError for a damaged record of scores.
        """
        return self.best_of(self.steps())

    def best_of(self, steps: Sequence[int]) -> int | None:
        """The best of these steps; of equal ones the latest."""
        found = {step: self.scored(step) for step in steps}
        values = {step: scored.value for step, scored in found.items() if scored}
        return max(values, key=lambda step: (values[step], step)) if values else None

    def metrics(self, step: int) -> dict[str, Any] | None:
        """What was passed as `metrics` when this step was saved. Raises as `best`."""
        scored = self.scored(step)
        return scored and dict(scored.scores)

    def scored(self, step: int) -> checkpoint_record.Scored | None:
        """The scores of a step: of its record, or of a later one that names it as the best."""
        record = self.record(step)
        if record is not None and record.scored:
            return record.scored
        later = [self.record(other) for other in self.steps() if other > step]
        named = [each.best for each in later if each and each.best and each.best.step == step]
        if named or record is not None:
            return named[0] if named else None
        return checkpoint_record.read_old(self.folder, step, self.select)

    def note(self, step: int, metrics: dict[str, Any]) -> None:
        """Take the scores of a checkpoint that was saved without; the next one saved keeps them."""
        record = self.record(step) or Record(step, None, None, {})
        scored = checkpoint_record.Scored(step, self.select, metrics)
        self.records[step] = dataclasses.replace(record, scored=scored)

    def record(self, step: int) -> Record | None:
        """The record of a step; None where it has none, as of older versions."""
        if step not in self.records:
            self.records[step] = checkpoint_record.read(self.folder / str(step) / METADATA)
        return self.records[step]

    def save(self, step: int, state: Any, metrics: dict[str, Any] | None = None) -> None:
        """Start to save `state` (a pytree of arrays) as `step`; waits only for an earlier save.

        Raises UserError where the disk is full or the folder cannot be written. Earlier checkpoints
        stay as they are.
        """
        self.check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        scored = metrics and checkpoint_record.Scored(step, self.select, metrics)
        best = self.best()
        known = [x for x in (scored, None if best is None else self.scored(best)) if x]
        record = Record(
            step, scored or None, max(known, key=lambda x: x.value, default=None), digests_of(state)
        )
        self.records[step] = record
        try:
            self.manager.save(
                step,
                args=ocp.args.StandardSave(state),
                custom_metadata=record.as_json(),
                force=True,
            )
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
            f"A checkpoint could not be written to {self.folder} ({brief(error)}); free space "
            "there or choose another --workdir. The checkpoints already there are untouched."
        )

    def restore(self, step: int, like: Any) -> Any:
        """The state saved as `step`, with the structure, types and sharding of `like`.

        Raises UserError where it cannot be read, where an array is not what was saved, and where it
        was saved as another step.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        record = self.record(step)
        self.refuse_renamed(step, record.step if record else step)
        try:
            state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:
            raise UserError(
                f"The checkpoint of step {step} in {self.folder} cannot be read "
                f"({brief(error)}); {self.advice(step)}"
            ) from error
        changed = checkpoint_record.changed(record, state) if record is not None else []
        if changed:
            raise UserError(
                f"The checkpoint of step {step} in {self.folder} is damaged: by its digest the "
                f"array {changed[0]}{f' (and {len(changed) - 1} more)' if changed[1:] else ''} is "
                f"not what was saved; {self.advice(step)}"
            )
        # A state of an older version says its step itself.
        self.refuse_renamed(step, int(getattr(state, "step", step)))
        return state

    def refuse_renamed(self, step: int, saved_as: int) -> None:
        """Raises UserError for a folder with another number than the step of its state."""
        if saved_as != step:
            raise UserError(
                f"The folder {self.folder / str(step)} has the checkpoint of step {saved_as}; "
                f"rename it to {saved_as}."
            )

    def advice(self, step: int) -> str:
        """What to do about a checkpoint that cannot be used."""
        others = [other for other in self.steps() if other != step]
        if not others:
            return (
                "it is the only one, so fetch it from a backup, or train anew in another --workdir."
            )
        return f"delete its folder to go on from step {max(others)}."

    def close(self) -> None:
        """Wait for the last save and release the folder."""
        self.wait()
        self.manager.close()


class _LatestAndBest:
    """Orbax's question which checkpoints to keep, answered."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [each.step for each in checkpoints]
        keep = {max(steps), self.checkpoints.best_of(steps)} if steps else set()
        return [step in keep for step in steps]


def has_checkpoint(workdir: Place) -> bool:
    """Whether a run has saved one; nothing is made where none has."""
    # To open a folder that is not there would make it; a bucket has no folders.
    if not is_remote(workdir) and not (workdir / "checkpoints").is_dir():
        return False
    checkpoints = open_checkpoints(workdir)
    found = checkpoints.latest()
    checkpoints.close()
    return found is not None


def open_checkpoints(workdir: Place, select: str = "mAP") -> Checkpoints:
    """The checkpoints of a run; the best has the highest `select`."""
    # Orbax wants an absolute path, and `resolve` takes a URL for a relative one.
    folder = (workdir if is_remote(workdir) else workdir.resolve()) / "checkpoints"
    return Checkpoints(folder, select)


def brief(error: Exception) -> str:
    """The first line of an error's text, without TensorStore's specification, or its type.

    Of a long line the beginning and the end: TensorStore tells the cause after all paths.
    """
    text = str(error).strip().partition(" [tensorstore_spec")[0].partition(" [source locations")[0]
    line = text.splitlines()[0] if text else type(error).__name__
    return line if len(line) <= 200 else f"{line[:80]} ... {line[-120:]}"
