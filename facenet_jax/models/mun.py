"""MUN: an auxiliary modality, made from a visible and an infrared map, between the two.

"Modality Unifying Network for Visible-Infrared Person Re-Identification" (ICCV 2023): a two-stem
ResNet-50; in training a generator makes a third map of each pair of maps, which goes through the
shared stages as well and draws both modalities to itself. Nothing of it is there in evaluation.
The authors released no code; docs/fidelity.md says what the paper leaves open and what is done
here. `models/generators.py` has the generator and what Table 2 compares with it.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from data_tfds.errors import UserError
from facenet_jax.models import generators, resnet, two_stem
from facenet_jax.models.base import Model
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.models.two_stem import TwoStem, flat, joined, parted
from facenet_jax.options import Option, Options, one_of, rising, switch, whole
from facenet_jax.types import Batch, DataSpec, Outputs

AUXILIARY = "auxiliary"

OWN_OPTIONS: Options = {
    "split_after": Option(
        "layer1",
        "the last stage that each modality has for itself; the others are shared",
        one_of("stem", "layer1", "layer2"),
    ),
    "auxiliary": Option(
        "maps",
        "what the auxiliary modality is made from: maps (MUN), or images, by what Table 2 compares "
        "(x, mixed, syncretic); none",
        one_of("maps", "x", "mixed", "syncretic", "none"),
    ),
    "auxiliary_classifiers": Option(
        "both", "those of the two modalities (L_idc), or one of its own", one_of("both", "own")
    ),
    "pool_sizes": Option(
        (2, 4, 6, 12),
        "pixels of the maps that are averaged; they divide the maps",
        rising(whole(1)),
    ),
    "unpool": Option(
        "dense", "how averages become maps: transposed convolutions", one_of("dense", "depthwise")
    ),
    "scale": Option(
        "channel",
        "of the generator's results, at most 1: of each channel, one number, or none",
        one_of("channel", "scalar", "none"),
    ),
    "auxiliary_residual": Option(
        False, "add the maps of both IMLs to the auxiliary one; not in the paper's Eq. 9", switch()
    ),
    "statistics": Option(
        "joint",
        "of the shared BatchNorms in training: over all modalities, or of each apart",
        one_of("joint", "apart"),
    ),
    "prototypes": Option(True, "keep the running features of L_ma (Eqs. 13, 14)", switch()),
    "prototype_rows": Option(32, "of them: images of one modality in a batch", whole(1)),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "id": {"term": "id", "on": ("image_*",)},
    "triplet": {"term": "triplet", "on": ("image_*",), "margin": 0.3, "together": True},
    "idc": {"term": "id", "weight": 0.25, "on": ("auxiliary_*",)},
    "ia": {"term": "alignment", "weight": 0.5, "on": (AUXILIARY, "image_*")},
    # Neighbours are compared: visible with auxiliary, auxiliary with the other one.
    "ma": {
        "term": "mmd",
        "weight": 0.008,
        "on": ("prototype_visible", f"prototype_{AUXILIARY}", "prototype_*"),
    },
}

NO_WEIGHTS = resnet.NO_WEIGHTS

FIRST_SHARE = 1e-8  # of the new features in the prototypes, at the start; it rises to 1


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`."""
    return {**two_stem.of_resnet(), **OWN_OPTIONS}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, a clause each."""
    model, found = config.model, two_stem.problems(config)
    grid = resnet.grid(config.data.image_size, model.stem_pool, model.split_after)
    uneven = [size for size in model.pool_sizes if any(side % size for side in grid)]
    if model.auxiliary == "maps" and (uneven or not model.pool_sizes):
        found.append(
            f"config.model.pool_sizes is {tuple(model.pool_sizes)}, but the maps of "
            f"config.data.image_size {tuple(config.data.image_size)} are {grid[0]} x {grid[1]}; "
            "give sizes that divide both"
        )
    rows = config.train.identities_per_batch * config.train.samples_per_identity
    kept = model.auxiliary != "none" and model.prototypes
    if kept and config.sampler.name == "cross_modal" and rows != model.prototype_rows:
        found.append(
            f"config.model.prototype_rows is {model.prototype_rows}, but a batch has {rows} images "
            "of each modality (config.train.identities_per_batch * samples_per_identity); make "
            "them equal"
        )
    for label, section in config.losses.items():
        lacking = [
            name
            for name in section.get("on", ())
            if (name.startswith(AUXILIARY) and model.auxiliary == "none")
            or (name.startswith("prototype") and not kept)
        ]
        if section.weight and lacking:
            found.append(
                f"config.losses.{label} acts on {lacking[0]}, which config.model.auxiliary "
                f"'{model.auxiliary}' and config.model.prototypes {model.prototypes} do not give; "
                "set its weight to 0 or its option on"
            )
    return found


class MUN(TwoStem):
    """Features and logits of both modalities; in training those of the auxiliary one as well.

    Features: image_<modality>, auxiliary, prototype_<modality>, prototype_auxiliary. Logits:
    image_<modality>, and auxiliary_<modality> by the classifier of that modality, or auxiliary_own.
    """

    known: tuple[str, ...] = ()  # both modalities
    auxiliary: str = "maps"
    generator: functools.partial = functools.partial(generators.Generator)  # but for its name
    auxiliary_classifiers: str = "both"
    statistics: str = "joint"
    prototypes: bool = True
    prototype_rows: int = 0

    @nn.compact
    def __call__(
        self, batch: Batch, modalities: Sequence[str], train: bool, progress: jax.Array | float
    ) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities."""
        streams = self.stems(batch.images, modalities, train)
        names = list(modalities)
        if self.auxiliary != "none" and (train or self.is_initializing()):
            if batch.present is not None:
                raise UserError(
                    "MUN makes its auxiliary modality of pairs of images, and some are missing; "
                    "set config.sampler.name to 'cross_modal', which draws only what is there."
                )
            streams.append(self.made(batch.images, streams, train))
            names.append(AUXILIARY)
        pooled = parted(self.pooled(self.deep(streams, train), "pool"), len(names))
        matched = joined(list(pooled))
        necks = BatchNorm(name="neck")(matched, train, flat(batch.present))
        features, logits = self.heads(names, pooled, parted(necks, len(names)))
        images = joined(list(pooled)[: len(modalities)])
        if self.neck_feature == "after":
            images = joined(list(parted(necks, len(names)))[: len(modalities)])
        if AUXILIARY in features and self.prototypes:
            features |= self.running(features, progress)
        return self.outputs(features, logits, images, batch.present, modalities)

    def made(self, images: jax.Array, streams: Sequence[jax.Array], train: bool) -> jax.Array:
        """The auxiliary maps [B, H', W', C], from both maps or from both images [2, B, H, W, 3]."""
        if self.auxiliary == "maps":
            return self.generator(name="generator")(streams, train)
        image = generators.IMAGES[self.auxiliary](name="generator")(images)
        return self.stems(image[None], [AUXILIARY], train)[0]

    def deep(self, streams: Sequence[jax.Array], train: bool) -> jax.Array:
        """The last maps [B * M, ...] of maps [B, ...] of each modality."""
        if self.statistics == "joint":
            return self.shared(joined(streams), train)["layer4"]
        module = self.shared_module()
        return joined([module(maps, train)["layer4"] for maps in streams])

    def heads(
        self, names: Sequence[str], pooled: jax.Array, necks: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """(features, logits) by name of features [M, B, D] before and behind the neck."""
        features, logits = {}, {}
        both = {m: self.classifier_module(f"classifier_{m}", necks.dtype) for m in self.known}
        for name, before, after in zip(names, pooled, necks, strict=True):
            if name != AUXILIARY:
                features[f"image_{name}"], logits[f"image_{name}"] = before, both[name](after)
                continue
            features[AUXILIARY] = before
            if self.auxiliary_classifiers == "own":
                own = self.classifier_module(f"classifier_{AUXILIARY}", necks.dtype)
                logits[f"{AUXILIARY}_own"] = own(after)
            else:
                logits |= {f"{AUXILIARY}_{m}": classify(after) for m, classify in both.items()}
        return features, logits

    def running(
        self, features: Mapping[str, jax.Array], progress: jax.Array | float
    ) -> dict[str, jax.Array]:
        """Prototypes T = b W Z + (1 - b) T_before of the features Z (Eqs. 13, 14), and their state.

        One row for each place in the batch. b rises over the run; T_before gets no gradient, and in
        the first iteration T is W Z.
        """
        size = len(features[AUXILIARY])
        if not self.is_initializing() and size != self.prototype_rows:
            raise UserError(
                f"The batch has {size} images of each modality and config.model.prototype_rows is "
                f"{self.prototype_rows}; make them equal."
            )
        share = FIRST_SHARE + (1 - FIRST_SHARE) * progress
        done = self.variable("prototypes", "iteration", lambda: jnp.int32(0))
        found = {}
        for name, z in features.items():
            short = name.removeprefix("image_")
            dense = Dense(
                z.shape[-1],
                use_bias=False,
                kernel_init=identity_matrix,
                dtype=z.dtype,
                name=f"prototype_{short}",
            )
            new, shape = dense(z), (self.prototype_rows, z.shape[-1])
            before = self.variable("prototypes", short, jnp.zeros, shape)
            if self.is_initializing():
                continue
            mixed = share * new + (1 - share) * jax.lax.stop_gradient(before.value)
            found[f"prototype_{short}"] = jnp.where(done.value == 0, new, mixed)
            before.value = jax.lax.stop_gradient(found[f"prototype_{short}"])
        if not self.is_initializing():
            done.value = done.value + 1
        return found


def identity_matrix(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """A kernel that changes nothing."""
    return jnp.eye(*shape, dtype=dtype)


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """MUN for data like `spec`, of two modalities."""
    if len(spec.modalities) != 2:
        raise UserError(
            f"MUN is for two modalities, and the data set has {', '.join(spec.modalities)}."
        )
    generator = functools.partial(
        generators.Generator,
        tuple(config.pool_sizes),
        config.unpool,
        config.scale,
        config.auxiliary_residual,
        tuple(spec.modalities),
        jnp.dtype(config.dtype),
    )
    kind = functools.partial(
        MUN,
        known=tuple(spec.modalities),
        auxiliary=config.auxiliary,
        generator=generator,
        auxiliary_classifiers=config.auxiliary_classifiers,
        statistics=config.statistics,
        prototypes=config.prototypes,
        prototype_rows=config.prototype_rows,
    )
    net = two_stem.network(config, spec, kind)
    stems = [AUXILIARY] if config.auxiliary in generators.IMAGES else []
    return two_stem.as_model(net, config, spec, kept=("generator", "prototype"), stems=stems)
