"""Measures a config on random pixels in its data set's size; no data set is needed.

facenet benchmark --config configs/wmveid863.py [--what train|embed|input|evaluate]
    [--chunks 10] [--steps_per_chunk K] [--json FILE] [--profile DIR] [--config.model.dtype=...]

train: training steps, as main.py runs them. embed: embeddings, as an evaluation takes them.
evaluate: all embeddings of the test set and their ranking. input: images streamed from a file,
against what training takes.

facenet benchmark --everything --minutes 9 --out FOLDER [--config FILE]

All that is worth knowing of a device, in order of worth and within the minutes; the same command
goes on where it stopped. It writes benchmark.json and benchmark.md, see bench/everything.py.
"""

import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from data_tfds.errors import UserError
from facenet_jax.bench.everything import Request, everything
from facenet_jax.bench.measures import WHAT, Options, run_benchmark
from facenet_jax.commands import STARTED
from facenet_jax.runtime import cli, compile_cache, script
from facenet_jax.runtime.arguments import program
from facenet_jax.runtime.writers import write_json

ALONE = ("what", "chunks", "steps_per_chunk", "json", "profile", "folder", "compile_cache")
"""Options that --everything decides for each measurement."""

EVERYTHING = (
    "all that is worth knowing of a device instead: facenet benchmark --everything --minutes 9 "
    "--out FOLDER; the same command goes on where it stopped"
)
RECIPE = "configs/wmveid863.py"
"""The config of --everything, where none is given."""


def report(result: dict[str, Any]) -> str:
    """The result as a table for a person."""
    options, packages = result["config"], result["packages"]
    kinds = [device.rsplit(" ", 1)[0] for device in result["devices"]]
    low, high = result.get("rate_quartiles", (0, 0))
    lines = {
        "measured": "{} of {} on random pixels, {} x {} pixels, {}, {} x {}".format(
            result["what"],
            result["file"],
            *options["data"]["image_size"],
            result["dtype"],
            len(kinds),
            kinds[0],
        ),
        "versions": ", ".join(
            [f"python {result['python']}"]
            + [f"{name} {packages[name]}" for name in ("jax", "jaxlib", "flax", "optax")]
            + [f"commit {result['commit'] or 'unknown'}"]
        ),
    }
    if "rate" in result:
        lines[result["unit"]] = "{:.4g}, quartiles {:.4g} to {:.4g}, {} chunks".format(
            result["rate"], low, high, result["chunks"]
        )
    if "batch" in result:
        lines["batch"] = f"{result['batch']}, {result['steps_per_chunk']} batches in a chunk"
    if "flops_per_sample" in result:
        lines["ms per step"] = f"{result['ms_per_step']:.4g}"
        lines["model FLOPs"] = "{:.5g} G a sample; XLA counts {:.5g} G with all elementwise".format(
            result["flops_per_sample"] / 1e9, result["xla_flops_per_sample"] / 1e9
        )
        lines["MFU"] = "{:.1f} % of {:.4g} TFLOP/s ({})".format(
            100 * result["mfu"], result["peak_flops_per_second"] / 1e12, result["peak_how"]
        )
        lines["memory"] = ", ".join(
            f"{name.replace('_', ' ')} {amount / 2**30:.2f} GiB"
            for name, amount in result["memory"].items()
            if amount is not None
        )
    lines |= {
        name.replace("_", " "): f"{value:.4g}"
        for name, value in result.items()
        if name.endswith(("_seconds", "_rate", "_to_training")) and isinstance(value, float)
    }
    return "\n".join(f"{name:34}{text}" for name, text in lines.items())


def define() -> flags.FlagValues:
    """The options of the command line."""
    v = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "the experiment", flag_values=v)
    flags.DEFINE_enum("what", "train", list(WHAT), "what to measure", flag_values=v)
    flags.DEFINE_integer("chunks", 10, "timed calls", lower_bound=1, flag_values=v)
    flags.DEFINE_integer(
        "steps_per_chunk", None, "batches in a call, instead of the config's", 1, flag_values=v
    )
    flags.DEFINE_string("json", "", "file to write the result to", flag_values=v)
    flags.DEFINE_string("profile", "", "folder to write a trace of three calls to", flag_values=v)
    flags.DEFINE_string("folder", None, "where `input` writes its file", flag_values=v)
    flags.DEFINE_bool("everything", False, EVERYTHING, flag_values=v)
    flags.DEFINE_float("minutes", None, "with --everything: no more", 0.0, flag_values=v)
    flags.DEFINE_string("out", None, "with --everything: folder of the files", flag_values=v)
    cache = str(compile_cache.default())
    flags.DEFINE_string("compile_cache", cache, "compiled programs, empty for none", flag_values=v)
    return v


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says, sys.argv's by default."""
    arguments = sys.argv[1:] if arguments is None else arguments
    values = define()
    if cli.wants_help(arguments):
        usage = "benchmark --config FILE [options] [--config.section.option=value ...]"
        options = {"options": [values[name] for name in values]}
        print(cli.help_text(f"{program()} {usage}", __doc__.splitlines()[0], options))
        return
    if "--everything" in arguments and cli.given(arguments, "config") is None:
        arguments = [f"--config={RECIPE}", *arguments]
    arguments = script.with_recipe(arguments)
    cli.parse(values, [sys.argv[0], *arguments])
    if values.everything:
        measure_everything(values, arguments)
        return
    if values["minutes"].present or values["out"].present:
        raise UserError("--minutes and --out are options of --everything; leave them out.", 2)
    compile_cache.use(values.compile_cache)
    file = values["config"].config_filename if values["config"].present else None
    config, _ = cli.config_and_workdir(lambda: values.config, file, None)
    if values.steps_per_chunk:
        config.train.steps_per_dispatch = values.steps_per_chunk
    elif values.what == "input":  # four measurements in one
        config.train.steps_per_dispatch = min(10, config.train.steps_per_dispatch)
    target = pathlib.Path(values.json) if values.json else None
    if target and not target.absolute().parent.is_dir():
        raise UserError(f"--json {target} lies in a folder that does not exist; make it first.", 2)
    options = Options(values.what, values.chunks, STARTED, values.profile, values.folder)
    result = {"file": file, **run_benchmark(config, options)}
    print(report(result))
    if target:
        write_json(target, result)


def measure_everything(values: flags.FlagValues, arguments: list[str]) -> None:
    """What --everything does; `arguments` is the command line that was read into `values`."""
    given = [f"--{name}" for name in ALONE if values[name].present]
    if given:
        raise UserError(f"--everything decides {', '.join(given)} by itself; leave it out.", 2)
    if not values.out or not values.minutes:
        raise UserError("--everything needs --minutes 9 and --out FOLDER.", 2)
    overrides = [word for word in arguments if word.startswith("--config.")]
    for word in overrides:
        if "=" not in word:
            raise UserError(f"Write {word}=value as one word for --everything.", 2)
    file = values["config"].config_filename
    config, _ = cli.config_and_workdir(lambda: values.config, file, None)
    cli.set_up_log()
    out = pathlib.Path(values.out)
    request = Request(
        config, file, tuple(overrides), values.minutes, out, (program(), "benchmark", *arguments)
    )
    content = everything(request)
    print((out / "benchmark.md").read_text(), end="")
    print(f"{len(content['measurements'])} measurements are in {out / 'benchmark.json'}")
