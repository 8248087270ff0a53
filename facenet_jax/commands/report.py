"""Writes report.html of a workdir, or of two side by side: one file that opens offline.

facenet report WORKDIR [OTHER] [--out FILE]

Scores with intervals, ranked lists of all modalities, CMC and ROC, what each modality gives, a map
of the gallery, flare masks, attention, curves of training, the data, the config, the command.
"""

import sys

from data_tfds.errors import UserError
from data_tfds.paths import open_path
from facenet_jax import report
from facenet_jax.runtime.arguments import Parser


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = Parser("report", __doc__.splitlines()[0], __doc__.partition("\n\n")[2])
    parser.add_argument("workdir", nargs="+", help="folder of a run, or of two")
    parser.add_argument("--out", help="file to write; by default report.html in the first workdir")
    parser.add_argument(
        "--doctor",
        choices=report.DOCTOR,
        default="auto",
        help="examine the files of the data set; auto: where it is small",
    )
    options = parser.parse_args(arguments)
    if len(options.workdir) > 2:
        parser.error(f"a report is of one workdir or of two, not of {len(options.workdir)}")
    try:
        folders = [open_path(each) for each in options.workdir]
        out = open_path(options.out) if options.out else folders[0] / "report.html"
        size = report.write(folders, out, options.doctor)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{out} ({size / 1e6:.1f} MB)")
    return 0
