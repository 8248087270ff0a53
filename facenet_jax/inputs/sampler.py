"""Index plans of runs: the samples of each batch. NumPy, a function of the seed.

A sampler is a function (split, *, seed, options, epochs, steps) -> Plan, in this package or yours
by its import path in `config.sampler.name`. Further keyword parameters with defaults are its
options in the section `config.sampler`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from data_tfds import door
from data_tfds.errors import UserError
from data_tfds.samples import Split
from facenet_jax.options import Option, Options, shown, some_text

OPTIONS: Options = {
    "name": Option(
        "pk",
        "pk: of each sample all its images | cross_modal: images of each modality by themselves, "
        "for sets that are not aligned; or the import path of your own",
        some_text(),
    ),
}
"""Of the section `sampler` of a config; the parameters of the sampler are further ones."""

PLAN_BYTES = 2**30
PLAN_STEPS = 500_000
"""The largest plan of a run: it is drawn as a whole, about 12,000 steps a second."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The images and the epoch of every training step."""

    rows: np.ndarray  # [steps, M, B] int32: rows of each modality's images, -1 for a missing one
    epoch: np.ndarray  # [steps] int32, 1 for the first epoch

    @property
    def batch(self) -> int:
        """B, samples in a batch."""
        return self.rows.shape[2]


def find(name: str) -> Callable[..., Plan]:
    """The function of a sampler: one of `SAMPLERS`, or the one at the import path `name`."""
    make = SAMPLERS.get(name)
    if make is None and "." in name:
        make = door.imported(name, "sampler (config.sampler.name)")
    if not callable(make):
        raise UserError(
            f"config.sampler.name is {shown(name)}; it must be "
            f"{' or '.join(map(repr, SAMPLERS))}, or the import path of your own "
            "function, such as my_package.my_sampler."
        )
    return make


def make_plan(
    sampler: Mapping[str, Any],
    split: Split,
    *,
    seed: int,
    options: Mapping[str, Any],
    epochs: int,
    steps: int,
) -> Plan:
    """The plan that a sampler makes, after a check that it fits the split.

    Args:
        sampler: the section `sampler`: the name, and the parameters of that function.
        split: the training samples.
        seed: of the run.
        options: the section `train`.
        epochs: the length of the run where `steps` is 0.
        steps: the length of the run, or 0.
    """
    own = dict(sampler)
    name = own.pop("name")
    make, what = find(name), f"The sampler {name}"
    refuse_long(split, options, epochs, steps)
    given = {"seed": seed, "options": options, "epochs": epochs, "steps": steps, **own}
    call = f"f(split, {', '.join(f'{argument}=...' for argument in given)})"
    door.check_call(make, what, call, split, **given)
    plan = make(split, **given)
    check_plan(plan, split, steps, what)
    return plan


