"""The training loop: set up, restore, chunks of steps, evaluation, saving."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from clu import parameter_overview

from data_tfds.paths import Place
from facenet_jax import evaluate, optim
from facenet_jax.inputs.stream import Streamed, feed, shapes
from facenet_jax.run import (
    Run,
    check_attention,
    on_devices,
    open_checkpoints,
    open_run,
    saved_state,
    start_state,
)
from facenet_jax.runtime import memory
from facenet_jax.runtime import workdir as workdirs
from facenet_jax.runtime.log import Log
from facenet_jax.runtime.mesh import replicate
from facenet_jax.runtime.preemption import Preemption
from facenet_jax.runtime.profile import Profile
from facenet_jax.runtime.writers import Writer, drop_after
from facenet_jax.step import Resident, Schedule, State, make_chunk


def train(
    config: ml_collections.ConfigDict, workdir: Place, profile: str = ""
) -> Mapping[str, Any] | None:
    """The scores of result.json after training to the end of the plan; None when told to stop.

    Goes on from the newest checkpoint in `workdir`. Order, augmentation and rates are functions of
    (seed, step), so a run that was killed and started again ends with the same parameters.
    `profile` FIRST:LAST traces these steps into workdir/profile.
    """
    run = open_run(config)
    tokens = 1 + math.prod(run.model.patch_grid)
    check_attention(config.model, jax.default_backend(), tokens)
    total = len(run.plan.epoch)
    checkpoints = open_checkpoints(workdir)
    saved = checkpoints.latest()  # may be 0: imported weights start there
    step = saved or 0
    workdirs.claim(workdir, config, trained=saved is not None)
    tracer = Profile(profile, workdir / "profile", step, total)

    state = start_state(run) if saved is None else saved_state(run, checkpoints, saved)
    logging.info("%s", parameter_table(state.params))
    logging.info(
        "%s: %d steps of %d triplets on %s; from step %d.",
        workdir,
        total,
        run.plan.rows.shape[1],
        devices(),
        step,
    )

    # Everything the steps read is on the device before the first of them, unless it streams.
    data = on_devices(run, run.dataset.train)
    rows, rates = tables(run)
    schedule = replicate(Schedule(rows, rates), run.mesh)
    probe, validation = evaluate.test_probe(run), evaluate.validation_probe(run)
    others = [part.data for part in (probe, validation) if part]
    # A run that has ended only writes its results again.
    chunk = compiled(run, state, data, schedule, others) if step < total else None
    evaluate_at, save_at = due(run)
    best = best_score(checkpoints)
    writer = None
    if jax.process_index() == 0:
        drop_after(workdir / "metrics.jsonl", step)
        writer = Writer(workdir)
    log = Log(run, writer)
    embedded = None

    per_dispatch, workers = config.train.steps_per_dispatch, config.data.workers
    reader = feed(data, rows, per_dispatch, run.mesh, workers=workers, start=step)
    with Preemption() as preemption, checkpoints, reader as batches:
        while step < total:
            tracer.at(step, state)
            stop = next(s for s in range(step + 1, total + 1) if evaluate_at[s] or save_at[s])
            count = min(stop - step, per_dispatch, *tracer.until(step))
            state, scalars = chunk(state, batches(count), schedule, np.int32(count))
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

        tracer.at(step, state)

    log.flush()
    embedded = None if validation else embedded  # the last evaluation was of the test set
    result = evaluate.finish(run, state, checkpoints, workdir, probe, embedded)
    checkpoints.close()
    if writer:
        writer.close()
    return result


def compiled(
    run: Run,
    state: State,
    data: Resident | Streamed,
    schedule: Schedule,
    others: Sequence[Resident | Streamed],
) -> Callable[..., tuple[State, Mapping[str, jax.Array]]]:
    """The chunk of steps, compiled; raises UserError where it cannot fit beside all the images."""
    per_dispatch, size = run.config.train.steps_per_dispatch, run.plan.rows.shape[1]
    reads = shapes(data, per_dispatch, size, run.mesh)
    start = time.time()
    chunk = make_chunk(run.model, run.optimizer, run.config, run.mesh)
    program = chunk.lower(state, reads, schedule, np.int32(0)).compile()
    logging.info("Compiled the training step in %.1f s.", time.time() - start)
    need = memory.budget(state, reads, others, program, run.mesh)
    logging.info("%s", need)
    memory.check(need, run.config, run.mesh.size)
    return program


def tables(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The rows int32 [S, M, B] and the learning rates float32 [S, 2] of the whole run."""
    rates = optim.rate_table(run.config.optim, run.plan.epoch, run.config.train.epochs)
    shape = (len(rates), len(run.model.bands), run.plan.rows.shape[1])
    return np.broadcast_to(run.plan.rows[:, None], shape), rates


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


def parameter_table(params: Mapping[str, Any]) -> str:
    """Every parameter with its shape and size, and their sum."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def devices() -> str:
    """The devices in words."""
    kinds = [device.device_kind for device in jax.devices()]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
