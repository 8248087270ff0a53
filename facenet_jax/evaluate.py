"""Scores and embeddings of a data set: extract, rank by the protocol, report."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from data_tfds.errors import UserError
from data_tfds.paths import Place, write_bytes
from data_tfds.samples import BANDS
from facenet_jax.inputs.dataset import Split
from facenet_jax.inputs.stream import Streamed, feed
from facenet_jax.retrieval import baselines, metrics
from facenet_jax.run import (
    Run,
    on_devices,
    open_checkpoints,
    open_run,
    saved_state,
    untrained_state,
)
from facenet_jax.runtime.checkpoint import Checkpoints
from facenet_jax.runtime.mesh import whole
from facenet_jax.runtime.workdir import claim
from facenet_jax.runtime.writers import write_json
from facenet_jax.step import Resident, State, make_extract

Embedded = tuple[np.ndarray, np.ndarray]
"""Embeddings of (query [Q, E], gallery [G, E]), float32."""

SUBSETS = ((0,), (1,), (2,), (0, 1), (0, 1, 2))
"""The bands that a breakdown scores: R, N, T, R + N, all."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """Query and gallery for the devices, query first, and their labels on the host."""

    query: Split
    gallery: Split
    data: Resident | Streamed  # rows of query, then rows of gallery
    junk: str  # the protocol's


def make_probe(run: Run, query: Split, gallery: Split) -> Probe:
    """Both splits, on the devices or to be streamed."""
    return Probe(query, gallery, on_devices(run, query, gallery), run.dataset.protocol.junk)


def test_probe(run: Run) -> Probe:
    """The data set's query and gallery."""
    return make_probe(run, run.dataset.query, run.dataset.gallery)


def validation_probe(run: Run) -> Probe | None:
    """The held-out training identities, which query themselves; None without any."""
    held_out = run.dataset.validation
    return make_probe(run, held_out, held_out) if held_out is not None else None


