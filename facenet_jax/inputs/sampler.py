"""Index plans for a whole run: which rows make up each batch. NumPy, a function of the seed."""

import dataclasses

import numpy as np

from data_tfds.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows and the epoch of every training step."""

    rows: np.ndarray  # [steps, P * K] int32, the K rows of one identity side by side
    epoch: np.ndarray  # [steps] int32, 1 for the first epoch


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


def pk_plan(identity: np.ndarray, *, seed: int, p: int, k: int, epochs: int, steps: int) -> Plan:
    """The plan of a run: `steps` batches, or `epochs` epochs where `steps` is 0.

    Epochs differ a little in length. Epoch e is drawn by Philox with the key (seed, e), so an order
    depends on nothing but the seed and the labels.

    Args:
        identity: label of each row [N]; any integers, in any order.
        seed, p, k: the seed, identities per batch, samples per identity.
        epochs, steps: the length of the run; one of them may be 0.

    Raises:
        UserError: fewer than p identities.
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
    return Plan(
        np.concatenate(rows)[:stop].astype(np.int32), np.concatenate(epoch)[:stop].astype(np.int32)
    )
