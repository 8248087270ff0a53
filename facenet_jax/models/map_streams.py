"""One ResNet for each modality, whose last maps meet: what HAMNet, PFNet and IEEE share.

The three are hosts of Table 7 of the FACENet paper, which adds its MC loss to them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from data_tfds.errors import UserError
from facenet_jax.losses import terms
from facenet_jax.models import resnet, three_stream
from facenet_jax.models.base import Model
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.models.three_stream import ThreeStream
from facenet_jax.options import Option, Options, one_of
from facenet_jax.types import Batch, DataSpec, Outputs


def options() -> Options:
    """The options of `config.model`: those of three streams of a ResNet that has a meaning here."""
    known = three_stream.options({"backbone": "resnet"})
    kept = {name: known[name] for name in known if name not in ("split_after", "neck_feature")}
    return {**kept, "backbone": Option("resnet", "what has maps", one_of("resnet"))}


class MapStreams(ThreeStream):
    """The branches, whose `maps` a subclass makes features of."""

    def maps(self, batch: Batch, modalities: Sequence[str], train: bool) -> dict[str, jax.Array]:
        """{modality: last maps [B, H, W, C] float32} of images [M, B, H, W, 3]."""
        check_complete(batch, type(self).__name__)
        return dict(zip(modalities, self.tokens(batch, modalities, train), strict=True))


def check_complete(batch: Batch, name: str) -> None:
    """Raises UserError where images may be missing within the batch."""
    if batch.present is not None:
        raise UserError(
            f"{name} works with the maps of all modalities of a sample together, and some samples "
            "lack one; leave these out (config.data.incomplete = 'skip', "
            "config.augment.modality_dropout = ())."
        )


def model(
    config: ml_collections.ConfigDict,
    spec: DataSpec,
    kind: Callable[..., MapStreams],
    *,
    per_modality: Sequence[str] = (),
    kept: Sequence[str] = (),
) -> Model:
    """A `Model` around a subclass; see `three_stream.streams` for the last arguments."""
    return three_stream.streams(
        config,
        spec,
        kind,
        backbone=resnet.whole(config, tuple(spec.image_size)),
        per_modality=per_modality,
        kept=kept,
    )


def network(
    config: ml_collections.ConfigDict, spec: DataSpec, kind: Callable[..., MapStreams]
) -> MapStreams:
    """The network of `model`, as a Flax module."""
    backbone = resnet.whole(config, tuple(spec.image_size))
    return three_stream.assembled(config, spec, kind, backbone)


def stripes(maps: jax.Array, count: int) -> jax.Array:
    """The means [B, count, C] of horizontal stripes of maps [B, H, W, C].

    Stripe i has the rows from floor(i H / count) to ceil((i + 1) H / count), so that stripes share
    a row where `count` does not divide H, as torch's adaptive pooling has it.
    """
    height = maps.shape[1]
    edges = [(i * height // count, -(-(i + 1) * height // count)) for i in range(count)]
    return jnp.stack([maps[:, a:b].mean((1, 2)) for a, b in edges], axis=1)


class Reduced(nn.Module):
    """A 1 x 1 convolution with BatchNorm and ReLU."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, ..., D] to [B, ..., width] float32."""
        x = Dense(self.width, use_bias=False, dtype=self.dtype, name="conv")(x)
        return nn.relu(BatchNorm(frozen_bias=False, name="bn")(x, train))


def mc_of_parts(outputs: Outputs, batch: Batch) -> jax.Array:
    """MC (FACENet Eq. 6) of the logits of each stripe, the mean over stripes.

    The logits of a stripe are those named "part<number>_<modality>". That the mean is taken is our
    choice; the paper does not say.
    """
    parts = dict.fromkeys(n.split("_")[0] for n in outputs.logits if n.startswith("part"))
    return sum(terms.mc(outputs, batch, on=(f"{part}_*",)) for part in parts) / len(parts)


TERMS: Mapping[str, Any] = {"mc_of_parts": mc_of_parts}