def embed(run: Run, state: State, probe: Probe, bands: tuple[str, ...] = BANDS) -> Embedded:
    """Embeddings float32 of (query [Q, E], gallery [G, E]) from the named bands alone."""
    variables = {"params": state.params, **state.collections}
    if run.config.train.shard_state:  # once for all batches, and no activation has to travel
        variables = whole(variables, run.mesh)
    extract, batch = make_extract(run.model, run.mesh, bands), run.config.evaluate.batch
    total = len(probe.query) + len(probe.gallery)
    row = np.arange(-(-total // batch) * batch, dtype=np.int32).reshape(-1, batch)
    rows = np.minimum(row, total - 1)
    plan = np.broadcast_to(rows[:, None], (len(rows), len(BANDS), batch))
    parts = []
    with feed(probe.data, plan, 1, run.mesh, workers=run.config.data.workers) as data:
        for i in range(len(rows)):
            real = jnp.asarray(row[i] < total)
            parts.append(extract(variables, data(1), jnp.asarray(rows[i]), real))
            if i >= 2:  # no more windows of a stream in device memory than two
                parts[i - 2].block_until_ready()
    embedding = np.concatenate([np.asarray(part) for part in parts])[:total]
    if not np.isfinite(embedding).all():
        raise UserError("The network gives embeddings that are not finite; its training diverged.")
    return embedding[: len(probe.query)], embedding[len(probe.query) :]


def group(split: Split, junk: str) -> np.ndarray | None:
    """What makes a gallery entry of the query's identity junk, None where nothing does."""
    return {"camera": split.camera, "scene": split.scene, "none": None}[junk]


def rank(probe: Probe, query: np.ndarray, gallery: np.ndarray) -> metrics.PerQuery:
    """How each valid query of the probe fares under the protocol."""
    return metrics.per_query(
        query,
        gallery,
        probe.query.identity,
        probe.gallery.identity,
        group(probe.query, probe.junk),
        group(probe.gallery, probe.junk),
    )


def score(run: Run, state: State, probe: Probe, embedded: Embedded | None = None) -> dict[str, Any]:
    """The scores of a state: mAP, mINP, cmc as fractions, counts, and the step and epoch.

    `embedded` are the state's embeddings of the probe, where they are there already.
    """
    embedded = embedded or embed(run, state, probe)
    return rank(probe, *embedded).metrics() | when(run, int(state.step))


def when(run: Run, step: int) -> dict[str, int]:
    """The step and the epoch that it belongs to, 0 before the first."""
    return {"step": step, "epoch": int(run.plan.epoch[step - 1]) if step else 0}


def floors(run: Run, probe: Probe) -> dict[str, dict[str, Any]]:
    """What a score has to beat: the untrained network, and pixels or colours without a network."""
    scores = {"untrained": score(run, untrained_state(run)(), probe)}
    for name, features in (
        ("raw_pixels", baselines.raw_pixel_features),
        ("colour_histogram", baselines.colour_histogram_features),
    ):
        ranking = rank(probe, features(probe.query.images), features(probe.gallery.images))
        scores[name] = ranking.metrics() | when(run, 0)
    return scores


def breakdown(run: Run, state: State, probe: Probe) -> dict[str, dict[str, float | None]]:
    """mAP of {bands: {"all", "clean", "flared" queries}}; clean = neither R nor N is flared.

    None where the data set has no such query that is valid.
    With fewer than three bands the others are truly absent: the network sees nothing of them.
    """
    flared = np.asarray(probe.data.flare)[: len(probe.query)].any(axis=1)
    table = {}
    for subset in SUBSETS:
        bands = tuple(BANDS[i] for i in subset)
        ranking = rank(probe, *embed(run, state, probe, bands))
        table["+".join(bands)] = {
            name: ranking.metrics(keep)["mAP"] if keep[ranking.query].any() else None
            for name, keep in (("all", flared | True), ("clean", ~flared), ("flared", flared))
        }
    return table


def evaluate(config: ml_collections.ConfigDict, workdir: Place) -> dict[str, Any]:
    """Score the checkpoints of a workdir again, and export: `--mode evaluate`."""
    run, checkpoints = open_trained(config, workdir)
    state = saved_state(run, checkpoints, checkpoints.latest())
    result = finish(run, state, checkpoints, workdir, test_probe(run))
    checkpoints.close()
    return result


def export_only(config: ml_collections.ConfigDict, workdir: Place) -> None:
    """Write the embeddings of a workdir's checkpoint: `--mode embed`."""
    run, checkpoints = open_trained(config, workdir)
    best = config.evaluate.export == "best"
    step = best_step(checkpoints) if best else checkpoints.latest()
    probe = test_probe(run)
    query, gallery = embed(run, saved_state(run, checkpoints, step), probe)
    if jax.process_index() == 0:
        export(run, probe, workdir / "embeddings", query, gallery)
    logging.info("Exported the embeddings of %d + %d triplets.", len(query), len(gallery))
    checkpoints.close()


def best_step(checkpoints: Checkpoints) -> int:
    """The step of the best checkpoint; raises UserError where none has a score."""
    step = checkpoints.best()
    if step is None:
        raise UserError(
            f"No checkpoint in {checkpoints.folder} has a score; set --config.evaluate.export=last."
        )
    return step


def open_trained(config: ml_collections.ConfigDict, workdir: Place) -> tuple[Run, Checkpoints]:
    """A run that has a checkpoint; raises UserError where it has none."""
    checkpoints = open_checkpoints(workdir)
    if checkpoints.latest() is None:
        raise UserError(f"{workdir} holds no checkpoint; train first (--mode train).")
    run = open_run(config)
    claim(workdir, config, trained=True)
    return run, checkpoints


def finish(
    run: Run,
    last: State,
    checkpoints: Checkpoints,
    workdir: Place,
    probe: Probe,
    embedded: Embedded | None = None,
) -> dict[str, Any]:
    """The scores of a run, as written to result.json: the last state, the best one, the floors.

    Also exports the embeddings and, where the config asks for it, writes breakdown.json. `embedded`
    are the last state's embeddings of the probe, where they are there already.
    """
    options = run.config.evaluate
    embedded = embedded or embed(run, last, probe)
    result = {"protocol": run.dataset.protocol.name, "last": score(run, last, probe, embedded)}
    best = best_step(checkpoints) if options.export == "best" else checkpoints.best()
    validated = run.dataset.validation is not None and best is not None
    chosen = None
    if validated or options.export == "best":
        chosen = saved_state(run, checkpoints, best)
    if validated:
        result["best_on_validation"] = score(run, chosen, probe) | {
            "validation_mAP": checkpoints.metrics(best)["mAP"]
        }
    elif best is not None:
        result["best_on_test"] = checkpoints.metrics(best)
    if options.floors:
        result |= floors(run, probe)
    if options.export == "best":
        embedded = embed(run, chosen, probe)
    table = breakdown(run, last, probe) if options.breakdown else None
    if jax.process_index() == 0:
        export(run, probe, workdir / "embeddings", *embedded)
        write_json(workdir / "result.json", result)
        if table:
            write_json(workdir / "breakdown.json", table)
    logging.info("%s", report(result, table))
    return result


def export(run: Run, probe: Probe, folder: Place, query: np.ndarray, gallery: np.ndarray):
    """Write query.npz and gallery.npz: embeddings and labels, in the schema of the README."""
    width = run.model.part_width
    parts = np.array([(i * width, (i + 1) * width) for i in range(len(BANDS))], np.int32)
    flare = np.asarray(probe.data.flare)
    for name, split, embedding, rows in (
        ("query", probe.query, query, slice(0, len(query))),
        ("gallery", probe.gallery, gallery, slice(len(query), None)),
    ):
        file = io.BytesIO()
        np.savez(
            file,
            embedding=embedding,
            parts=parts,
            modalities=np.array(BANDS),
            identity=split.identity,
            camera=split.camera,
            scene=split.scene,
            flare=flare[rows],
            name=split.name,
        )
        write_bytes(folder / f"{name}.npz", file.getvalue())


def line(scores: Mapping[str, Any], protocol: str) -> str:
    """Scores as one line for the log."""
    cmc = " ".join(f"R{k} {100 * value:.1f}" for k, value in scores["cmc"].items())
    valid = scores["valid_queries"]
    return (
        f"mAP {100 * scores['mAP']:.1f} mINP {100 * scores['mINP']:.1f} {cmc} ({protocol}: {valid} "
        f"queries valid, {scores['queries'] - valid} skipped, gallery {scores['gallery']})"
    )


def report(result: Mapping[str, Any], table: Mapping[str, Mapping[str, float]] | None) -> str:
    """result.json, and a breakdown where there is one, as a table in per cent."""
    lines = [f"{result['protocol']:28} mAP  mINP    R1    R5   R10  valid skipped   step"]
    for name, scores in result.items():
        if name != "protocol":
            values = (scores["mAP"], scores["mINP"], *(scores["cmc"][k] for k in ("1", "5", "10")))
            cells = "".join(f"{100 * value:6.1f}" for value in values)
            valid = scores["valid_queries"]
            cells += f"{valid:7}{scores['queries'] - valid:8}{scores['step']:7}"
            lines.append(f"{name.replace('_', ' '):26}{cells}")
    if table:
        lines += ["", f"{'mAP by bands present':26}{'all':>6}{'clean':>7}{'flared':>8}  (queries)"]
        for bands, row in table.items():
            values = ("-" if x is None else f"{100 * x:.1f}" for x in row.values())
            cells = "{:>6}{:>7}{:>8}".format(*values)
            lines.append(f"{bands.replace('near_infrared', 'near-infrared'):26}{cells}")
    return "\n".join(lines)
