"""The command `facenet prepare` from a checkout: python scripts/prepare.py --help."""

import sys

import _checkout  # noqa: F401

from facenet_jax import commands

if __name__ == "__main__":  # processes that it starts import this file under another name
    sys.exit(commands.main(["prepare", *sys.argv[1:]]))
