"""Prepares a data set and prints its table: what `tfds build` would do, without TensorFlow.

python scripts/prepare.py --dataset wmveid863 --root DIR [--prepared DIR] [--image_size H,W]
"""

import argparse
import os
import pathlib
import sys

from absl import logging
from ml_collections import ConfigDict

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    sys.path.append(os.getcwd())  # where data sets of your own may lie

from data_tfds.accept import INCOMPLETE_RULES
from data_tfds.decoded import RESIZE
from data_tfds.errors import UserError
from data_tfds.sets import lookup, names
from facenet_jax.inputs import dataset as data


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help=f"{', '.join(names())}, or import path")
    parser.add_argument("--root", required=True, help="folder as extracted, or the .zip archive")
    parser.add_argument("--prepared", default="data/prepared", help="folder for prepared data")
    parser.add_argument("--image_size", default="", help="H,W in pixels; default: the recipe's")
    parser.add_argument("--resize", default="bicubic", choices=sorted(RESIZE), help="filter")
    parser.add_argument(
        "--incomplete", default="error", choices=INCOMPLETE_RULES, help="samples that lack an image"
    )
    options = parser.parse_args(arguments)
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    try:
        print(data.describe(data.load(_section(options))))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _section(options: argparse.Namespace) -> ConfigDict:
    """The options as the config section `data` that training would load them from."""
    builder, _ = lookup(options.dataset)
    size = options.image_size.split(",") if options.image_size else builder.IMAGE_SIZE
    try:
        height, width = map(int, size)
        if min(height, width) < 1:
            raise ValueError
    except ValueError as error:
        raise UserError(f"--image_size {options.image_size} must be H,W, as in 256,128.") from error
    return ConfigDict(
        {
            "name": options.dataset,
            "root": options.root,
            "prepared": options.prepared,
            "image_size": (height, width),
            "train_resize": options.resize,
            "test_resize": options.resize,
            "validation_identities": 0,
            "incomplete": options.incomplete,
            "flare_statistic": "luma",
            "flare_rule": "per_modality",
            "flare_threshold": 0.05,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
