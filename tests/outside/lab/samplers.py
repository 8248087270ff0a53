"""Batches across modalities: column j is one identity, its two images need not be one sample."""

from typing import Annotated

import numpy as np

from facenet_jax.inputs.sampler import Plan
from facenet_jax.options import whole


def cross_modal(
    split, *, seed, options, epochs, steps, steps_per_epoch: Annotated[int, whole(1)] = 4
) -> Plan:
    """P identities with K images of each modality, drawn anew in each step."""
    p, k = options["identities_per_batch"], options["samples_per_identity"]
    total = steps or epochs * steps_per_epoch
    known = np.unique(split.identity)
    rows = np.empty((total, len(split.modalities), p * k), np.int32)
    for step in range(total):
        generator = np.random.Generator(np.random.Philox(key=[seed, step]))
        for column, identity in enumerate(generator.choice(known, p, replace=False)):
            for modality, row in enumerate(split.rows):
                own = row[(split.identity == identity) & (row >= 0)]
                chosen = generator.choice(own, k, replace=len(own) < k)
                rows[step, modality, column * k : (column + 1) * k] = chosen
    return Plan(rows, np.arange(total, dtype=np.int32) // steps_per_epoch + 1)
