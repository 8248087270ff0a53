"""The loss terms that every model can use, by name.

Each takes the outputs of a model and the batch, and gives one number. `on` names the
features or logits it acts on, with * for any text, as in ("part_*",); () is all of them, in the
model's order. Sums over names where a loss is per name. Keyword parameters are options of the
config.
"""

import fnmatch
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from data_tfds.errors import UserError
from facenet_jax.losses import centres, divergence, identity
from facenet_jax.options import above, at_least, between, whole
from facenet_jax.types import Batch, Outputs

Names = tuple[str, ...]


def identity_loss(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    label_smoothing: Annotated[float, between(0, 1)] = 0.0,
) -> jax.Array:
    """Cross-entropy of the identities, summed over logits (FACENet Eq. 8)."""
    return sum(
        identity.cross_entropy(logits, batch.identity, label_smoothing, outputs.present.get(name))
        for name, logits in chosen(outputs.logits, on).items()
    )


def triplet(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    margin: Annotated[float, at_least(0)] = 0.0,
    together: bool = False,
    normalise: bool = False,
) -> jax.Array:
    """Batch-hard triplet loss, summed over features; `margin` 0 is the soft margin (Eq. 9).

    `normalise` compares unit vectors: features cannot shrink all distances to 0, where the loss
    otherwise comes to rest at ln 2, or at the margin.

    `together` makes one list of the rows of all features, so that anchors of one modality meet
    those of another.
    """
    return sum(
        identity.batch_hard_triplet(
            centres.unit(features) if normalise else features, labels, margin or None, present
        )
        for features, labels, present in lists(outputs, batch, on, together)
    )


def wrt(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    together: bool = True,
    include_self: bool = True,
    epsilon: Annotated[float, at_least(0)] = 1e-6,
    normalise: bool = False,
) -> jax.Array:
    """Weighted regularisation triplet (Ye et al. 2021, AGW); see `identity.weighted_triplet`."""
    return sum(
        identity.weighted_triplet(
            centres.unit(features) if normalise else features,
            labels,
            include_self,
            epsilon,
            present,
        )
        for features, labels, present in lists(outputs, batch, on, together)
    )


def jeffreys(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    detach: Literal["none", "first", "targets"] = "none",
) -> jax.Array:
    """Mutual learning of two lists of logits, see `divergence.jeffreys`.

    The first half of the names goes with the second half, each with its partner, and the mean over
    the pairs is taken: ("joint_*", "global_*").
    """
    names = list(chosen(outputs.logits, on))
    half = len(names) // 2
    if not half or len(names) % 2:
        raise UserError(f"The loss jeffreys compares pairs of logits, and got {names}.")
    found = [
        divergence.jeffreys(outputs.logits[a], outputs.logits[b], detach, _both(outputs, a, b))
        for a, b in zip(names[:half], names[half:], strict=True)
    ]
    return sum(found) / half


def mmd(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    margin: Annotated[float, at_least(0)] = 0.0,
    kernels: Annotated[int, whole(1)] = 5,
    multiplier: Annotated[float, above(0)] = 2.0,
) -> jax.Array:
    """Mean discrepancy of neighbouring features; see `divergence.identity_discrepancy`.

    Of ("visible", "auxiliary", "infrared") that is visible with auxiliary, and auxiliary with
    infrared (L_ma of MUN).
    """
    return sum(
        divergence.identity_discrepancy(a, b, batch.identity, margin, kernels, multiplier)
        for a, b in itertools.pairwise(complete(outputs, on, "mmd"))
    )


def alignment(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    margin: Annotated[float, at_least(0)] = 0.55,
    hinge: bool = True,
    normalise: bool = False,
) -> jax.Array:
    """Identity alignment (L_ia of MUN) of the first features, the auxiliary ones, with the others.

    See `centres.identity_alignment`.
    """
    first, *others = complete(outputs, on, "alignment")
    return centres.identity_alignment(first, others, batch.identity, margin, hinge, normalise)


def mc(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    of: Literal["logits", "features"] = "logits",
    reduction: Literal["sample", "batch"] = "sample",
) -> jax.Array:
    """Multi-modal consistency of neighbouring names (Eq. 6); on features, that of Table 6."""
    names = chosen(getattr(outputs, of), on)
    if len(names) < 2:
        raise UserError(f"The loss mc compares two or more {of}, and got {list(names)}.")
    present = None
    if any(name in outputs.present for name in names):
        everywhere = jnp.ones(batch.identity.shape, bool)
        present = [outputs.present.get(name, everywhere) for name in names]
    return divergence.multi_modal_consistency(list(names.values()), reduction, present)


def mmm(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    margin: Annotated[float, at_least(0)] = 1.0,
    normalise: bool = True,
) -> jax.Array:
    """3M (Wang et al. 2022, IEEE); see `centres.mmm`."""
    return centres.mmm(complete(outputs, on, "mmm"), batch.identity, margin, normalise)


