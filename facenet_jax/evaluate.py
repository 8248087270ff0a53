"""Scores and embeddings of a data set: extract, rank by the protocol, report."""

import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from data_tfds.errors import UserError
from data_tfds.paths import Place, is_remote
from data_tfds.samples import Protocol, Split
from facenet_jax import retrieval, stored
from facenet_jax.embed import (
    Embedded,
    EvalSet,
    as_embeddings,
    embed,
    test_set,
)
from facenet_jax.retrieval import breakdown, calibration, sanity_baselines
from facenet_jax.retrieval.missing import subsets
from facenet_jax.retrieval.report import report
from facenet_jax.retrieval.scoring import completed, configured
from facenet_jax.run import (
    Run,
    open_run,
    saved_state,
    untrained_state,
)
from facenet_jax.runtime import data_record
from facenet_jax.runtime import workdir as workdirs
from facenet_jax.runtime.checkpoint import Checkpoints, has_checkpoint, open_checkpoints
from facenet_jax.runtime.writers import write_json
from facenet_jax.step import State


def score(run: Run, state: State, of: EvalSet, embedded: Embedded | None = None) -> dict[str, Any]:
    """The scores of a state: mAP, mINP, cmc as fractions, counts, and the step and epoch.

    `embedded` are the state's embeddings of the set, where they are known already.
    """
    result = ranked(run, embedded or embed(run, state, of), of)
    return result.metrics() | run.when(int(state.step))


def ranked(run: Run, embedded: Embedded, of: EvalSet) -> retrieval.Result:
    """The ranking of the set, by the protocol and as `config.evaluate` wants it."""
    return configured(*embedded, of.protocol, run.config.evaluate)


def refinements(run: Run) -> dict[str, tuple]:
    """What `config.evaluate` says of expansion, augmentation of the gallery and re-ranking."""
    options = run.config.evaluate
    found = {name: getattr(options, name) for name in ("expand", "augment_gallery")}
    found = {name: (int(x[0]), float(x[1])) for name, x in found.items() if x}
    if options.rerank:
        k1, k2, weight = options.rerank
        found["rerank"] = (int(k1), int(k2), float(weight))
    return found


def refined(run: Run, embedded: Embedded, of: EvalSet) -> retrieval.Result:
    """The ranking of the set after `refinements`, which must not be empty."""
    options = run.config.evaluate
    return retrieval.evaluate(
        *(*embedded, of.protocol),
        centre=options.centre,
        complete=completed(*embedded, options),
        **refinements(run),
    )


def baselines(run: Run, of: EvalSet) -> dict[str, dict[str, Any]]:
    """Scores that a trained network must exceed: untrained, raw pixels, colour histograms."""
    scores = {"untrained": score(run, untrained_state(run)(), of)}
    halves = (of.query, of.gallery)
    features = {
        "raw_pixels": [sanity_baselines.raw_pixel_features(pixels(x.split)) for x in halves]
    }
    seen = [("visible",) if "visible" in x.split.images else x.split.modalities for x in halves]
    if all(len(names) == 1 for names in seen):  # an infrared side has histograms of its own
        features["colour_histogram"] = [
            sanity_baselines.colour_histogram_features(pixels(x.split, *names)[0])
            for x, names in zip(halves, seen, strict=True)
        ]
    for name, sides in features.items():
        embedded = [as_embeddings(x, {}, half.split) for x, half in zip(sides, halves, strict=True)]
        scores[name] = ranked(run, embedded, of).metrics() | run.when(0)
    return scores


def pixels(split: Split, *modalities: str) -> list[np.ndarray]:
    """The images uint8 [N, H, W, 3] of each modality by sample, black where one is missing."""
    found = []
    for modality in modalities or split.modalities:
        images, row = split.images[modality], split.rows[split.modalities.index(modality)]
        if not np.array_equal(row, np.arange(len(images))):
            black = np.zeros((1, *images.shape[1:]), np.uint8)
            images = np.concatenate([images, black])[row]
        found.append(images)
    return found


def per_modality(run: Run, state: State, of: EvalSet) -> dict[str, dict[str, float | None]] | None:
    """mAP of {modalities: {"all", "clean", "flared" queries}}; clean = no image is flared.

    Every subset of the modalities. None as a value where the data set has no such query that is
    valid; the network gets no image of the modalities left out.
    None where query and gallery differ in modalities, or have only one.
    """
    names = of.query.split.modalities
    if of.query.data is not of.gallery.data or len(names) < 2:
        return None
    flare = of.query.split.labels.get("flare", np.zeros((len(of.query.split), 1), bool))
    flared = flare.any(axis=1)
    table = {}
    for subset in subsets(names):
        result = ranked(run, embed(run, state, of, subset), of)
        found = {
            name: result.subset(keep)
            for name, keep in (("all", flared | True), ("clean", ~flared), ("flared", flared))
        }
        table["+".join(subset)] = {name: scores and scores["mAP"] for name, scores in found.items()}
    return table


def evaluate(config: ml_collections.ConfigDict, workdir: Place) -> dict[str, Any]:
    """Score the checkpoints of a workdir again, and export: `--mode evaluate`."""
    run, checkpoints, folder, own = open_trained(config, workdir, "evaluate")
    state = saved_state(run, checkpoints, checkpoints.latest())
    result = finish(run, state, checkpoints, folder, test_set(run), own=own)
    checkpoints.close()
    return result


