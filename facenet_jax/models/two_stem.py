"""One network for several modalities, whose first stages each modality has for itself.

The two-stem ResNet of visible-infrared re-identification: AGW (Ye et al., "Deep Learning for Person
Re-Identification: A Survey and Outlook", PAMI 2021) in its form for two modalities. An image goes
through the stem of its modality and the shared stages, generalised-mean pooling, a BatchNorm neck
and a classifier, both shared. What is matched is one image with one image, in one space. FFDML and
MUN start from here.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.models import non_local, resnet
from facenet_jax.models.base import Group, Model, Variables, init_batch
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.options import Option, Options, above, at_least, one_of, switch
from facenet_jax.precision import wide
from facenet_jax.types import Batch, DataSpec, Outputs
from facenet_jax.weights import merge

OWN_OPTIONS: Options = {
    "stem_relu": Option(True, "ReLU in the stem: people (AGW) True, vehicles False", switch()),
    "split_after": Option(
        "stem",
        "the last stage that each modality has for itself; the others are shared",
        one_of("stem", "layer1", "layer2"),
    ),
    "pool": Option("gem", "generalised mean with gem_power, or mean", one_of("gem", "mean")),
    "gem_power": Option(3.0, "p of the generalised mean, at the start if learned", above(0)),
    "gem_learned": Option(False, "whether p is learned", switch()),
    "classifier_std": Option(0.001, "of the random start of the classifiers", above(0)),
    "neck_feature": Option(
        "after", "what is matched, in relation to the BatchNorm", one_of("before", "after")
    ),
    "pretrained_lr_factor": Option(
        1.0, "learning rate of the ResNet relative to that of what is new", at_least(0)
    ),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    # The sum over two modalities, halved: the mean over all images of the batch.
    "id": {"term": "id", "weight": 0.5},
    "wrt": {"term": "wrt"},
}

NO_WEIGHTS = resnet.NO_WEIGHTS

SMALLEST = 1e-6  # of what a power is taken of: a root of negative numbers would be no number


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`."""
    return {**of_resnet(), **non_local.OPTIONS}


def of_resnet() -> Options:
    """The options of a ResNet with stems of its own for each modality."""
    return {**resnet.OPTIONS, **OWN_OPTIONS}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, a clause each."""
    found = resnet.problems(config)
    return found + (non_local.problems(config) if "non_local" in config.model else [])


def gem(maps: jax.Array, power: float | jax.Array) -> jax.Array:
    """(mean over places of max(x, 1e-6)^p + 1e-12)^(1/p) of each channel (Radenovic et al. 2018).

    [B, H, W, C] to [B, C] float32. AGW clamps nothing, since a ReLU stands before its pooling.
    """
    maps = jnp.maximum(wide(maps), SMALLEST)
    if isinstance(power, float) and power.is_integer():
        power = int(power)  # a product, where a power of any number takes a logarithm
    return (jnp.mean(maps**power, axis=(1, 2)) + 1e-12) ** (1 / power)


class GeM(nn.Module):
    """`gem` whose power is learned."""

    power: float  # at the start

    @nn.compact
    def __call__(self, maps: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, C] float32."""
        return gem(maps, self.param("power", nn.initializers.constant(self.power), ()))


