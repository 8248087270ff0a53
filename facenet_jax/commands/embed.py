"""Embeds a folder of images without identities, or the query and gallery of a data set.

facenet embed FOLDER --workdir DIR [--modality thermal] [--out FILE.npz]
facenet embed --workdir DIR [--config.data.name=... --config.data.root=...]

FOLDER holds images of one modality, or the folders vis, ni, th, ir with the images of each, where
those of one sample have the same name but for its ending. Folders below are looked into as well.
"""

import argparse
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from data_tfds.errors import UserError
from data_tfds.paths import open_path
from data_tfds.sets.folder import SPELLINGS
from facenet_jax import api
from facenet_jax.commands import run
from facenet_jax.embed import mixed_parts
from facenet_jax.retrieval import Embeddings
from facenet_jax.runtime import cli
from facenet_jax.runtime.arguments import Parser

OF_DATA_SETS = (
    *("config", "mode", "compile_cache", "profile"),
    *("distributed", "coordinator", "processes", "process_id"),
)
"""Options of the other form, which has no FOLDER."""


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    parser = Parser("embed", __doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="images, or folders vis, ni, th, ir")
    parser.add_argument("--workdir", help="folder of the trained network")
    parser.add_argument("--modality", help="what the images show, where FOLDER holds them itself")
    parser.add_argument("--out", help="file; default: WORKDIR/embeddings/images-FOLDER.npz")
    parser.add_argument("--checkpoint", default="last", choices=["last", "best"], help="its state")
    parser.add_argument("--batch", type=int, default=64, help="samples per call, at most")
    for name in OF_DATA_SETS:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    if cli.wants_help(arguments):
        print(parser.format_help())
        print("Without FOLDER, for a data set:\n")
        run.command("embed", arguments)
        return
    options, others = parser.parse_known_args(arguments)
    if options.folder is None or others:
        run.command("embed", arguments)
        return
    if options.workdir is None:
        raise UserError("Name the network that is to embed the images: --workdir DIR.", 2)
    print(embed_folder(options))


def embed_folder(options: argparse.Namespace) -> str:
    """Write the embeddings of a folder of images; what was done, in one sentence."""
    folder = pathlib.Path(options.folder)
    target = f"{options.workdir}/embeddings/images-{folder.resolve().name}.npz"
    target = options.out or target
    if not target.endswith(".npz"):
        raise UserError(f"--out {target} must end in .npz.", 2)
    by_modality = find(folder, options.modality)
    names, images = paired(folder, by_modality)
    network = api.load(options.workdir, options.checkpoint)
    unknown = sorted(set(images) - set(network.model.spec.modalities))
    if unknown:
        raise UserError(
            f"{folder} holds {', '.join(unknown)} images, but the network in {options.workdir} was "
            f"trained with {', '.join(network.model.spec.modalities)}."
        )
    embedding = network.embed(options.batch, **images)
    nobody = np.full(len(names), -1, np.int32)  # as files say that an identity is not known
    parts = network.parts(list(images))
    mixed = mixed_parts(network.model, parts)
    side = Embeddings(embedding, parts, nobody, np.array(names), {}, mixed=mixed)
    side.write(open_path(target))
    return f"{target}: embeddings of {len(names)} samples ({' + '.join(parts)})."


def find(folder: pathlib.Path, modality: str | None) -> dict[str, dict[str, pathlib.Path]]:
    """{modality: {name without its ending: file}} of the images of a folder."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", 2)
    inside = {SPELLINGS[x.name.lower()]: x for x in sorted(folder.iterdir()) if is_modality(x)}
    if inside and modality is None:
        return {each: files(path) for each, path in inside.items()}
    if modality is None:
        raise UserError(
            f"{folder} has none of the folders vis, ni, th, ir, so its images are of one modality: "
            "say which with --modality visible, near_infrared, thermal or infrared.",
            2,
        )
    modality = SPELLINGS.get(modality.lower(), modality)
    return {modality: files(inside.get(modality, folder))}


def is_modality(path: pathlib.Path) -> bool:
    """Whether this is a folder with the name of a modality."""
    return path.is_dir() and path.name.lower() in SPELLINGS


def files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """{path within the folder, without its ending: file} of the images below a folder, sorted."""
    known = Image.registered_extensions()
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in known and not path.name.startswith("."):
            name = str(path.relative_to(folder).with_suffix(""))
            if name in found:
                raise UserError(
                    f"{found[name]} and {path} have one name; rename one, or remove it."
                )
            found[name] = path
    if not found:
        raise UserError(f"{folder} holds no image.", 2)
    return found


def paired(
    folder: pathlib.Path, by_modality: dict[str, dict[str, pathlib.Path]]
) -> tuple[list[str], dict[str, list[pathlib.Path]]]:
    """(the names of the samples, {modality: the file of each}). UserError where one is missing."""
    names = sorted(set().union(*by_modality.values()))
    lacks: Iterable[str] = (
        f"{name} ({modality})"
        for name in names
        for modality, found in by_modality.items()
        if name not in found
    )
    first, *rest = [*lacks, None]
    if first is not None:
        more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
        raise UserError(
            f"{folder} lacks images of some samples: {first}{more}. The images of a sample have "
            "one name in all folders; --modality embeds those of one modality alone."
        )
    return names, {m: [found[name] for name in names] for m, found in by_modality.items()}
