"""Renders vehicles in three modalities as a WMVeID863 tree: facenet render data/rendered"""

import sys

from data_tfds.errors import UserError
from data_tfds.rendered import glare
from data_tfds.rendered import tree as rendered_tree
from facenet_jax.runtime.arguments import Parser, image_size, two_shares


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = Parser("render", __doc__.split(":")[0] + ".")
    parser.add_argument("root", help="folder to make")
    numbers = parser.add_argument_group("how many")
    numbers.add_argument("--train_identities", type=int, default=176, help="vehicles to train on")
    numbers.add_argument("--test_identities", type=int, default=50, help="other vehicles")
    numbers.add_argument("--train_samples", type=int, default=20, help="samples per identity")
    numbers.add_argument("--test_samples", type=int, default=16, help="samples per identity")
    parser.add_argument(
        "--image_size", type=image_size, metavar="H,W", default=(128, 256), help="H,W in pixels"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other vehicles")
    parser.add_argument(
        "--infrared_follows_paint",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="0..1: how much the near-infrared shows the lightness of the paint; 1 for visible "
        "against near-infrared (configs/agw/demo.py)",
    )
    flare = parser.add_argument_group("flare")
    flare.add_argument(
        "--flare_share", type=float, default=glare.SHARE, metavar="SHARE", help="of the samples"
    )
    flare.add_argument(
        "--flare_saturated",
        type=two_shares,
        metavar="LOW,HIGH",
        default=glare.SATURATED,
        help="how much of a blinded picture is saturated, 0..1; up to 0.05 its label says no flare",
    )
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    options = vars(parser.parse_args(arguments))
    height, width = options.pop("image_size")
    try:
        rendered_tree.write_tree(options.pop("root"), size=(width, height), **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
