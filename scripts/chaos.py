"""Looks for what breaks: spoils every file format at random, and kills training at random instants.

python scripts/chaos.py --minutes 10 --seed 0 [--what fuzz|kills|both] [--cases 1000]

`fuzz` runs --cases cases of each reader, in process, and again with further ones until half of the
time is over; a case depends on the seed, the reader and its number alone. `kills` trains, kills,
fills the disk, lets the run end and compares its bits with those of an undisturbed one. Ends with
exit code 1 if anything ended wrong; docs/reliability.md says what is promised.
"""

import argparse
import pathlib
import sys
import tempfile
import time
import warnings

import _checkout  # noqa: F401
import jax
from absl import logging

from facenet_jax.runtime import script
from facenet_jax.runtime.details import DETAILS
from tests.support import fuzz, kills


def main() -> int:
    """Exit code: 0, or 1 if a case ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it, about")
    parser.add_argument("--seed", type=int, default=0, help="of the cases and of the instants")
    parser.add_argument("--what", choices=["fuzz", "kills", "both"], default="both")
    parser.add_argument("--cases", type=int, default=1000, help="of each reader, at a time")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
    logging.set_verbosity(logging.FATAL)
    logging.use_absl_handler()
    DETAILS.install()  # which takes what Orbax's threads say of spoiled checkpoints
    end, failures = time.monotonic() + 60 * options.minutes, []
    if options.what != "kills":
        share = 0.5 if options.what == "both" else 1.0
        failures += spoil(options, time.monotonic() + share * (end - time.monotonic()))
    if options.what != "fuzz":
        failures += kill(options, end)
    for failure in failures:
        print(failure)
    return int(bool(failures))


def spoil(options: argparse.Namespace, end: float) -> list[str]:
    """The failures of all readers; at least one round of cases of each."""
    first, failures = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        readers = fuzz.readers(pathlib.Path(scratch))
        while first == 0 or time.monotonic() < end:
            for name, reader in readers.items():
                numbers = range(first, first + options.cases)
                count = fuzz.cases(name, reader, options.seed, numbers)
                print(f"{name:14} {count}", flush=True)
                failures += count.failures
                if first and time.monotonic() > end:
                    break
            first += options.cases
    return failures


def kill(options: argparse.Namespace, end: float) -> list[str]:
    """The failures of killed runs; at least one chain of kills."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = kills.Kills(pathlib.Path(scratch), options.seed)
        runs.read_only()
        number = 0
        while number == 0 or time.monotonic() < end:
            runs.chain(number)
            if number % 3 == 0:
                runs.disk_full(number)
            number += 1
            print(runs.outcome, flush=True)
    return runs.outcome.failures


if __name__ == "__main__":
    sys.exit(script.run(main))
