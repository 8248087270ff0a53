"""Finds the samples of a database that are most like the images of one sample.

facenet search --workdir DIR --visible a.jpg --thermal b.png [--top 10] [--not_same_camera 2]
    [--where "scene = 3"] [--by thermal] [--json FILE] [--picture FILE.png]

Fill the database with facenet index. Any of the modalities that the network was trained with will
do. Without --workdir the network is the one that filled --database.
"""

import json
import pathlib

from data_tfds.errors import UserError
from data_tfds.paths import open_path, write_bytes
from data_tfds.samples import MODALITIES
from facenet_jax import api, search
from facenet_jax.runtime.arguments import Parser
from facenet_jax.search import show
from facenet_jax.search.database import workdir_of


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    parser = Parser("search", __doc__.splitlines()[0], __doc__.partition("\n\n")[2])
    parser.add_argument("--workdir", help="folder of the trained network")
    parser.add_argument("--checkpoint", default="last", choices=["last", "best"], help="its state")
    parser.add_argument("--database", help="folder, s3:// or gs://; by default WORKDIR/search")
    for modality in MODALITIES:
        parser.add_argument(f"--{modality}", metavar="FILE", help="image of the query")
    parser.add_argument("--top", type=int, default=10, help="how many to find")
    words = "leave out what this camera saw"
    parser.add_argument("--not_same_camera", type=int, metavar="CAMERA", help=words)
    parser.add_argument("--where", default="", help="a condition on labels, in SQL")
    words = "the modalities to compare, as in visible,thermal; by default those of the query"
    parser.add_argument("--by", help=words)
    words = "compare with every row, also where there is an approximate index"
    parser.add_argument("--exact", action="store_true", help=words)
    parser.add_argument("--json", help="file to write the answer to")
    parser.add_argument("--picture", help="file to draw the ranked list to, .png or .jpg")
    options = parser.parse_args(arguments)
    images = {m: getattr(options, m) for m in MODALITIES if getattr(options, m)}
    if not images:
        parser.error(f"give an image of the query: --{' or --'.join(MODALITIES)}")
    if options.picture and pathlib.Path(options.picture).suffix not in (".png", ".jpg"):
        parser.error(f"--picture {options.picture} must end in .png or .jpg")
    if not options.workdir and not options.database:
        parser.error("give --workdir or --database")
    search.refuse_missing()
    workdir = options.workdir or workdir_of(options.database)
    network = api.load(workdir, options.checkpoint)
    database = search.Database.existing(network, options.database or f"{workdir}/search")
    conditions = [f"({options.where})"] if options.where else []
    if options.not_same_camera is not None:
        conditions.append(f"camera != {options.not_same_camera}")
    where = " and ".join(conditions)
    by = options.by.split(",") if options.by else list(images)
    found = database.search(images, options.top, by, where, options.exact)
    print(show.table(found))
    if options.json:
        answer = json.dumps(show.values(images, by, found), indent=2)
        written(options.json, f"{answer}\n".encode())
    if options.picture:
        drawn = show.picture(images, found, network.model.spec.modalities)
        written(options.picture, show.encoded(drawn, pathlib.Path(options.picture).suffix))


def written(path: str, content: bytes) -> None:
    """Write a file. UserError where it cannot be written."""
    try:
        write_bytes(open_path(path), content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
