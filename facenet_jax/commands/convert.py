"""Checkpoints of the authors' PyTorch release to a workdir of ours, and back.

facenet convert RELEASE.pth WORKDIR --config configs/wmveid863_official.py \\
    --data_root DIR [--heads N]
facenet convert WORKDIR RELEASE.pth [--checkpoint last|best]

The first makes a workdir for `facenet evaluate --workdir WORKDIR` (or embed). The
second writes a file that the release loads; it takes the `official` preset alone.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import common
from configs.official import official
from data_tfds.errors import UserError
from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE
from facenet_jax import api, models, stored
from facenet_jax import config as configs
from facenet_jax.models import vit
from facenet_jax.optim import optimizer
from facenet_jax.runtime import script, workdir
from facenet_jax.runtime.arguments import Parser, image_size
from facenet_jax.runtime.checkpoint import open_checkpoints
from facenet_jax.step import State
from facenet_jax.types import DataSpec
from facenet_jax.weights import facenet_release as interop
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.merge import flatten
from facenet_jax.weights.torch_writer import write_state_dict

STEP = 0  # of an imported checkpoint: how long the release trained it is unknown
HEAD_WIDTH = 64  # of every ViT in use, the release's included
MUST_AGREE = (
    "model.name",
    "model.backbone",
    "model.mfmp.",
    "model.fce.",
    "model.shared_trunk",
    "model.flare_heads",
)
"""Options that decide what the exported tensors mean; the others are recipe."""
MAY_DIFFER = (
    "model.mfmp.dropout",
    "model.mfmp.initializer",
    "model.mfmp.heads",
    "model.mfmp.head_width",
    "model.fce.mask_bias",
)


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says; raises UserError for what cannot be converted."""
    parser = Parser("convert", __doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path, help="a .pth of the release, or a workdir")
    parser.add_argument("dest", type=pathlib.Path, help="a new workdir, or a new .pth")
    parser.add_argument("--config", type=pathlib.Path, help="recipe of an import: *_official.py")
    parser.add_argument(
        "--image_size", type=image_size, metavar="H,W", help="H,W in pixels, if not the recipe's"
    )
    parser.add_argument("--data_root", default="", help="folder of the data set, for an import")
    parser.add_argument("--heads", type=int, help=f"heads of the ViT; width / {HEAD_WIDTH}")
    parser.add_argument(
        "--checkpoint", default="last", choices=["last", "best"], help="of a workdir, to export"
    )
    options = parser.parse_args(arguments)
    if not options.source.exists():
        raise UserError(f"{options.source} does not exist; name a .pth file or a workdir.", 2)
    if options.source.is_dir():
        print(export_workdir(options.source, options.dest, options.checkpoint))
        return
    if options.config is None:
        raise UserError(
            "An import needs a recipe, because a checkpoint does not say its image size: give "
            "--config configs/wmveid863_official.py or another *_official.py.",
            2,
        )
    config = script.load_config(options.config)
    config.data.root = options.data_root
    if options.image_size:
        config.data.image_size = options.image_size
    print(import_file(options.source, options.dest, config, options.heads))


def import_file(
    source: pathlib.Path,
    dest: pathlib.Path,
    config: ml_collections.ConfigDict,
    heads: int | None = None,
) -> str:
    """Makes the workdir `dest` from a release checkpoint; what was done, in one line."""
    variables, sizes = interop.import_release(read_checkpoint(source), str(source))
    check_official(config, f"The recipe given for {source}")
    fit_model(config.model, sizes, heads, source)
    configs.check(config)
    patch = config.model.patch
    rows, columns = vit.grid(config.data.image_size, patch, config.model.stride or patch)
    if rows * columns != sizes.tokens:
        raise UserError(
            f"{source} has {sizes.tokens} patch positions, but the recipe's images of "
            f"{tuple(config.data.image_size)} pixels give {rows} x {columns}; choose the recipe "
            "that the checkpoint was trained with."
        )
    modalities = (VISIBLE, NEAR_INFRARED, THERMAL)
    spec = DataSpec(modalities, tuple(config.data.image_size), sizes.identities)
    check_shapes(models.build(config.model, spec), variables)
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest} already exists; choose a new folder for the imported weights.")
    with workdir.locked(dest):
        stored.claim(dest, config, spec)
        checkpoints = open_checkpoints(dest)
        checkpoints.save(STEP, state_of(variables, config))
        checkpoints.close()
    return (
        f"{source}: {len(flatten(variables))} arrays of a ViT of width {sizes.width} and depth "
        f"{sizes.depth} for {sizes.identities} identities are in {dest}, as step {STEP}."
    )