def hc(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    metric: Literal["cosine", "l2"] = "cosine",
    margin: Annotated[float, at_least(0)] = 0.0,
    pairs: Literal["first", "all"] = "first",
) -> jax.Array:
    """Hetero-centre loss (Zhu et al. 2020) of the first two features; see `centres.hc`."""
    return centres.hc(complete(outputs, on, "hc"), batch.identity, metric, margin, pairs)


def cdc(
    outputs: Outputs,
    batch: Batch,
    *,
    on: Names = (),
    alpha: Annotated[float, at_least(0)] = 0.6,
    norm: Literal["paper", "code"] = "code",
    sample_weight: Annotated[float, at_least(0)] = 1.0,
) -> jax.Array:
    """Cross-directional centre loss of CCNet (Zheng et al. 2023); see `centres.cdc`."""
    features = complete(outputs, on, "cdc")
    return centres.cdc(features, batch.identity, alpha, norm, sample_weight)


def center(outputs: Outputs, batch: Batch, *, on: Names = ()) -> jax.Array:
    """Centre loss (Wen et al. 2016), summed over features; see `centres.center`.

    The centres [C, D], shared by all features, are the model's: `outputs.extras["centres"]`.
    """
    if "centres" not in outputs.extras:
        raise UserError(
            "The loss center needs centres, and the model keeps none; set "
            "config.model.centre_rate (0.5 in the release) where the model has it, or the weight "
            "of the loss to 0."
        )
    table = outputs.extras["centres"]
    named = present_everywhere(outputs, on, "center")
    return sum(centres.center(feature, batch.identity, table) for feature in named.values())


TERMS: Mapping[str, Callable] = {
    "id": identity_loss,
    "triplet": triplet,
    "mc": mc,
    "mmm": mmm,
    "hc": hc,
    "cdc": cdc,
    "wrt": wrt,
    "jeffreys": jeffreys,
    "mmd": mmd,
    "alignment": alignment,
    "center": center,
}


MINED = ("triplet", "wrt")
"""The losses that look in the batch for another sample of an identity, and for another identity."""


def problems(losses: Mapping[str, Any], train: Mapping[str, Any]) -> list[str]:
    """What the losses of a config lack in the batches that the section `train` describes."""
    found = []
    for label, section in losses.items():
        if section.term not in MINED or not section.weight:
            continue
        needed = ["identities_per_batch"]
        if not section.together:  # else the same sample in another modality is another row
            needed.append("samples_per_identity")
        found += [
            f"config.train.{name} is 1, but config.losses.{label} compares each sample with "
            "another one of its identity and with another identity; make it 2 or more"
            for name in needed
            if train[name] < 2
        ]
    return found


def chosen(named: Mapping[str, jax.Array], on: Names) -> dict[str, jax.Array]:
    """Those of `named` that a pattern in `on` matches, pattern by pattern; all of them for ().

    Raises UserError for a pattern that matches no name.
    """
    if not on:
        return dict(named)
    found = {}
    for pattern in on:
        names = fnmatch.filter(named, pattern)
        if not names:
            raise UserError(
                f"A loss of config.losses acts on '{pattern}', but the model gives "
                f"{', '.join(named) or 'nothing'}."
            )
        found |= {name: named[name] for name in names}
    return found


def lists(
    outputs: Outputs, batch: Batch, on: Names, together: bool
) -> Iterator[tuple[jax.Array, jax.Array, jax.Array | None]]:
    """(rows, identities, which are there or None) of each chosen feature, or of all in one list."""
    names = chosen(outputs.features, on)
    if not together or len(names) == 1:
        for name, features in names.items():
            yield features, batch.identity, outputs.present.get(name)
        return
    rows, present = jnp.concatenate(list(names.values())), None
    if any(name in outputs.present for name in names):
        everywhere = jnp.ones(batch.identity.shape, bool)
        present = jnp.concatenate([outputs.present.get(name, everywhere) for name in names])
    yield rows, jnp.concatenate([batch.identity] * len(names)), present


def _both(outputs: Outputs, a: str, b: str) -> jax.Array | None:
    """The rows in which two names are there; None where that is all of them."""
    found = [outputs.present[name] for name in (a, b) if name in outputs.present]
    return found[0] & found[-1] if found else None


def complete(outputs: Outputs, on: Names, term: str) -> list[jax.Array]:
    """The chosen features of two or more names, none of whose images may be missing."""
    named = present_everywhere(outputs, on, term)
    if len(named) < 2:
        raise UserError(f"The loss {term} compares two or more features, and got {list(named)}.")
    return list(named.values())


def present_everywhere(outputs: Outputs, on: Names, term: str) -> dict[str, jax.Array]:
    """The chosen features, none of whose images may be missing."""
    named = chosen(outputs.features, on)
    if any(name in outputs.present for name in named):
        raise UserError(
            f"The loss {term} works with centres of features, which is not defined where images "
            "are missing; set its weight to 0, or leave no image out (config.data.incomplete = "
            "'skip', config.augment.modality_dropout = ())."
        )
    return named
