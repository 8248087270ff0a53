"""The training loop: set up, restore, chunks of steps, evaluation, saving."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from clu import parameter_overview

from facenet_jax import evaluate, optim
from facenet_jax import workdir as workdirs
from facenet_jax.mesh import replicate
from facenet_jax.places import Place
from facenet_jax.preemption import Preemption
from facenet_jax.run import Run, open_checkpoints, open_run, resident, saved_state, start_state
from facenet_jax.step import Schedule, make_chunk
from facenet_jax.types import UserError
from facenet_jax.writers import Writer, drop_after


def train(config: ml_collections.ConfigDict, workdir: Place) -> Mapping[str, Any] | None:
    """The scores of result.json after training to the end of the plan; None when told to stop.

    Goes on from the newest checkpoint in `workdir`. Order, augmentation and rates are functions of
    (seed, step), so a run that was killed and started again ends with the same parameters.
    """
    run = open_run(config)
    checkpoints = open_checkpoints(workdir)
    saved = checkpoints.latest()  # may be 0: imported weights start there
    step = saved or 0
    workdirs.claim(workdir, config, trained=saved is not None)
    total = len(run.plan.epoch)
    batch = run.plan.rows.shape[1]

    state = start_state(run) if saved is None else saved_state(run, checkpoints, saved)
    logging.info("%s", parameter_table(state.params))
    logging.info(
        "%s: %d steps of %d triplets on %s; from step %d.",
        workdir,
        total,
        batch,
        devices(),
        step,
    )

    # Everything the steps read is on the device before the first of them.
    data = resident(run.dataset.train, config, run.mesh)
    schedule = make_schedule(run)
    chunk = make_chunk(run.model, run.optimizer, config, run.mesh)
    probe, validation = evaluate.test_probe(run), evaluate.validation_probe(run)
    evaluate_at, save_at = due(run)
    best = best_score(checkpoints)
    writer = None
    if jax.process_index() == 0:
        drop_after(workdir / "metrics.jsonl", step)
        writer = Writer(workdir)
    log = Log(run, writer)
    embedded = None

    with Preemption() as preemption, checkpoints:
        while step < total:
            stop = next(s for s in range(step + 1, total + 1) if evaluate_at[s] or save_at[s])
            count = min(stop - step, config.train.steps_per_dispatch)
            state, scalars = chunk(state, data, schedule, np.int32(count))
            # The device is at work on this chunk while the one before is read and written.
            log.push(step, count, scalars)
            step += count
            leave = preemption.requested()

            scores, embedded = None, None
            if evaluate_at[step] and not leave:
                log.flush()
                embedded = evaluate.embed(run, state, validation or probe)
                scores = evaluate.score(run, state, validation or probe, embedded)
                log.scores(step, scores, "validation" if validation else "test")
            if leave or save_at[step] or (scores and scores["mAP"] > best):
                log.flush()  # raises on a loss that is not finite, before it can be saved
                checkpoints.save(step, state, scores)
            if scores:
                best = max(best, scores["mAP"])
            if leave:
                checkpoints.close()
                logging.info("Stopped by SIGTERM; saved step %d. Start again to go on.", step)
                return None

    log.flush()
    embedded = None if validation else embedded  # the last evaluation was of the test set
    result = evaluate.finish(run, state, checkpoints, workdir, probe, embedded)
    checkpoints.close()
    if writer:
        writer.close()
    return result


def make_schedule(run: Run) -> Schedule:
    """The plan and the learning rates of the whole run on the devices."""
    rates = optim.rate_table(run.config.optim, run.plan.epoch, run.config.train.epochs)
    bands = len(run.model.bands)
    rows = np.broadcast_to(run.plan.rows[:, None], (len(rates), bands, run.plan.rows.shape[1]))
    return replicate(Schedule(rows, rates), run.mesh)


def due(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """After which steps 0..S to evaluate and to save, bool [S + 1] each; always after the last."""
    options, epoch = run.config.train, run.plan.epoch
    steps = np.arange(len(epoch) + 1)
    last_of_epoch = np.append(epoch[1:] != epoch[:-1], True)

    def every(epochs: int) -> np.ndarray:
        at = np.zeros(len(steps), bool)
        if epochs:
            at[1:] = last_of_epoch & (epoch % epochs == 0)
        at[-1] = True
        return at

    save = every(options.save_every)
    if options.save_every_steps:
        save |= (steps % options.save_every_steps == 0) & (steps > 0)
    return every(options.evaluate_every), save


def best_score(checkpoints: Any) -> float:
    """The highest mAP among the saved checkpoints, -1 where none has a score."""
    step = checkpoints.best()
    return checkpoints.metrics(step)["mAP"] if step is not None else -1.0


class Log:
    """Scalars of the steps, written one chunk late so that reading them never stops the device."""

    def __init__(self, run: Run, writer: Writer | None):
        self.run, self.writer = run, writer
        self.first = None  # the step that `start` belongs to
        self.waiting = None
        self.read_at = self.start = time.time()
        self.said_at = 0.0

    def push(self, step: int, count: int, scalars: Mapping[str, jax.Array]) -> None:
        """Take a chunk of `count` steps that began after `step`; write the chunk before."""
        ready, self.waiting = self.waiting, (step, count, scalars)
        if ready:
            self.write(*ready)

    def flush(self) -> None:
        """Write what waits, and publish it."""
        ready, self.waiting = self.waiting, None
        if ready:
            self.write(*ready)
        if self.writer:
            self.writer.flush()

    def write(self, step: int, count: int, scalars: Mapping[str, jax.Array]) -> None:
        """Write the scalars of a chunk; raises UserError for the first that is not finite."""
        values = {name: np.asarray(array)[:count] for name, array in scalars.items()}
        now = time.time()
        rate = count * self.run.plan.rows.shape[1] / (now - self.read_at)
        self.read_at = now
        if self.first is None:  # the first chunk was mostly compiling
            self.first, self.start = step + count, now
        for i in range(count):
            row = {f"train/{name}": array[i] for name, array in values.items()}
            if self.writer:
                self.writer.write(step + i + 1, row | {"perf/triplets_per_second": rate})
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
        total = len(self.run.plan.epoch)
        if now - self.said_at > 2.0 or step + count == total:
            self.said_at = now
            self.say(step + count, total, {name: array[-1] for name, array in values.items()}, rate)

    def say(self, step: int, total: int, values: Mapping[str, float], rate: float) -> None:
        """One line of progress for a person."""
        terms = "  ".join(
            f"{name.removeprefix('loss_')} {abs(value) if abs(value) < 5e-4 else value:.3f}"
            for name, value in values.items()
            if name.startswith("loss")
        )
        done = step - self.first
        left = (total - step) * (self.read_at - self.start) / done if done else 0.0
        logging.info(
            "step %d/%d  epoch %d  %s  lr %.2g  %.0f triplets/s  %s left",
            step,
            total,
            self.run.plan.epoch[step - 1],
            terms,
            values["learning_rate"],
            rate,
            "{}:{:02}".format(*divmod(round(left), 60)) if done else "?",
        )

    def scores(self, step: int, scores: Mapping[str, Any], split: str) -> None:
        """Write an evaluation and say it; the time it took does not count as training."""
        logging.info("step %d  %s %s", step, split, evaluate.line(scores))
        values = {"mAP": scores["mAP"], "mINP": scores["mINP"]}
        values |= {f"R{rank}": value for rank, value in scores["cmc"].items()}
        if self.writer:
            self.writer.write(step, {f"{split}/{name}": value for name, value in values.items()})
        now = time.time()
        self.start += now - self.read_at
        self.read_at = now


def parameter_table(params: Mapping[str, Any]) -> str:
    """Every parameter with its shape and size, and their sum."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def devices() -> str:
    """The devices in words."""
    kinds = [device.device_kind for device in jax.devices()]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
