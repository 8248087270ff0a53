"""Writes a trained network as files that run without this package.

facenet export WORKDIR [--format stablehlo|onnx] [--modalities visible,thermal]

Images uint8 in, embedding out, any number of samples; stablehlo: for CPU, CUDA and TPU, with JAX
alone; onnx: with onnxruntime. A file that does not give the network's embeddings is not written.
A model card, README.md, lies beside it.
"""

import sys

from data_tfds.errors import UserError
from data_tfds.paths import open_path
from facenet_jax import api, export
from facenet_jax.export.formats import FORMATS
from facenet_jax.retrieval.missing import subsets
from facenet_jax.runtime.arguments import Parser


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = Parser("export", __doc__.splitlines()[0], __doc__.partition("\n\n")[2])
    parser.add_argument("workdir", help="folder of a run")
    parser.add_argument("--format", choices=FORMATS, default="stablehlo", help="of the files")
    parser.add_argument(
        "--modalities",
        default="all",
        help="all of them, some as in visible,thermal, or each: a file for every subset",
    )
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last", help="which one")
    parser.add_argument("--out", help="folder to write to; by default WORKDIR/export")
    options = parser.parse_args(arguments)
    try:
        export.refuse_missing(options.format)
        network = api.load(options.workdir, options.checkpoint)
        known = network.model.spec.modalities
        named = {"all": [known], "each": subsets(known)}
        wanted = named.get(options.modalities, [options.modalities.split(",")])
        out = open_path(options.out) if options.out else open_path(options.workdir) / "export"
        for each in export.write(network, out, options.format, wanted):
            print(f"{out / each.file} ({each.size / 1e6:.1f} MB, differs by {each.difference:.1e})")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
