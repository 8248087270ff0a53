"""Train, evaluate or embed: python main.py --config configs/wmveid863.py --workdir DIR [--mode M].

Kept short on purpose: flags, processes and the compile cache are set up here, all else is called.
"""

import functools
import os
import pathlib
import sys

import jax
from absl import flags, logging
from ml_collections import config_flags

from data_tfds.paths import open_path
from facenet_jax import evaluate, stored
from facenet_jax.runtime import cli, memory, workdir
from facenet_jax.train import train

HOME = pathlib.Path(__file__).resolve().parent
FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "folder of the run; by default runs/demo for configs/demo.py")
flags.DEFINE_enum("mode", "train", ["train", "evaluate", "embed"], "what to do")
flags.DEFINE_string(
    "compile_cache", str(HOME / ".cache" / "jax"), "folder of compiled programs, empty for none"
)
flags.DEFINE_string("profile", "", "FIRST:LAST: trace these training steps into WORKDIR/profile")
flags.DEFINE_bool("distributed", False, "several hosts: find the others by the cluster's own means")
flags.DEFINE_string("coordinator", None, "several hosts: address:port of process 0")
flags.DEFINE_integer("processes", 1, "several hosts: their number", lower_bound=1)
flags.DEFINE_integer("process_id", 0, "several hosts: which one this is", lower_bound=0)


def define_config(arguments: list[str]) -> str | None:
    """Define --config: that of the file given, or else that of the workdir; the file's name."""
    file, folder = (cli.given(arguments, name) for name in ("config", "workdir"))
    if file is None and folder is not None:
        cli.define_stored(stored.read_config(open_path(folder)), FLAGS)
    else:
        words = "the experiment, such as configs/demo.py; a workdir remembers its own"
        config_flags.DEFINE_config_file("config", None, words)
    return file


def main() -> None:
    """Do what the flags say."""
    sys.path.append(os.getcwd())  # where models, losses and data sets of your own may lie
    file = define_config(sys.argv)
    cli.parse(FLAGS, sys.argv)
    if FLAGS.compile_cache:
        jax.config.update("jax_compilation_cache_dir", FLAGS.compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if FLAGS.coordinator:
        jax.distributed.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id)
    elif FLAGS.distributed:
        jax.distributed.initialize()
    cli.set_up_log(quiet=jax.process_index() > 0)

    config, folder = cli.config_and_workdir(lambda: FLAGS.config, file, FLAGS.workdir)
    if file is None:
        stored.log_added(folder)
    training = functools.partial(train, profile=FLAGS.profile)
    mode = {"train": training, "evaluate": evaluate.evaluate, "embed": evaluate.export_only}[
        FLAGS.mode
    ]
    with workdir.locked(folder), memory.explained(config, jax.device_count()):
        mode(config, folder)
    logging.info("The files are in %s", folder)


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
