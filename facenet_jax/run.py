"""What a run is made of, put together in one place for training, evaluation and embedding."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from facenet_jax import data, flare, models, pretrained
from facenet_jax.checkpoint import Checkpoints
from facenet_jax.mesh import check_divides, make_mesh, replicate
from facenet_jax.models import check_choice
from facenet_jax.optim import optimizer
from facenet_jax.places import Place, is_remote
from facenet_jax.sampler import Plan, pk_plan
from facenet_jax.step import Resident, State, initial_state, used_losses
from facenet_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """A config brought to life."""

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    mesh: Mesh
    model: models.Model
    optimizer: optax.GradientTransformation
    plan: Plan


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
    )
    used_losses(config)
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
    return Run(config, dataset, mesh, model, direction, plan)


def resident(split: data.Split, config: ml_collections.ConfigDict, mesh: Mesh) -> Resident:
    """A split on every device; its identities numbered 0..C-1 in sorted order."""
    delta = flare.labels(
        split.flare_fraction,
        split.histogram_ratio,
        statistic=config.data.flare_statistic,
        rule=config.data.flare_rule,
        threshold=config.data.flare_threshold,
    )
    _, label = np.unique(split.identity, return_inverse=True)
    labels = (label.astype(np.int32), split.camera, split.scene, delta)
    return replicate(Resident(tuple(split.images), *labels), mesh)


def untrained_state(run: Run) -> Callable[[], State]:
    """A jitted function to the random state of the config's seed, on every device."""
    everywhere = NamedSharding(run.mesh, PartitionSpec())
    create = functools.partial(initial_state, run.model, run.optimizer, run.config.seed)
    return jax.jit(create, out_shardings=everywhere)


def start_state(run: Run) -> State:
    """The state at step 0 on the devices, from pretrained weights if the config names some."""
    state = untrained_state(run)()
    if run.config.model.pretrained == "none":
        return state
    params, report = pretrained.load_pretrained(
        run.config.model.pretrained, jax.tree.map(np.asarray, state.params), run.model.patch_grid
    )
    logging.info("%s", report)
    return dataclasses.replace(state, params=replicate(params, run.mesh))


def saved_state(run: Run, checkpoints: Checkpoints, step: int) -> State:
    """The state of a checkpoint, on the devices of this run (which may be others than it had)."""
    return checkpoints.restore(step, jax.eval_shape(untrained_state(run)))


def open_checkpoints(workdir: Place) -> Checkpoints:
    """The checkpoints of a run."""
    # Orbax wants an absolute path, and `resolve` takes a URL for a relative one.
    return Checkpoints((workdir if is_remote(workdir) else workdir.resolve()) / "checkpoints")