def export_only(config: ml_collections.ConfigDict, workdir: Place) -> None:
    """Write the embeddings of a workdir's checkpoint: `--mode embed`."""
    run, checkpoints, folder, _ = open_trained(config, workdir, "embed")
    best = config.evaluate.export == "best"
    step = best_step(checkpoints) if best else checkpoints.latest()
    of = test_set(run)
    embedded = embed(run, saved_state(run, checkpoints, step), of)
    if jax.process_index() == 0:
        export(folder / "embeddings", embedded, step, of.protocol)
    logging.info(
        "Exported the embeddings of %d + %d samples to %s.",
        *map(len, embedded),
        folder / "embeddings",
    )
    checkpoints.close()


def refuse_no_folder(workdir: Place) -> None:
    """Raises UserError where there is no such folder, so that none is made of a mistyped name."""
    if not is_remote(workdir) and not workdir.is_dir():
        raise UserError(
            f"There is no folder {workdir}, so it holds no checkpoint; train first, or correct "
            "--workdir."
        )


def best_step(checkpoints: Checkpoints) -> int:
    """The step of the best checkpoint. Raises UserError where none has a score."""
    step = checkpoints.best()
    if step is None:
        raise UserError(
            f"No checkpoint in {checkpoints.folder} has a score; set --config.evaluate.export=last."
        )
    return step


def open_trained(
    config: ml_collections.ConfigDict, workdir: Place, mode: str
) -> tuple[Run, Checkpoints, Place, bool]:
    """(the run of a trained model, its checkpoints, the folder to write to, whether it is scored on
    the data that the scores in its checkpoints are of).

    The data set may be another one than the model was trained on; then the results go to a folder
    of their own. Raises UserError where there is no checkpoint, the model differs, or the folder
    has results of other files.
    """
    if not has_checkpoint(workdir):
        raise UserError(f"{workdir} holds no checkpoint; train first (--mode train).")
    spec = stored.read_spec(workdir)
    folder = stored.results_folder(workdir, config)
    stored.log_used(workdir, config)
    run = open_run(config, spec=spec, training=False)
    digests = run.dataset.digests
    if folder != workdir and stored.moved(workdir, config, digests):
        folder = workdir
    changed = data_record.refuse_other_data(folder, config, digests)
    if jax.process_index() == 0:
        workdirs.write_environment(folder, mode)
        data_record.write(folder, config, digests)
        if folder != workdir:
            write_json(folder / "config.json", config.to_dict())
            logging.info("The results on %s go to %s.", run.dataset.name, folder)
    checkpoints = open_checkpoints(workdir, run.dataset.protocol.select)
    saved = {step: checkpoints.metrics(step) or {} for step in checkpoints.steps()}
    epochs = {step: scores["epoch"] for step, scores in saved.items() if "epoch" in scores}
    own = folder == workdir and stored.same_scores(workdir, config) and not changed
    return dataclasses.replace(run, epochs=epochs), checkpoints, folder, own


def finish(
    run: Run,
    last: State,
    checkpoints: Checkpoints,
    folder: Place,
    of: EvalSet,
    embedded: Embedded | None = None,
    own: bool = True,
) -> dict[str, Any]:
    """The scores of a run, as written to result.json: the last state, the best one, baselines.

    Also exports the embeddings and, where the config asks for it, writes per_modality.json.

    Args:
        run: the run.
        last: its last state.
        checkpoints: the others.
        folder: where to write.
        of: what is scored.
        embedded: the last state's embeddings of the set, where they are known already.
        own: whether the set is that of training, whose scores are in the checkpoints.
    """
    options = run.config.evaluate
    embedded = embedded or embed(run, last, of)
    ranking = ranked(run, embedded, of)
    scores = ranking.metrics() | run.when(int(last.step))
    result = {"protocol": run.dataset.protocol.name, "last": scores}
    best = best_step(checkpoints) if options.export == "best" else checkpoints.best()
    validated = run.config.data.validation_identities > 0 and best is not None
    rescored = best is not None and (validated or not own)
    chosen = None
    if rescored or options.export == "best":
        chosen = saved_state(run, checkpoints, best)
    if rescored:
        name = "best_on_validation" if validated else "best_in_training"
        result[name] = score(run, chosen, of)
        if validated:
            result[name]["validation_mAP"] = checkpoints.metrics(best)["mAP"]
    elif best is not None:
        result["best_on_test"] = checkpoints.metrics(best)
    if options.sanity_baselines:
        result |= baselines(run, of)
    if options.export == "best":
        embedded = embed(run, chosen, of)
        ranking = ranked(run, embedded, of)
    exported = best if options.export == "best" else int(last.step)
    said = {name: list(values) for name, values in refinements(run).items()}
    if said:
        result["refined"] = refined(run, embedded, of).metrics() | said | run.when(exported)
    table = per_modality(run, last, of) if options.per_modality else None
    if jax.process_index() == 0:
        export(folder / "embeddings", embedded, exported, of.protocol)
        write_json(folder / "result.json", result)
        details = breakdown.details(*embedded, of.protocol, ranking)
        write_json(folder / "scores.json", {"step": exported} | details)
        if table:
            write_json(folder / "per_modality.json", table)
    logging.info("%s", report(result, table))
    return result


def export(folder: Place, embedded: Embedded, step: int, protocol: Protocol) -> None:
    """Write query.npz and gallery.npz, in the schema of `Embeddings`, the step they are of, and the
    thresholds of pairs, see `calibration.calibrate`.
    """
    for name, side in zip(("query", "gallery"), embedded, strict=True):
        side.write(folder / f"{name}.npz")
    write_json(
        folder / "threshold.json", {"step": step} | calibration.calibrate(*embedded, protocol)
    )
    write_json(folder / "checkpoint.json", {"step": step})
