"""Puts the images of a folder into a database that `facenet search` answers from.

facenet index FOLDER --workdir DIR [--labels FILE.csv] [--modality thermal] [--database DIR]
facenet index --workdir DIR --delete NAME [NAME ...]

FOLDER holds vis, ni, th or ir anywhere on the way to its images; images of one sample have the same
path but for that folder and the ending. The folder above an image is its identity, _c1 _s12 _v2 in
its name are camera, scene, view. The same name again is an update. A run that was killed goes on by
the same command. Needs pip install 'facenet_jax[search]'.
"""

import argparse

from data_tfds.errors import UserError
from facenet_jax import api, search
from facenet_jax.runtime.arguments import Parser


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    parser = Parser("index", __doc__.splitlines()[0], __doc__.partition("\n\n")[2])
    parser.add_argument("folder", nargs="?", help="images")
    parser.add_argument("--workdir", required=True, help="folder of the trained network")
    parser.add_argument("--checkpoint", default="last", choices=["last", "best"], help="its state")
    words = "folder, s3:// or gs://; by default WORKDIR/search"
    parser.add_argument("--database", help=words)
    parser.add_argument("--modality", help="of images that lie in no folder vis, ni, th or ir")
    parser.add_argument("--labels", help="CSV file: name, and any labels to search by")
    parser.add_argument("--batch", type=int, default=64, help="samples per call of the device")
    words = "the first of 4 parts is 1/4; one process for each part and device"
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help=words)
    words = "a new database takes off the mean of the run's gallery, so that cosines differ more"
    parser.add_argument("--centre", action="store_true", help=words)
    words = "also make an approximate index, for millions of rows"
    parser.add_argument("--approximate", action="store_true", help=words)
    parser.add_argument("--delete", nargs="+", metavar="NAME", help="samples to take out")
    options = parser.parse_args(arguments)
    if (options.folder is None) == (options.delete is None):
        parser.error("give a FOLDER, or --delete NAME")
    search.refuse_missing()
    address = options.database or f"{options.workdir}/search"
    network = api.load(options.workdir, options.checkpoint)
    if options.delete:
        database = search.Database.existing(network, address)
        lacks = sorted(set(options.delete) - set(database.stamps(options.delete)))
        if lacks:
            raise UserError(f"{address} has no sample {lacks[0]}; nothing was deleted.")
        print(f"{address}: {database.delete(options.delete)} deleted, {len(database)} samples.")
        return
    database = search.Database.open(network, address, options.centre)
    done = search.index_folder(
        *(database, options.folder),
        modality=options.modality,
        labels=options.labels,
        part=options.part,
        batch=options.batch,
    )
    if options.approximate:
        database.approximate()
    print(
        f"{address}: {done.added} added, {done.updated} updated, {done.unchanged} unchanged, "
        f"{len(database)} samples."
    )


def part(text: str) -> tuple[int, int]:
    """I/N of --part."""
    one, _, of = text.partition("/")
    if not (one.isdecimal() and of.isdecimal() and 1 <= int(one) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text} must be I/N, as in 1/4")
    return int(one), int(of)