class TwoStem(nn.Module):
    """Stems, shared stages, pooling, neck and classifier on one batch.

    Inside, the images of a batch lie sample by sample, [B * M, ...] with the modality as the fast
    index: a device that has some of the samples has all that belongs to them.
    """

    identities: int
    stages: functools.partial  # `resnet.Stages` but for the names
    split_after: str
    pool: str  # "gem" | "mean"
    gem_power: float
    gem_learned: bool
    classifier_std: float
    neck_feature: str  # "before" | "after"

    @nn.compact
    def __call__(
        self, batch: Batch, modalities: Sequence[str], train: bool, progress: jax.Array | float
    ) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities."""
        maps = joined(self.stems(batch.images, modalities, train))
        pooled = self.pooled(self.shared(maps, train)["layer4"], "pool")
        necks, logits = self.branch(pooled, "", train, batch.present)
        names = list(modalities)
        return self.outputs(
            named(names, parted(pooled, len(names))),
            named(names, parted(logits, len(names))),
            pooled if self.neck_feature == "before" else necks,
            batch.present,
            modalities,
        )

    def stems(self, images: jax.Array, modalities: Sequence[str], train: bool) -> list[jax.Array]:
        """The maps [B, H', W', C] of each modality's own stages, of images [M, B, H, W, 3]."""
        own = resnet.STAGES[: resnet.STAGES.index(self.split_after) + 1]
        return [
            self.stages(names=own, name=f"stem_{modality}")(one, train)
            for modality, one in zip(modalities, images, strict=True)
        ]

    def shared(self, maps: jax.Array, train: bool) -> dict[str, jax.Array]:
        """{stage: maps} of the shared stages, of maps [N, H, W, C]."""
        return self.shared_module()(maps, train)

    def shared_module(self) -> resnet.StageMaps:
        """The shared stages, to be applied once or more."""
        names = resnet.STAGES[resnet.STAGES.index(self.split_after) + 1 :]
        return resnet.StageMaps(self.stages, names, name="shared")

    def pooled(self, maps: jax.Array, name: str) -> jax.Array:
        """[N, H, W, C] to [N, C] float32."""
        if self.pool == "mean":
            return wide(maps).mean((1, 2))
        if self.gem_learned:
            return GeM(self.gem_power, name=name)(maps)
        return gem(maps, self.gem_power)

    def branch(
        self, features: jax.Array, ending: str, train: bool, present: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """(features behind a neck [N, D], their logits [N, C]) of features [N, D], N = B * M."""
        necks = BatchNorm(name=f"neck{ending}")(features, train, flat(present))
        return necks, self.classifier_module(f"classifier{ending}", necks.dtype)(necks)

    def classifier_module(self, name: str, dtype: jnp.dtype) -> Dense:
        """From features [..., D] behind a neck to logits [..., C], without a bias."""
        start = nn.initializers.normal(self.classifier_std)
        return Dense(self.identities, use_bias=False, dtype=dtype, kernel_init=start, name=name)

    def outputs(
        self,
        features: Mapping[str, jax.Array],
        logits: Mapping[str, jax.Array],
        matched: jax.Array,
        present: jax.Array | None,
        modalities: Sequence[str],
    ) -> Outputs:
        """Outputs of features and logits whose names end in their modality.

        `matched` [B * M, D] lies in one space for all modalities: a sample is matched by the mean
        of those that it has, which for an image by itself is its own.
        """
        each = parted(matched, len(modalities))
        weight = jnp.ones(each.shape[:2]) if present is None else wide(present)
        total = jnp.sum(each * weight[..., None].astype(each.dtype), axis=0)
        embedding = total / jnp.maximum(weight.sum(0), 1)[:, None].astype(each.dtype)
        missing = {}
        if present is not None:
            missing = {
                name: row
                for modality, row in zip(modalities, present, strict=True)
                for name in [*features, *logits]
                if name.endswith(modality)
            }
        return Outputs(
            features, logits, embedding, {"all": (0, embedding.shape[-1])}, present=missing
        )


def joined(each: Sequence[jax.Array]) -> jax.Array:
    """M arrays [B, ...] as one [B * M, ...], sample by sample."""
    return jnp.stack(each, axis=1).reshape(-1, *each[0].shape[1:])


def flat(present: jax.Array | None) -> jax.Array | None:
    """Which images are there, [M, B], in the order of `joined`; None stays None."""
    return None if present is None else present.T.reshape(-1)


def parted(rows: jax.Array, count: int) -> jax.Array:
    """[B * M, ...] of `joined` as [M, B, ...]."""
    return rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)


def named(names: Sequence[str], each: jax.Array) -> dict[str, jax.Array]:
    """{name: row} of names [M] and rows [M, ...]."""
    return dict(zip(names, each, strict=True))


def network(
    config: ml_collections.ConfigDict,
    spec: DataSpec,
    kind: Callable[..., TwoStem] = TwoStem,
    inserted: Mapping[str, functools.partial] | None = None,
) -> TwoStem:
    """The Flax module of the section `model`, a `TwoStem` or a subclass."""
    return kind(
        identities=spec.identities,
        stages=resnet.stages(config, inserted),
        split_after=config.split_after,
        pool=config.pool,
        gem_power=config.gem_power,
        gem_learned=config.gem_learned,
        classifier_std=config.classifier_std,
        neck_feature=config.neck_feature,
    )


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """The network for data like `spec`, of any modalities."""
    net = network(config, spec, inserted=non_local.blocks(config))
    return as_model(net, config, spec, kept=("shared/non_local",))


def as_model(
    net: TwoStem,
    config: ml_collections.ConfigDict,
    spec: DataSpec,
    kept: Sequence[str] = (),
    stems: Sequence[str] = (),
) -> Model:
    """A `Model` around a network.

    Args:
        net: the network.
        config: the section `model`.
        spec: the training data.
        kept: prefixes of parameters that no ResNet can fill, besides necks and classifiers.
        stems: names of further stems, such as "auxiliary".
    """

    def init(key: jax.Array) -> Variables:
        return net.init({"params": key}, init_batch(spec), spec.modalities, False, 0.0)

    def apply(
        variables: Variables,
        batch: Batch,
        *,
        train: bool,
        modalities: tuple[str, ...] | None = None,
        progress: jax.Array | float = 0.0,
        key: jax.Array | None = None,
    ) -> tuple[Outputs, Variables]:
        del key  # nothing here is drawn
        changed = [name for name in variables if name != "params"] if train else []
        names = tuple(modalities or spec.modalities)
        return net.apply(variables, batch, names, train, progress, mutable=changed)

    def load(variables: Variables, path: str) -> tuple[Variables, Any]:
        own = resnet.STAGES[: resnet.STAGES.index(config.split_after) + 1]
        width, depths = resnet.size(config).values()
        read, ignored, note = resnet.read(path, width=width, depths=depths, trunk=own)
        names = [f"stem_{name}" for name in (*spec.modalities, *stems)]
        table = {
            collection: {**dict.fromkeys(names, halves["tokens"]), "shared": halves["head"]}
            for collection, halves in read.items()
        }
        fixed = ("neck", "classifier", "pool", *kept)
        return merge.fill_collections(variables, table, fixed, path, ignored=ignored, note=note)

    return Model(
        init=init,
        apply=apply,
        spec=spec,
        pixel_mean=resnet.IMAGENET_MEAN,
        pixel_std=resnet.IMAGENET_STD,
        groups={"pretrained": Group(r"(stem_[^/]*|shared)/", config.pretrained_lr_factor)},
        load=load,
    )
