"""The training loop: set up, restore, chunks of steps, evaluation, saving."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from clu import parameter_overview

from data_tfds.errors import UserError
from data_tfds.paths import Place, is_remote
from facenet_jax import config as configs
from facenet_jax import evaluate, models, stored
from facenet_jax.embed import Embedded, EvalSet, embed, test_set, validation_set
from facenet_jax.inputs import dataset as datasets
from facenet_jax.inputs.device import DeviceSplit
from facenet_jax.inputs.stream import OnDiskSplit, open_reader
from facenet_jax.retrieval.report import line
from facenet_jax.run import (
    Program,
    Run,
    compile_step,
    open_run,
    saved_state,
    start_state,
    state_shapes,
    training_images,
)
from facenet_jax.runtime import data_record, memory, writers
from facenet_jax.runtime import workdir as workdirs
from facenet_jax.runtime.checkpoint import Checkpoints, open_checkpoints
from facenet_jax.runtime.checkpoint_record import selected
from facenet_jax.runtime.log import Log
from facenet_jax.runtime.preemption import Preemption
from facenet_jax.runtime.profile import Profile
from facenet_jax.step import is_divided


def train(
    config: ml_collections.ConfigDict,
    workdir: Place,
    profile: str = "",
    show: Callable[[Place, writers.Writer, int], None] | None = None,
) -> Mapping[str, Any] | None:
    """The scores of result.json after training to the end of the plan; None if a signal stopped it.

    Goes on from the newest checkpoint in `workdir`. Order, augmentation and rates are functions of
    (seed, step), so a run that was killed and started again ends with the same parameters.
    `profile` FIRST:LAST traces these steps into workdir/profile. `show` is called by process 0 when
    the results are written, with the workdir, the writer and the number of steps.
    """
    # Put the run together and find the step to start from.
    # On a disk, opening checkpoints that are not there would create the folder.
    trained = is_remote(workdir) or (workdir / "checkpoints").exists()
    found = open_checkpoints(workdir).latest() if trained else None  # 0: imported weights
    if found is None:
        refuse_missing(config)
    else:
        stored.refuse_other_run(workdir, config)
    writers.refuse_missing(config.train.writers)
    run = open_run(config)
    digests = run.dataset.digests
    changed = found is not None and data_record.refuse_other_data(workdir, config, digests)
    checkpoints = open_checkpoints(workdir, run.dataset.protocol.select)
    total, step = len(run.plan.epoch), found or 0
    if jax.process_index() == 0:
        stored.claim(workdir, config, run.model.spec)
        data_record.write(workdir, config, digests, afresh=found is None)
        workdirs.write_environment(workdir, "train")
    tracer = Profile(profile, workdir / "profile", step, total)

    state = start_state(run) if found is None else saved_state(run, checkpoints, found)
    if jax.process_index() == 0:
        writers.write_text(workdir / "parameters.txt", parameter_table(state.params) + "\n")
    logging.info(
        "%s: %d steps of %d samples on %s; from step %d. %s parameters (parameters.txt has each).",
        workdir,
        total,
        run.plan.batch,
        devices(run),
        step,
        f"{parameter_overview.count_parameters(state.params):,}",
    )

    # Put the images on the devices before the first step, unless they are streamed.
    images = training_images(run)
    test, validation = test_set(run), validation_set(run)
    # A run that is complete only writes its results again.
    program = compiled(run, images, [test, validation]) if step < total else None
    evaluate_at, save_at = due(run)
    best = best_score(checkpoints, run.dataset.protocol.select)
    # A signal may have come between a step and its evaluation, which is then made now.
    unscored = bool(found and evaluate_at[step]) and checkpoints.metrics(step) is None
    writer = None
    if jax.process_index() == 0:
        writers.drop_after(workdir / "metrics.jsonl", step, evaluated=not unscored)
        writer = writers.Writer(workdir, config.train.writers, config.to_dict(), resumed=step > 0)
    log = Log(run.plan.epoch, run.plan.batch, writer)
    embedded = None

    per_dispatch, workers = config.train.steps_per_dispatch, config.data.workers
    reader = open_reader(images, run.plan.rows, per_dispatch, run.mesh, workers=workers, start=step)

    def scored() -> tuple[dict[str, Any], Embedded]:
        """The scores of the state, logged, and its embeddings."""
        log.flush()
        of, name = (validation, "validation") if validation else (test, "test")
        found = embed(run, state, of)
        scores = evaluate.score(run, state, of, found)
        log.scores(step, scores, name, line(scores, run.dataset.protocol.name))
        return scores, found

    ended = writer or contextlib.nullcontext()
    with ended, Preemption() as preemption, checkpoints, reader as read:
        if unscored:
            scores, embedded = scored()
            checkpoints.note(step, scores)
            best = max(best, selected(scores, run.dataset.protocol.select))
        while step < total:
            # Run the steps up to the next evaluation, checkpoint or trace.
            tracer.at(step, state)
            stop = next(s for s in range(step + 1, total + 1) if evaluate_at[s] or save_at[s])
            count = min(stop - step, per_dispatch, *tracer.until(step))
            state, scalars = program(state, read(count), count)
            # The devices compute this chunk while the scalars of the last one are written.
            log.push(step, count, scalars)
            step += count
            leave = preemption.requested()

            # Evaluate where it is due.
            scores, embedded = None, None
            if evaluate_at[step] and not leave:
                scores, embedded = scored()
            # Save where it is due, and the best so far.
            value = selected(scores, run.dataset.protocol.select) if scores else -1.0
            if leave or save_at[step] or value > best:
                log.flush()  # raises on a loss that is not finite, before it can be saved
                checkpoints.save(step, state, scores)
            best = max(best, value)
            if leave:
                checkpoints.close()
                if writer:
                    writer.close()
                logging.info(
                    "Stopped by %s; saved step %d. Start again to go on.", preemption.name, step
                )
                return None

        tracer.at(step, state)

    # Write the results.
    log.flush()
    embedded = None if validation else embedded  # the last evaluation was of the test set
    result = evaluate.finish(run, state, checkpoints, workdir, test, embedded, own=not changed)
    checkpoints.close()
    if writer:
        writer.results(result)
        if show:
            with writer:
                show(workdir, writer, step)
        writer.close()
    return result


def refuse_missing(config: ml_collections.ConfigDict) -> None:
    """Raises UserError that names all that a first start lacks, weights and data set, at once."""
    configs.check(config)
    try:
        models.check_start(config)
    except UserError as weights:
        try:
            datasets.refuse_absent(config.data)
        except UserError as data:
            raise UserError(f"Two things are missing. {weights} {data}", data.exit_code) from data
        raise


def compiled(
    run: Run,
    images: DeviceSplit | OnDiskSplit,
    sets: Sequence[EvalSet | None],
) -> Program:
    """The compiled steps. Raises UserError where they do not fit in memory beside all images."""
    logging.info("Compiling the training step, once ...")
    halves = [half for each in sets if each for half in (each.query, each.gallery)]
    others = list({id(half.data): half.data for half in halves}.values())
    program = compile_step(run, images, others)
    logging.info("Compiled the training step in %.1f s.", program.compile_seconds)
    need = program.budget(state_shapes(run), others)
    logging.info("%s", need)
    memory.check(need, run.config, run.mesh.size)
    return program


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


def best_score(checkpoints: Checkpoints, select: str) -> float:
    """The highest score among the saved checkpoints, -1 where none has one."""
    step = checkpoints.best()
    return selected(checkpoints.metrics(step), select) if step is not None else -1.0


def parameter_table(params: Mapping[str, Any]) -> str:
    """Every parameter with its shape and size, and their sum."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def devices(run: Run) -> str:
    """The devices in words, and whether they hold a part of the state each."""
    kinds = [device.device_kind for device in jax.devices()]
    words = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    shares = is_divided(run.config, run.mesh)
    return words + (" (parameters and optimiser divided over them)" if shares else "")