def refuse_long(split: Split, options: Mapping[str, Any], epochs: int, steps: int) -> None:
    """Raises UserError for a run of more steps than a plan may have, before it is drawn."""
    batch = options["identities_per_batch"] * options["samples_per_identity"]
    each = max(1, len(split) // batch)  # steps of an epoch, about
    most = min(PLAN_STEPS, PLAN_BYTES // (4 * batch * len(split.modalities)))
    wanted = steps or epochs * each
    if wanted > most:
        name, value, largest = ("steps", steps, most) if steps else ("epochs", epochs, most // each)
        raise UserError(
            f"config.train.{name} is {value}; the plan of a run, here about {wanted} steps of "
            f"{batch} samples, is made at its start, and {largest} is the largest number for it."
        )


def check_plan(plan: Any, split: Split, steps: int, what: str) -> None:
    """Raises UserError where a column of a plan is not the images of one identity of the split."""
    if not isinstance(plan, Plan):
        raise UserError(
            f"{what} gives {type(plan).__name__}; it must give a facenet_jax.inputs.sampler.Plan."
        )
    rows, epoch, count = plan.rows, plan.epoch, len(split.modalities)
    images = [len(each) for each in split.images.values()]
    integers = np.issubdtype(rows.dtype, np.integer) and np.issubdtype(epoch.dtype, np.integer)
    if not integers or rows.ndim != 3 or rows.shape[:2] != (len(epoch), count) or 0 in rows.shape:
        raise UserError(
            f"{what} gives rows {rows.dtype} {list(rows.shape)} for {len(epoch)} steps (its epoch) "
            f"and {count} modalities; they must be whole numbers [steps, {count}, B], at least one "
            "step and one sample."
        )
    if steps and len(epoch) != steps:
        raise UserError(f"{what} plans {len(epoch)} steps where config.train.steps is {steps}.")
    if epoch[0] < 1 or (np.diff(epoch) < 0).any():
        raise UserError(f"{what} gives an epoch that does not rise from 1 on.")
    if (rows >= np.array(images)[None, :, None]).any() or (rows < -1).any():
        raise UserError(
            f"{what} names rows {rows.min()} to {rows.max()}; the modalities have {images} images, "
            "and -1 stands for a missing one."
        )
    if (rows < 0).all(axis=1).any():
        raise UserError(f"{what} gives a batch with a sample that has no image at all.")
    present, int32 = rows >= 0, np.iinfo(np.int32)
    found = np.stack(
        [
            identity_of_images(split, number)[np.maximum(row, 0)]
            for number, row in enumerate(np.moveaxis(rows, 1, 0))
        ],
        axis=1,
    )
    highest = np.where(present, found, int32.min).max(axis=1)
    if (highest != np.where(present, found, int32.max).min(axis=1)).any():
        step, column = np.argwhere(highest != np.where(present, found, int32.max).min(axis=1))[0]
        raise UserError(
            f"{what} puts images of different identities into column {column} of step {step}: "
            f"{found[step, :, column].tolist()}; a column is one identity in every modality."
        )


def identity_of_images(split: Split, modality: int) -> np.ndarray:
    """The identity [N_m] of the images of one modality, -1 of an image that no sample has."""
    row = split.rows[modality]
    found = np.full(max(1, len(split.images[split.modalities[modality]])), -1, np.int32)
    found[row[row >= 0]] = split.identity[row >= 0]
    return found


def pk(split: Split, *, seed: int, options: Mapping[str, Any], epochs: int, steps: int) -> Plan:
    """P identities with K samples each, `options` identities_per_batch, samples_per_identity.

    A sample brings all the images it has, so an aligned data set keeps its alignment.
    """
    samples, epoch = pk_samples(
        split.identity,
        seed=seed,
        p=options["identities_per_batch"],
        k=options["samples_per_identity"],
        epochs=epochs,
        steps=steps,
    )
    return Plan(np.moveaxis(split.rows[:, samples], 0, 1), epoch)


def cross_modal(
    split: Split, *, seed: int, options: Mapping[str, Any], epochs: int, steps: int
) -> Plan:
    """P identities with K images of each modality, for sets whose modalities are not aligned.

    P and K are `options` identities_per_batch and samples_per_identity. Column j of all modalities
    has one identity, not one instant; the K columns of an identity stand side by side. As in AGW
    (Ye et al. 2021), a batch draws its identities without and the images of each with replacement,
    and an epoch has n / (P K) batches, rounded down, and one more, where n is the number of images
    of the modality that has most. Epoch e is drawn by Philox with the key (seed, e). Identities
    that lack a modality are left out. Raises UserError where fewer than P remain.
    """
    p, k = options["identities_per_batch"], options["samples_per_identity"]
    there = [np.unique(split.identity[row >= 0]) for row in split.rows]
    shared = functools.reduce(np.intersect1d, there)
    if len(shared) < p:
        raise UserError(
            f"The training split has {len(shared)} identities with images of all modalities "
            f"({', '.join(split.modalities)}), but a batch takes "
            f"config.train.identities_per_batch = {p} distinct ones; lower that option."
        )
    lacking = len(np.unique(split.identity)) - len(shared)
    if lacking:
        logging.warning("%d identities lack a modality and are not trained on.", lacking)
    images = [[row[(split.identity == one) & (row >= 0)] for one in shared] for row in split.rows]
    batches = max(sum(map(len, own)) for own in images) // (p * k) + 1
    rows = []
    for epoch in range(1, 1 + (-(-steps // batches) if steps else epochs)):
        generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
        for _ in range(batches):
            drawn = generator.choice(len(shared), p, replace=False)
            rows.append(
                [np.concatenate([generator.choice(own[i], k) for i in drawn]) for own in images]
            )
    epoch = np.repeat(np.arange(1, len(rows) // batches + 1), batches)
    stop = steps or len(rows)
    return Plan(np.array(rows[:stop], np.int32), epoch[:stop].astype(np.int32))


SAMPLERS = {"pk": pk, "cross_modal": cross_modal}
"""Those that have a name."""


def epoch_batches(
    groups: list[np.ndarray], generator: np.random.Generator, p: int, k: int
) -> np.ndarray:
    """One epoch of PK batches [batches, p * k] from the rows of each identity.

    Each identity's rows are shuffled and cut into groups of k (with fewer than k rows they are
    drawn with replacement, otherwise a remainder is dropped); then p distinct identities are drawn
    at random among those with a group left, one group each, until fewer than p remain.
    """
    queues = []
    for rows in groups:
        chosen = generator.choice(rows, k) if len(rows) < k else generator.permutation(rows)
        queues.append(chosen[: len(chosen) // k * k].reshape(-1, k))
    left = np.array([len(queue) for queue in queues])
    batches = []
    while (open_identities := np.flatnonzero(left)).size >= p:
        drawn = generator.choice(open_identities, p, replace=False)
        batches.append(np.concatenate([queues[i][-left[i]] for i in drawn]))
        left[drawn] -= 1
    return np.array(batches)


def pk_samples(
    identity: np.ndarray, *, seed: int, p: int, k: int, epochs: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """(samples [S, p * k], epoch [S]) int32 of `steps` batches, or of `epochs` where it is 0.

    The K samples of an identity are adjacent. Epochs differ a little in length. Epoch e is
    drawn by Philox with the key (seed, e), so an order depends on the seed and the labels alone.

    Args:
        identity: label of each sample [N]; any integers, in any order.
        seed: of the run.
        p: identities in a batch.
        k: samples of each.
        epochs: the length of the run where `steps` is 0.
        steps: the length of the run, or 0.

    Raises UserError for fewer than p identities.
    """
    labels = np.unique(identity)
    if len(labels) < p:
        raise UserError(
            f"The training split has {len(labels)} identities, but a batch takes "
            f"config.train.identities_per_batch = {p} distinct ones; lower that option."
        )
    groups = [np.flatnonzero(identity == label) for label in labels]
    rows, epoch, total = [], [], 0
    while total < steps if steps else len(rows) < epochs:
        generator = np.random.Generator(np.random.Philox(key=[seed, len(rows) + 1]))
        batches = epoch_batches(groups, generator, p, k)
        rows.append(batches)
        epoch.append(np.full(len(batches), len(rows)))
        total += len(batches)
    stop = steps or total
    return (
        np.concatenate(rows)[:stop].astype(np.int32),
        np.concatenate(epoch)[:stop].astype(np.int32),
    )