def state_of(variables: dict[str, Any], config: ml_collections.ConfigDict) -> State:
    """The state of a run that starts with these variables."""
    collections = jax.tree.map(jnp.asarray, variables)
    params = collections.pop("params")
    return State(jnp.int32(STEP), params, collections, optimizer(config.optim).init(params))


def fit_model(
    model: ml_collections.ConfigDict, sizes: interop.Sizes, heads: int | None, source: pathlib.Path
) -> None:
    """Sets the options of the model to what the checkpoint's shapes say."""
    if heads is None and sizes.width % HEAD_WIDTH:
        raise UserError(f"{source} has width {sizes.width}; say its heads with --heads.", 2)
    heads = heads or sizes.width // HEAD_WIDTH
    of_file = {"width": sizes.width, "depth": sizes.depth, "heads": heads}
    if sizes.hidden != 4 * sizes.width:
        raise UserError(
            f"{source} has an MLP of {sizes.hidden} features on a width of {sizes.width}; this "
            "model has four times its width."
        )
    model.variant = next((name for name, size in vit.VARIANTS.items() if size == of_file), "")
    if not model.variant:
        model.update(of_file)
    model.patch, model.stride = sizes.patch, 0
    model.mfmp.heads, model.mfmp.head_width = sizes.mfmp_heads, sizes.mfmp_head_width
    model.fce.mask_bias = -sizes.threshold
    model.pretrained = "none"  # nothing else is to be loaded
    model.dtype = "float32"  # the release evaluates without autocast


def check_shapes(model: models.Model, variables: dict) -> None:
    """Raises UserError where the model's variables are others than these."""
    ours = flatten(jax.eval_shape(model.init, jax.random.key(0)))
    theirs = flatten(variables)
    problems = [
        f"{path} {ours[path].shape if path in ours else 'absent'} against "
        f"{theirs[path].shape if path in theirs else 'absent'}"
        for path in sorted(ours.keys() | theirs.keys())
        if path not in ours or path not in theirs or ours[path].shape != theirs[path].shape
    ]
    if problems:
        raise UserError(f"The recipe's model is another than the file's: {'; '.join(problems)}.")


def export_workdir(source: pathlib.Path, dest: pathlib.Path, which: str) -> str:
    """Writes a checkpoint of the workdir `source` as the release would; what was done."""
    config = stored.read_config(source)
    check_official(config, str(source))
    if dest.exists():
        raise UserError(f"{dest} already exists; choose a new file.")
    network = api.load(source, which)
    variables = jax.tree.map(np.asarray, network.variables)
    tensors = interop.export_release(variables, -config.model.fce.mask_bias)
    write_state_dict(dest, tensors)
    return f"{source}: step {network.step} is in {dest} as the release lays it out."


def check_official(config: ml_collections.ConfigDict, source: str) -> None:
    """Raises UserError with every option that makes a model another than the release's."""
    wanted = workdir.flat(official(common.get_config()).to_dict())
    ours = workdir.flat(config.to_dict())
    problems = [
        f"config.{name} is {ours.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if name.startswith(MUST_AGREE) and name not in MAY_DIFFER and ours.get(name) != value
    ]
    if not problems:
        width = vit.size(config.model)["width"]
        if config.model.mfmp.head_width not in (0, width):
            problems.append(f"config.model.mfmp.head_width is not the width {width}")
    elif config.model.name != "facenet":
        problems = [f"config.model.name is {config.model.name!r} instead of 'facenet'"]
    if problems:
        raise UserError(
            f"{source} is not the `official` preset, and the release cannot compute anything else: "
            f"{'; '.join(problems)}."
        )
