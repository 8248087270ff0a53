"""Prepares a data set and prints its table: what `tfds build` would do, without TensorFlow.

facenet prepare --dataset wmveid863 --root DIR [--prepared DIR] [--image_size H,W]
"""

import argparse
import sys

from ml_collections import ConfigDict

from data_tfds.decoded import RESIZE
from data_tfds.errors import UserError
from data_tfds.sets import lookup
from facenet_jax.inputs import dataset as data
from facenet_jax.runtime import cli
from facenet_jax.runtime.arguments import Parser, add_data_set, image_size


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = Parser("prepare", __doc__.splitlines()[0])
    add_data_set(parser)
    parser.add_argument("--prepared", default="data/prepared", help="folder for prepared data")
    parser.add_argument(
        "--image_size",
        type=image_size,
        metavar="H,W",
        help="H,W in pixels; default: the data set's own",
    )
    parser.add_argument("--resize", default="bicubic", choices=sorted(RESIZE), help="filter")
    options = parser.parse_args(arguments)
    cli.set_up_log()
    try:
        print(data.describe(data.load(_section(options))))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _section(options: argparse.Namespace) -> ConfigDict:
    """The options as the config section `data` that training would load them from."""
    builder, _ = lookup(options.dataset)
    return ConfigDict(
        {
            "name": options.dataset,
            "root": options.root,
            "prepared": options.prepared,
            "image_size": options.image_size or builder.IMAGE_SIZE,
            "train_resize": options.resize,
            "test_resize": options.resize,
            "validation_identities": 0,
            "incomplete": options.incomplete,
            "flare_statistic": "luma",
            "flare_rule": "per_modality",
            "flare_threshold": 0.05,
        }
    )
