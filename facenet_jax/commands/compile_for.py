"""Compiles a config for a TPU slice that need not be there, and prints what its compiler expects.

facenet compile-for v5e:1 [--config configs/wmveid863.py] [--what train|embed|both]
    [--json FILE] [--config.section.option=value ...]

It says whether the program fits, how long a step takes, and which lines cost most. It needs libtpu,
which `pip install -e '.[tpu]'` brings to any x86-64 Linux. Minutes for a training step.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from data_tfds.errors import UserError
from facenet_jax.bench import estimate, slices
from facenet_jax.runtime import cli, script
from facenet_jax.runtime.arguments import program
from facenet_jax.runtime.writers import write_json

WHAT = ("both", "train", "embed")
RECIPE = "configs/wmveid863.py"


def define() -> flags.FlagValues:
    """The options of the command line."""
    v = flags.FlagValues()
    about = f"the experiment; {RECIPE} unless given"
    config_flags.DEFINE_config_file("config", None, about, flag_values=v)
    flags.DEFINE_enum("what", "both", WHAT, "which program", flag_values=v)
    flags.DEFINE_string("json", "", "file to write the figures to", flag_values=v)
    return v


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says, sys.argv's by default."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    values = define()
    if cli.wants_help(arguments):
        usage = "compile-for SLICE [options] [--config.section.option=value ...]"
        about = f"{__doc__.splitlines()[0]} SLICE: {', '.join(slices.SLICES)}."
        options = {"options": [values[name] for name in values]}
        print(cli.help_text(f"{program()} {usage}", about, options))
        return
    named = [word for word in arguments[:1] if not word.startswith("-")]
    if not named:
        raise UserError(f"Name a slice: {program()} compile-for {next(iter(slices.SLICES))}.", 2)
    slices.refuse(named[0])
    rest = (
        arguments[1:] if cli.given(arguments, "config") else [f"--config={RECIPE}", *arguments[1:]]
    )
    cli.parse(values, [sys.argv[0], *script.with_recipe(rest)])
    target = pathlib.Path(values.json) if values.json else None
    if target and not target.absolute().parent.is_dir():
        raise UserError(f"--json {target} lies in a folder that does not exist; make it first.", 2)
    cli.set_up_log()
    on, found = estimate.target(named[0]), []
    for what in WHAT[1:] if values.what == "both" else (values.what,):
        found.append(estimate.estimate(values.config, what, on))
        print(estimate.report(found[-1]), flush=True)
        if target:
            write_json(target, {"config": values.config.to_dict(), "programs": found})
    if not all(one["fits"] for one in found):
        raise UserError(f"It does not fit on {named[0]}; the lines above say by how much.")
