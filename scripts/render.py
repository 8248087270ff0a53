"""Writes the rendered set as a WMVeID863 tree: python scripts/render.py data/rendered"""

import argparse
import pathlib
import sys

if __name__ == "__main__":  # also imported, under another name, by the rendering processes
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from data_tfds.errors import UserError
from data_tfds.rendered import tree as rendered_tree


def main() -> int:
    """Renders and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder to make")
    parser.add_argument("--train-identities", type=int, default=176)
    parser.add_argument("--test-identities", type=int, default=50)
    parser.add_argument("--train-samples", type=int, default=20, help="samples per identity")
    parser.add_argument("--test-samples", type=int, default=16, help="samples per identity")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 128), metavar=("W", "H"), help="pixels"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    options = vars(parser.parse_args())

    try:
        rendered_tree.write_tree(options.pop("root"), **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
