"""Proxies: unit vectors of each identity that follow its features and draw them together.

The losses of ProxyTTT (Wang et al., 2025) without its training on test images. Its release does not
run as it is, so this is made from its formulas; docs/fidelity.md has what they leave open.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_tfds.errors import UserError
from facenet_jax.losses import centres
from facenet_jax.models.layers import Dense, LayerNorm
from facenet_jax.types import Batch, Outputs

TEMPERATURE = 0.1  # of the softmax over the proxies of an identity
MOMENTUM = 0.9


class Proxies(nn.Module):
    """K proxies of each identity, kept in the collection "proxies" and moved after each batch."""

    identities: int
    each: int  # K
    add: str  # "sum" | "mean", of the features of an identity in a batch
    hidden: float  # share of the channels that the recovery does not see

    @nn.compact
    def __call__(
        self, features: jax.Array, labels: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """(proxies [C, K, D] before the batch, the error of the recovery) of features [B, D]."""
        shape = (self.identities, self.each, features.shape[-1])
        table = self.variable(
            "proxies",
            "table",
            lambda: centres.unit(jax.random.normal(self.make_rng("params"), shape)),
        )
        sums = self.variable("proxies", "sums", jnp.zeros, shape)
        before = table.value
        error = self.recovery(features, before[labels], train)
        if train and not self.is_initializing():
            rows = jax.lax.stop_gradient(centres.unit(features))
            table.value, sums.value = moved(before, sums.value, rows, labels, self.add)
        return before, error

    def recovery(self, features: jax.Array, own: jax.Array, train: bool) -> jax.Array:
        """The mean squared error of hidden channels, made of the identity's proxies [B, K, D]."""
        width = features.shape[-1]
        keep = jnp.ones(width, bool)
        if train and not self.is_initializing():
            keep = ~jax.random.bernoulli(self.make_rng("dropout"), self.hidden, (width,))
        seen = jnp.where(keep[None], features, 0.0)
        query = Dense(width, dtype=seen.dtype, name="query")(seen)
        query = nn.relu(LayerNorm(1e-5, name="query_norm")(query))
        scores = jnp.einsum("bd,bkd->bk", query, own) / TEMPERATURE
        mixed = jnp.einsum("bk,bkd->bd", jax.nn.softmax(scores), own)
        made = Dense(width, dtype=seen.dtype, name="made")(mixed)
        made = LayerNorm(1e-5, name="made_norm")(made)
        error = jnp.where(keep[None], 0.0, jnp.square(made - features))
        hidden = jnp.sum(~keep, dtype=error.dtype)
        return error.sum() / jnp.maximum(len(features) * hidden, 1.0)


def moved(
    table: jax.Array, sums: jax.Array, rows: jax.Array, labels: jax.Array, add: str
) -> tuple[jax.Array, jax.Array]:
    """(proxies, running sums) [C, K, D] after a batch of unit features [B, D].

    With a the softmax over an identity's proxies p of cos(p, x) / 0.1, and for identities in the
    batch alone: s = 0.9 s + 0.1 sum of a x, p = unit(0.9 p + 0.1 unit(s)). `add` "mean" divides the
    sum by the number of the identity's rows.
    """
    share = jax.nn.softmax(jnp.einsum("bd,bkd->bk", rows, table[labels]) / TEMPERATURE)
    count = jnp.zeros(len(table)).at[labels].add(1.0)
    total = jnp.zeros_like(sums).at[labels].add(share[:, :, None] * rows[:, None])
    if add == "mean":
        total = total / jnp.maximum(count, 1)[:, None, None]
    there = (count > 0)[:, None, None]
    sums = jnp.where(there, MOMENTUM * sums + (1 - MOMENTUM) * total, sums)
    new = centres.unit(MOMENTUM * table + (1 - MOMENTUM) * centres.unit(sums))
    return jnp.where(there, new, table), sums


def draw_together(outputs: Outputs, batch: Batch, *, negatives: bool = False) -> jax.Array:
    """L_prox, summed over the sets of proxies: -mean over k of cos(x, own proxy k).

    With `negatives` plus the mean cosine with the proxies of the others, divided by their number
    once more, as the paper has it; for hundreds of identities that is nothing.
    """
    total = 0.0
    for name, table in sets(outputs).items():
        x = centres.unit(outputs.extras[f"drawn_{name}"])
        own = jnp.einsum("bd,bkd->bk", x, table[batch.identity]).mean(1)
        total -= own.mean()
        if negatives:
            others, every = len(table) - 1, jnp.einsum("bd,ckd->bck", x, table).mean(2)
            total += ((every.sum(1) - own) / others**2).mean()
    return total


def recovery(outputs: Outputs, batch: Batch) -> jax.Array:
    """The errors of the recovery, summed over the sets of proxies."""
    del batch
    sets(outputs)
    return sum(x for name, x in outputs.extras.items() if name.startswith("recovery_"))


def sets(outputs: Outputs) -> dict[str, jax.Array]:
    """{name: proxies [C, K, D]} of the features "drawn_<name>". UserError where there are none."""
    found = {
        name.removeprefix("proxies_"): table
        for name, table in outputs.extras.items()
        if name.startswith("proxies_")
    }
    if not found:
        raise UserError(
            "A loss of config.losses needs proxies, and the model keeps none; set "
            "config.model.proxies.enabled where the model has it, or the weight of the loss to 0."
        )
    return found


TERMS = {"draw_together": draw_together, "recovery": recovery}
