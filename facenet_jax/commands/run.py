"""The commands that take a config: flags, processes and the compile cache are set up here.

facenet train --config configs/wmveid863.py --workdir DIR [--config.section.option=value ...]
facenet evaluate --workdir DIR        facenet embed --workdir DIR (in commands/embed.py)
facenet modalities --workdir DIR      facenet corruptions --workdir DIR [--repetitions 10]
"""

import functools
import sys
from collections.abc import Mapping

import jax
from absl import flags, logging
from ml_collections import config_flags

from data_tfds.errors import UserError
from data_tfds.paths import open_path
from facenet_jax import config as configs
from facenet_jax import evaluate as evaluation
from facenet_jax import report, stored
from facenet_jax.commands import corruptions, modalities
from facenet_jax.report import images
from facenet_jax.runtime import cli, compile_cache, memory, script, workdir
from facenet_jax.runtime.arguments import program
from facenet_jax.train import train as training

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "folder of the run; by default runs/demo for configs/demo.py")
MODES = ("train", "evaluate", "embed", "modalities", "corruptions")
flags.DEFINE_enum("mode", "train", MODES, "what to do")
flags.DEFINE_string(
    "compile_cache", str(compile_cache.default()), "folder of compiled programs, empty for none"
)
flags.DEFINE_string("profile", "", "FIRST:LAST: trace these training steps into WORKDIR/profile")
flags.DEFINE_bool("report", False, "write WORKDIR/report.html at the end of a training")
flags.DEFINE_integer("repetitions", 10, "how often images are corrupted anew", lower_bound=1)
flags.DEFINE_bool("distributed", False, "find the other hosts by the cluster's own means")
flags.DEFINE_string("coordinator", None, "address:port of process 0")
flags.DEFINE_integer("processes", 1, "their number", lower_bound=1)
flags.DEFINE_integer("process_id", 0, "which one this is", lower_bound=0)

GROUPS = {
    "the run": ("config", "workdir", "compile_cache", "profile", "report"),
    "corruptions": ("repetitions",),
    "several hosts": ("distributed", "coordinator", "processes", "process_id"),
}
"""The headings of --help; one that is a mode is for that mode alone."""

ABOUT = {
    "train": "Trains the experiment of a config; the same command goes on where it stopped.",
    "evaluate": "Scores the checkpoints of a workdir, on its data set or on another one.",
    "embed": "Writes the embeddings of query and gallery, of the workdir's data set or another.",
    "modalities": "Scores a trained network where modalities are missing.",
    "corruptions": "Scores a trained network where visible images are corrupted.",
}


def main(arguments: list[str]) -> None:
    """Do what --mode says."""
    if cli.wants_help(arguments):
        print(help_text(f"{program()} [--mode {'|'.join(MODES)}]", "", arguments))
        return
    file, arguments = define_config(arguments)
    cli.parse(FLAGS, [sys.argv[0], *arguments])
    compile_cache.use(FLAGS.compile_cache)
    if FLAGS.coordinator:
        jax.distributed.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id)
    elif FLAGS.distributed:
        jax.distributed.initialize()
    cli.set_up_log(quiet=jax.process_index() > 0)

    if FLAGS["repetitions"].present and FLAGS.mode != "corruptions":
        raise UserError(
            "--repetitions is an option of the command corruptions alone; leave it out."
        )
    if FLAGS.report:
        report.refuse_missing()
    config, folder = cli.config_and_workdir(lambda: FLAGS.config, file, FLAGS.workdir)
    if FLAGS.mode == "train":
        images.refuse_missing(config)
    if file is None:
        stored.log_added(folder)
    if FLAGS.mode != "train":
        evaluation.refuse_no_folder(folder)
    show = images.write if images.wanted(config) else None
    modes = {
        "train": functools.partial(training, profile=FLAGS.profile, show=show),
        "evaluate": evaluation.evaluate,
        "embed": evaluation.export_only,
        "modalities": modalities.of_workdir,
        "corruptions": functools.partial(corruptions.of_workdir, repetitions=FLAGS.repetitions),
    }
    with workdir.locked(folder), memory.explained(config, jax.device_count()):
        found = modes[FLAGS.mode](config, folder)
    if FLAGS.report and FLAGS.mode == "train" and found and jax.process_index() == 0:
        report.write([folder], folder / "report.html")
    logging.info("The files are in %s", folder)


def train(arguments: list[str]) -> None:
    """The command `train`."""
    command("train", arguments)


def evaluate(arguments: list[str]) -> None:
    """The command `evaluate`."""
    command("evaluate", arguments)


def missing(arguments: list[str]) -> None:
    """The command `modalities`."""
    command("modalities", arguments)


def corrupted(arguments: list[str]) -> None:
    """The command `corruptions`."""
    command("corruptions", arguments)


def command(mode: str, arguments: list[str]) -> None:
    """What the mode says, or its help."""
    if cli.wants_help(arguments):
        print(help_text(f"{program()} {mode}", mode, arguments))
        return
    main([*arguments, f"--mode={mode}"])


def define_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Define --config: that of the file given, or else that of the workdir.

    The file's name or None, and the command line with a path to it that exists, if there is one.
    """
    arguments = script.with_recipe(arguments)
    file, folder = (cli.given(arguments, name) for name in ("config", "workdir"))
    if file is None and folder is not None:
        cli.define_stored(stored.read_config(open_path(folder)), FLAGS)
    else:
        config_flags.DEFINE_config_file("config", None, "the experiment")
    return file, arguments


def help_text(usage: str, mode: str, arguments: list[str]) -> str:
    """The flags and every option of the config, at the values of --config or of the workdir."""
    file, folder = (cli.given(arguments, name) for name in ("config", "workdir"))
    if file is not None:
        config, values = script.load_config(file), file
    elif folder is not None:
        config, values = stored.read_config(open_path(folder)), folder
    else:
        config, values = configs.default_config("facenet"), "FACENet without a recipe"
    words = "the experiment, such as configs/demo.py; a workdir remembers its own"
    named = flags.FlagValues()
    flags.DEFINE_string("config", None, words, flag_values=named)
    groups: Mapping[str, list[flags.Flag]] = {
        heading: [named[name] if name == "config" else FLAGS[name] for name in names]
        for heading, names in GROUPS.items()
        if heading not in MODES or mode in ("", heading)
    }
    options = [
        (name, value, f"{option.about}; {option.legal.words}")
        for name, value, option in configs.describe(config)
    ]
    usage = f"{usage} --config FILE [--workdir DIR] [--config.section.option=value ...]"
    about = ABOUT.get(mode, "Does what --mode says.")
    text = f"{about} Below, the options of the config are shown with their values in {values}."
    return cli.help_text(usage, text, groups, options)
