"""Scores a trained network where visible images are corrupted.

facenet corruptions --workdir DIR [--repetitions 10] [--config.data.name=... --config.data.root=...]

Every visible image of the test set gets one of 20 types of corruption at one of five severities, at
random (MUN's Table 5); all other images stay as they are. Repeated with other draws, the means and
deviations are printed beside the scores without corruption, and written to
WORKDIR/corruptions.json. `--config.evaluate.export=best` takes the best checkpoint.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from data_tfds.errors import UserError
from data_tfds.paths import Place
from data_tfds.samples import VISIBLE, Split
from facenet_jax import evaluate
from facenet_jax.embed import EvalSet, Half, embed, embed_half, test_set
from facenet_jax.inputs import corruptions
from facenet_jax.run import Run, on_devices, saved_state
from facenet_jax.runtime.progress import Bar
from facenet_jax.runtime.writers import write_json
from facenet_jax.step import State

SIDES = ("query", "gallery")
CHUNK = 256
"""Images that are corrupted between two steps of the bar."""


def scores(run: Run, state: State, of: EvalSet, repetitions: int) -> dict[str, Any]:
    """What corruptions.json holds; repetition r has the draws of seed r.

    `protocol`, `step`, `corrupted` (the sides with visible images), `repetitions`, `clean` (the
    scores of the images as they are), `mean` and `deviation` (of mAP, mINP and cmc over
    the repetitions: as in `Result.metrics` those of these repetitions, not an estimate from them),
    `each` (the scores of every repetition), `drawn` ({type: images}, in all repetitions together)
    and `note`. Raises UserError where no side has a visible image.
    """
    halves = {name: getattr(of, name) for name in SIDES}
    sides = [name for name, half in halves.items() if has_visible(half.split)]
    if not sides:
        named = " with ".join(", ".join(half.split.modalities) for half in halves.values())
        raise UserError(
            f"The protocol {of.protocol.name} compares {named}, without a visible image; this "
            "command corrupts visible images."
        )
    clean = embed(run, state, of)
    each, drawn = [], dict.fromkeys(corruptions.TYPES, 0)
    for seed in range(repetitions):
        found, first = dict(zip(SIDES, clean, strict=True)), 0
        for name in sides:
            split = halves[name].split
            if name == "gallery" and split is of.query.split:  # an image is corrupted once
                found["gallery"] = found["query"]
                continue
            split, types = corrupted(split, seed, first)
            first += len(types)
            for kind in types:
                drawn[kind] += 1
            found[name] = embed_half(run, state, Half(split, *on_devices(run, split)))
        embedded = tuple(found[name] for name in SIDES)
        each.append(evaluate.score(run, state, of, embedded))
    return {
        "protocol": of.protocol.name,
        "step": int(state.step),
        "corrupted": sides,
        "repetitions": repetitions,
        "clean": evaluate.score(run, state, of, clean),
        "mean": over(each, np.mean),
        "deviation": over(each, np.std),
        "each": each,
        "drawn": drawn,
        "note": corruptions.FROST_NOTE,
    }


def has_visible(split: Split) -> bool:
    """Whether some sample has a visible image."""
    return VISIBLE in split.modalities and bool(
        split.present[split.modalities.index(VISIBLE)].any()
    )


def corrupted(split: Split, seed: int, first: int = 0) -> tuple[Split, list[str]]:
    """(the split with its visible images corrupted, the type of each of them).

    The images are those that samples have, in the order of the array they come from; the first of
    them is number `first` of the draws of `seed`.
    """
    number = split.modalities.index(VISIBLE)
    row = split.rows[number]
    used = np.unique(row[row >= 0])
    images, types = [], []
    with Bar("corrupting", len(used), "images") as bar:
        for start in range(0, len(used), CHUNK):
            some = split.images[VISIBLE][used[start : start + CHUNK]]
            new, names, _ = corruptions.corrupted(some, seed, first + start)
            images.append(new)
            types += names.tolist()
            bar.update(len(some))
    rows = split.rows.copy()
    rows[number] = np.where(row >= 0, np.searchsorted(used, row), -1)
    new = {**split.images, VISIBLE: np.concatenate(images)}
    return dataclasses.replace(split, images=new, rows=rows), types


def over(each: list[Mapping[str, Any]], statistic: Callable) -> dict[str, Any]:
    """`statistic`, such as np.mean, over scores: of mAP, mINP and every rank of cmc."""
    found = {name: float(statistic([one[name] for one in each])) for name in ("mAP", "mINP")}
    ranks = each[0]["cmc"]
    return found | {"cmc": {k: float(statistic([one["cmc"][k] for one in each])) for k in ranks}}


def text(found: Mapping[str, Any]) -> str:
    """The scores as a table in per cent, with what it must be read with."""
    rows = [("clean", found["clean"], None), ("corrupted", found["mean"], found["deviation"])]
    lines = [f"{'visible images':15}{'mAP':>13}{'mINP':>13}{'R1':>13}"]
    for name, values, deviations in rows:
        line = f"{name:15}"
        for x, d in zip(three(values), three(deviations), strict=True):
            line += (
                f"{100 * x:.1f} +- {100 * d:.1f}".rjust(13) if deviations else f"{100 * x:13.1f}"
            )
        lines.append(line)
    sides = " and ".join({"query": "queries", "gallery": "gallery"}[s] for s in found["corrupted"])
    return "\n".join(
        [
            *lines,
            f"Corrupted: {sides}; {found['repetitions']} repetitions; +- is their standard "
            "deviation.",
            f"Note: {found['note']}.",
        ]
    )


def three(values: Mapping[str, Any] | None) -> tuple[float, float, float]:
    """(mAP, mINP, R1) of scores; zeros for none."""
    return (values["mAP"], values["mINP"], values["cmc"]["1"]) if values else (0.0, 0.0, 0.0)


def of_workdir(config: ml_collections.ConfigDict, workdir: Place, repetitions: int) -> None:
    """`--mode corruptions`: the scores of a workdir's checkpoint, printed and written."""
    run, checkpoints, folder, _ = evaluate.open_trained(config, workdir, "corruptions")
    best = config.evaluate.export == "best"
    step = evaluate.best_step(checkpoints) if best else checkpoints.latest()
    found = scores(run, saved_state(run, checkpoints, step), test_set(run), repetitions)
    if jax.process_index() == 0:
        write_json(folder / "corruptions.json", found)
    logging.info("%s, step %d\n%s", found["protocol"], found["step"], text(found))
    checkpoints.close()
