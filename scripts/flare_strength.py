"""Scores trained workdirs on sets whose flare is of different strength, and draws the result.

python scripts/flare_strength.py --sets 0.12=data/rendered 0.25=data/flare_25
    --runs baseline=runs/b0,runs/b1 FACENet=runs/f0,runs/f1 --out docs/flare_strength.png

A set is named by the share of a blinded image that is saturated (facenet render data/flare_25
--flare_saturated 0.2,0.3); networks are compared within a set. A line is a network and a way of
matching it: after the neck, and `completed` besides (evaluate.complete). Gains are those over the
first network after the neck, on flared queries, with paired 95 % intervals over query identities
and runs (facenet_jax/retrieval/intervals.py). The figures go to a .json beside the picture.
It needs matplotlib (.[report]).
"""

import argparse
import json
import pathlib
import sys

import matplotlib
import numpy as np

matplotlib.use("agg")

import _checkout  # noqa: F401
from matplotlib import pyplot

from data_tfds.errors import UserError
from data_tfds.paths import open_path
from facenet_jax import stored
from facenet_jax.embed import embed, test_set
from facenet_jax.evaluate import ranked
from facenet_jax.lab import scores
from facenet_jax.lab.tables import changed
from facenet_jax.retrieval.intervals import bootstrap, paired
from facenet_jax.run import open_run, saved_state
from facenet_jax.runtime.checkpoint import open_checkpoints

WAYS = {"": (), ", completed": (3, 3.0)}
"""{what follows the name of a network: evaluate.complete}; both are matched after the neck."""


def of_workdir(workdir: str, root: str) -> dict[str, dict[str, np.ndarray]]:
    """{way: arrays of `scores.of_queries`} of the last checkpoint of a workdir on a data set."""
    place = open_path(workdir)
    config = stored.read_config(place)
    changed(config, {"model.neck_feature": "after", "data.root": root}, workdir)
    run = open_run(config, spec=stored.read_spec(place), training=False)
    checkpoints, of = open_checkpoints(place, run.dataset.protocol.select), test_set(run)
    embedded = embed(run, saved_state(run, checkpoints, checkpoints.latest()), of)
    checkpoints.close()
    found = {}
    for way, complete in WAYS.items():
        changed(run.config, {"evaluate.complete": complete}, workdir)
        found[way] = scores.of_queries(ranked(run, embedded, of), of.query.split)
    return found


def measured(sets: dict[float, str], runs: dict[str, list[str]]) -> dict[str, list[dict]]:
    """{line: [{strength, queries, mAP, gain, low, high}, one for each set]}, in fractions."""
    lines: dict[str, list[dict]] = {}
    for strength, root in sorted(sets.items()):
        first = None
        for label, workdirs in runs.items():
            each = [of_workdir(workdir, root) for workdir in workdirs]
            for way in WAYS:
                arrays = [found[way] for found in each]
                flared = scores.groups(arrays[0]).get("flared")
                if flared is None:
                    raise UserError(f"No query of {root} is flared; choose another set.")
                identity = arrays[0]["identity"][flared]
                precision = np.stack([x["average_precision"][flared] for x in arrays])
                first = precision if first is None else first
                gain = paired(precision, first, identity)
                lines.setdefault(label + way, []).append(
                    {
                        "strength": strength,
                        "queries": int(flared.sum()),
                        "mAP": bootstrap(precision, identity).mean,
                        "gain": gain.mean,
                        "low": gain.low,
                        "high": gain.high,
                    }
                )
                last = lines[label + way][-1]
                print(
                    f"{strength:g} {label + way}: mAP {100 * last['mAP']:.1f}, gain "
                    f"{100 * gain.mean:+.1f} [{100 * gain.low:.1f} .. {100 * gain.high:.1f}]",
                    flush=True,
                )
    return lines


def draw(lines: dict[str, list[dict]], path: pathlib.Path) -> None:
    """mAP of flared queries on the left, the gain over the first line on the right."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for number, (name, points) in enumerate(lines.items()):
        # Side by side, so that one interval does not hide another.
        x = np.array([point["strength"] for point in points]) + 0.004 * number
        left.plot(x, [100 * point["mAP"] for point in points], marker="o", label=name)
        gain, low, high = (
            100 * np.array([point[key] for point in points]) for key in ("gain", "low", "high")
        )
        right.errorbar(x, gain, [gain - low, high - gain], marker="o", capsize=3)
    right.axhline(0, color="grey", linewidth=0.8)
    left.set_ylabel("mAP of flared queries, %")
    right.set_ylabel(f"gain over {next(iter(lines))}, mAP")
    for axes in (left, right):
        axes.set_xlabel("saturated share of a blinded image")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def pairs(words: list[str], option: str) -> dict[str, str]:
    """NAME=VALUE words as a mapping."""
    found = dict(word.split("=", 1) for word in words if "=" in word)
    if len(found) < len(words):
        text = " ".join(words)
        raise UserError(f"{option} {text} must be NAME=VALUE, one or more, each name once.", 2)
    return found


def strength(text: str) -> float:
    """The name of a set as a number."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"The name {text} of a set must be a number, as in 0.12=ROOT.", 2) from None


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", required=True, metavar="STRENGTH=ROOT")
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=WORKDIR[,WORKDIR]")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the picture, a .png")
    options = parser.parse_args(arguments)
    try:
        sets = {strength(name): root for name, root in pairs(options.sets, "--sets").items()}
        runs = {name: dirs.split(",") for name, dirs in pairs(options.runs, "--runs").items()}
        if len(sets) < len(options.sets):
            raise UserError("Each set needs a strength of its own.", 2)
        if options.out.suffix != ".png" or not options.out.absolute().parent.is_dir():
            raise UserError(f"--out {options.out} must be a .png in a folder that exists.", 2)
        if len({len(dirs) for dirs in runs.values()}) > 1:
            raise UserError("Every name of --runs needs as many workdirs as the others.", 2)
        lines = measured(sets, runs)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    options.out.with_suffix(".json").write_text(json.dumps(lines, indent=1) + "\n")
    draw(lines, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
