"""What a run is made of, put together in one place for training, evaluation and embedding."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from data_tfds import flare
from data_tfds.errors import UserError
from data_tfds.paths import Place, is_remote
from facenet_jax import models
from facenet_jax.inputs import dataset as data
from facenet_jax.inputs.sampler import Plan, pk_plan
from facenet_jax.inputs.stream import Streamed
from facenet_jax.models import check_choice
from facenet_jax.optim import optimizer
from facenet_jax.runtime import memory
from facenet_jax.runtime.checkpoint import Checkpoints
from facenet_jax.runtime.mesh import check_divides, make_mesh, put, replicate, whole
from facenet_jax.step import Resident, State, initial_state, state_sharding, used_losses
from facenet_jax.weights import merge as pretrained


@dataclasses.dataclass(frozen=True)
class Run:
    """A config brought to life."""

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    mesh: Mesh
    model: models.Model
    optimizer: optax.GradientTransformation
    plan: Plan
    streams: bool  # whether images come from disk while the run goes, not from the devices' memory


def open_run(config: ml_collections.ConfigDict) -> Run:
    """The data set, devices, model, optimiser and plan of `config`, checked against each other.

    Resolves `config.model.identities` in place. Raises UserError for what does not fit together.
    """
    mesh = make_mesh()
    train = config.train
    for option in ("identities_per_batch", "samples_per_identity", "steps_per_dispatch"):
        if train[option] < 1:
            raise UserError(f"config.train.{option} is {train[option]}; it must be 1 or more.")
    if train.epochs < 1 or train.steps < 0:
        raise UserError(
            f"config.train.epochs is {train.epochs} and config.train.steps is {train.steps}; there "
            "must be at least one epoch and no fewer than 0 steps (0: as many as the epochs have)."
        )
    check_divides(
        "config.train.identities_per_batch * config.train.samples_per_identity",
        train.identities_per_batch * train.samples_per_identity,
        mesh,
    )
    check_divides("config.evaluate.batch", config.evaluate.batch, mesh)
    check_choice("evaluate", config.evaluate, export=("last", "best"))
    check_choice("augment", config.augment, draw=("shared", "independent"))
    check_choice("optim", config.optim, schedule=("recipe", "cosine"))
    check_choice("loss_options", config.loss_options, kl_reduction=("sample", "batch"))
    check_choice(
        "data",
        config.data,
        flare_statistic=("luma", "histogram"),
        flare_rule=("per_modality", "either", "both"),
        resident=("auto", "always", "never"),
    )
    used_losses(config)
    check_attention(config.model, jax.default_backend())
    direction = optimizer(config.optim)
    if not config.model.pretrained:
        raise UserError(
            "config.model.pretrained is not set, and this recipe starts from an ImageNet-21k ViT: "
            "get jx_vit_base_p16_224-80ecf9dd.pth (release v0.1-vitjx of "
            "github.com/rwightman/pytorch-image-models) or a ViT of gs://vit_models/augreg/ and "
            "give --config.model.pretrained=FILE, or say --config.model.pretrained=none to start "
            "from random weights.",
            exit_code=2,
        )
    dataset = data.load(config.data)
    identities = len(np.unique(dataset.train.identity))
    if config.model.identities not in (0, identities):
        raise UserError(
            f"config.model.identities is {config.model.identities} but the training split of "
            f"{dataset.name} has {identities}; leave the option at 0."
        )
    config.model.identities = identities
    model = models.build(config.model, config.data.image_size, identities)
    plan = pk_plan(
        dataset.train.identity,
        seed=config.seed,
        p=train.identities_per_batch,
        k=train.samples_per_identity,
        epochs=train.epochs,
        steps=train.steps,
    )
    streams = memory.streams(config, dataset, mesh)
    return Run(config, dataset, mesh, model, direction, plan, streams)


def check_attention(model: ml_collections.ConfigDict, backend: str, tokens: int = 0) -> None:
    """Raise UserError where `model.attention` cannot run: in training on so many `tokens`."""
    if model.attention == "xla":
        return
    if backend != "gpu" or model.dtype != "bfloat16":
        raise UserError(
            f"config.model.attention is 'cudnn', which computes bfloat16 on a GPU, but the devices "
            f"are of the kind '{backend}' and config.model.dtype is {model.dtype}; set "
            "--config.model.attention=xla."
        )
    if tokens % 2:
        raise UserError(
            f"config.model.attention is 'cudnn', whose gradient JAX gives for an even number of "
            f"tokens only, and an image has {tokens}; set --config.model.attention=xla to train."
        )


def on_devices(run: Run, *splits: data.Split) -> Resident | Streamed:
    """Splits, one after another, on every device; or their labels alone where the images stream.

    Identities are numbered 0..C-1 in sorted order.
    """
    options = run.config.data
    columns = {
        field: np.concatenate([getattr(split, field) for split in splits])
        for field in ("identity", "camera", "scene", "flare_fraction", "histogram_ratio")
    }
    delta = flare.labels(
        columns["flare_fraction"],
        columns["histogram_ratio"],
        statistic=options.flare_statistic,
        rule=options.flare_rule,
        threshold=options.flare_threshold,
    )
    _, label = np.unique(columns["identity"], return_inverse=True)
    labels = (label.astype(np.int32), columns["camera"], columns["scene"], delta)
    if run.streams:
        images = tuple(split.images for split in splits)
        return Streamed(replicate(Resident((), *labels), run.mesh), images)
    bands = (
        parts[0] if len(parts) == 1 else np.concatenate(parts)
        for parts in zip(*(split.images for split in splits), strict=True)
    )
    images = tuple(replicate(band, run.mesh) for band in bands)  # one at a time on the host
    return Resident(images, *replicate(labels, run.mesh))


def untrained_state(run: Run) -> Callable[[], State]:
    """A jitted function to the random state of the config's seed, where a state of the run lies."""
    create = functools.partial(initial_state, run.model, run.optimizer, run.config.seed)
    there = state_sharding(jax.eval_shape(create), run.config, run.mesh)
    return jax.jit(create, out_shardings=there)


def start_state(run: Run) -> State:
    """The state at step 0 on the devices, from pretrained weights if the config names some."""
    state = untrained_state(run)()
    if run.config.model.pretrained == "none":
        return state
    random = jax.tree.map(np.asarray, whole(state.params, run.mesh))
    params, report = pretrained.load_pretrained(
        run.config.model.pretrained, random, run.model.patch_grid
    )
    logging.info("%s", report)
    there = state_sharding(params, run.config, run.mesh)
    return dataclasses.replace(state, params=put(params, there))


def saved_state(run: Run, checkpoints: Checkpoints, step: int) -> State:
    """The state of a checkpoint, on the devices of this run (which may be others than it had)."""
    return checkpoints.restore(step, jax.eval_shape(untrained_state(run)))


def open_checkpoints(workdir: Place) -> Checkpoints:
    """The checkpoints of a run."""
    # Orbax wants an absolute path, and `resolve` takes a URL for a relative one.
    return Checkpoints((workdir if is_remote(workdir) else workdir.resolve()) / "checkpoints")
