"""One branch for each modality, whose features are concatenated: the baseline.

Each branch is a backbone, a BatchNorm neck (BNNeck, Luo et al. 2019) and a classifier. This is the
baseline of Table 3 of the FACENet paper; FACENet adds an exchange of tokens between its
branches (`ThreeStream.exchange`). Any number of modalities.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.models import backbones
from facenet_jax.models.backbones import Backbone, branches, stack
from facenet_jax.models.base import Group, Model, Variables, init_batch
from facenet_jax.models.layers import BatchNorm, Dense
from facenet_jax.options import Option, Options, above, one_of, some_text, switch
from facenet_jax.types import Batch, DataSpec, Outputs
from facenet_jax.weights import merge

OWN_OPTIONS: Options = {
    "backbone": Option(
        "vit", "vit, dinov2, dinov3, clip, resnet, or the import path of your own", some_text()
    ),
    "backbone_lr_factor": Option(
        1.0, "of the learning rate, for what pretrained weights can fill", above(0)
    ),
    "shared_trunk": Option(False, "one trunk for all modalities", switch()),
    "classifier_std": Option(0.001, "of the random start of the classifiers", above(0)),
    "neck_feature": Option(
        "before",
        "what is matched, in relation to the BatchNorm",
        one_of("before", "after"),
    ),
}

LOSSES: Mapping[str, Mapping[str, Any]] = {"id": {"term": "id"}, "triplet": {"term": "triplet"}}
"""The losses of the recipe: {label: term, weight (1 unless given) and parameters}."""

KEPT = ("neck/", "classifier/")
"""What no pretrained backbone can fill."""


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`: the backbone's and these. `choices` may name a backbone."""
    backbone = backbones.find(choices.get("backbone", OWN_OPTIONS["backbone"].default))
    return {**OWN_OPTIONS, **getattr(backbone, "OPTIONS", {})}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, a clause each."""
    backbone = backbones.find(config.model.backbone)
    return backbone.problems(config) if hasattr(backbone, "problems") else []


class Head(NamedTuple):
    """A feature of each branch, which gets a neck and a classifier of its own."""

    name: str  # behind that of the modality
    features: jax.Array  # [M, B, D] float32
    share: float = 1.0  # what it is multiplied with in the embedding


class ThreeStream(nn.Module):
    """The branches of the given modalities on one batch."""

    identities: int
    modalities: tuple[str, ...]  # all that the network has branches for
    backbone: Backbone
    shared_trunk: bool
    classifier_std: float
    neck_feature: str  # "before" | "after"

    @nn.compact
    def __call__(self, batch: Batch, modalities: Sequence[str], train: bool) -> Outputs:
        """Outputs for images [M, B, H, W, 3] of the named modalities.

        Where a sample lacks a modality, that part of its embedding is 0.
        """
        tokens = self.tokens(batch, modalities, train)
        tokens, extras = self.exchange(tokens, batch, modalities, train)  # [M, B, p+n, D]
        features, logits, matched, present = {}, {}, [], {}
        for head in self.heads(tokens, modalities, train):
            neck = stack(functools.partial(BatchNorm), in_axes=(0, None, 0))
            necks = neck(name=f"neck{head.name}")(head.features, train, batch.present)
            classifier = functools.partial(
                Dense,
                self.identities,
                use_bias=False,
                dtype=necks.dtype,
                kernel_init=nn.initializers.normal(self.classifier_std),
            )
            classified = stack(classifier, in_axes=(0,))(name=f"classifier{head.name}")(necks)
            names = [f"{modality}{head.name}" for modality in modalities]
            features |= dict(zip(names, head.features, strict=True))
            logits |= dict(zip(names, classified, strict=True))  # [B, C] each
            one = head.features if self.neck_feature == "before" else necks
            if batch.present is not None:
                present |= dict(zip(names, batch.present, strict=True))
                one = jnp.where(batch.present[:, :, None], one, 0.0)
            matched.append(one if head.share == 1 else one * head.share)
        matched = jnp.concatenate(matched, axis=-1)  # [M, B, E / M]
        width = matched.shape[-1]
        return Outputs(
            features=features,
            logits=logits,
            embedding=jnp.concatenate(list(matched), axis=-1),
            parts={m: (i * width, (i + 1) * width) for i, m in enumerate(modalities)},
            extras=extras,
            present=present,
        )

    def neck_and_logits(
        self, name: str, feature: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """(behind a neck, logits [..., C]) of a feature [..., D] that is no branch's own.

        For subclasses; the parameters are neck_<name> and classifier_<name>.
        """
        neck = BatchNorm(name=f"neck_{name}")(feature, train)
        classifier = Dense(
            self.identities,
            use_bias=False,
            dtype=neck.dtype,
            kernel_init=nn.initializers.normal(self.classifier_std),
            name=f"classifier_{name}",
        )
        return neck, classifier(neck)

    def tokens(self, batch: Batch, modalities: Sequence[str], train: bool) -> jax.Array:
        """The trunk's tokens [M, B, p+n, D] of the images."""
        trunk = branches(
            self.backbone.tokens,
            "trunk",
            modalities,
            shared=self.shared_trunk,
            stacked=self.backbone.stacked,
            in_turn=self.in_turn(train),
        )
        return trunk(batch.images, train)

    def in_turn(self, train: bool) -> str:
        """`Backbone.in_turn` in evaluation; training and initialisation are of all together."""
        return "" if train or self.is_initializing() else self.backbone.in_turn

    def exchange(
        self, tokens: jax.Array, batch: Batch, modalities: Sequence[str], train: bool
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """(tokens [M, B, p+n, D] after an exchange between branches, extras by name); none here."""
        return tokens, {}

    def heads(self, tokens: jax.Array, modalities: Sequence[str], train: bool) -> list[Head]:
        """The features of the branches."""
        last = branches(
            self.backbone.head, "last", modalities, shared=False, stacked=self.backbone.stacked
        )
        return [Head("", last(tokens, train))]


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """The baseline that the section `model` describes, for data like `spec`."""
    return streams(config, spec, ThreeStream)


def streams(
    config: ml_collections.ConfigDict,
    spec: DataSpec,
    network: Callable[..., ThreeStream],
    *,
    backbone: Backbone | None = None,
    per_modality: Sequence[str] = (),
    fill: Mapping[str, str] | None = None,
    kept: Sequence[str] = (),
) -> Model:
    """A `Model` around a `ThreeStream` or a subclass.

    Args:
        config: the section `model`.
        spec: the training data.
        network: makes the network from the fields of `ThreeStream`.
        backbone: instead of the one that `config` names.
        per_modality: further parts of the parameters with a leading axis of modalities.
        fill: {part: "tokens" | "head"}, further parts that start from pretrained weights.
        kept: prefixes of further parameters that no pretrained weights can fill.
    """
    net = assembled(config, spec, network, backbone)
    backbone = net.backbone
    stacked = {"neck", "classifier", *per_modality}
    if backbone.stacked:
        stacked |= {"last"} if config.shared_trunk else {"last", "trunk"}

    groups = {}
    if config.backbone_lr_factor != 1:
        parts = "|".join(["trunk", "last", *(fill or {})])
        pattern = rf"({parts})(_\w+)?/(?!neck/|classifier/)"
        groups["backbone"] = Group(pattern, config.backbone_lr_factor)

    def init(key: jax.Array) -> Variables:
        return net.init({"params": key}, init_batch(spec), spec.modalities, False)

    def apply(
        variables: Variables,
        batch: Batch,
        *,
        train: bool,
        modalities: tuple[str, ...] | None = None,
        progress: jax.Array | float = 0.0,
        key: jax.Array | None = None,
    ) -> tuple[Outputs, Variables]:
        del progress  # these networks do not change with it
        modalities = tuple(modalities or spec.modalities)
        rows = [spec.modalities.index(modality) for modality in modalities]
        if modalities != tuple(spec.modalities):
            variables = select(variables, rows, stacked)
        return net.apply(
            variables,
            batch,
            modalities,
            train,
            rngs={"dropout": key} if train else None,
            mutable=[name for name in variables if name != "params"] if train else [],
        )

    def load(variables: Variables, path: str) -> tuple[Variables, Any]:
        read, ignored, note = backbone.read(path)
        table = {collection: {} for collection in read}
        for part, half in {"trunk": "tokens", "last": "head", **(fill or {})}.items():
            shared = part != "last" and (part != "trunk" or config.shared_trunk)
            names = [part]
            if not (backbone.stacked or shared):
                names = [f"{part}_{modality}" for modality in spec.modalities]
            for collection, halves in read.items():
                if half in halves:  # only one half may have statistics
                    table[collection] |= dict.fromkeys(names, halves[half])
        return merge.fill_collections(
            variables, table, (*KEPT, *kept), path, ignored=ignored, note=note
        )

    return Model(
        init=init,
        apply=apply,
        spec=spec,
        pixel_mean=backbone.pixel_mean,
        pixel_std=backbone.pixel_std,
        groups=groups,
        load=load if backbone.read else None,
        refuses=backbone.refuses,
    )


def assembled(
    config: ml_collections.ConfigDict,
    spec: DataSpec,
    network: Callable[..., ThreeStream],
    backbone: Backbone | None = None,
) -> ThreeStream:
    """The network of `streams`, as a Flax module."""
    if backbone is None:
        backbone = backbones.find(config.backbone).backbone(config, tuple(spec.image_size))
    return network(
        identities=spec.identities,
        modalities=tuple(spec.modalities),
        backbone=backbone,
        shared_trunk=config.shared_trunk,
        classifier_std=config.classifier_std,
        neck_feature=config.get("neck_feature", "before"),  # some have but one
    )


def select(variables: Variables, rows: Sequence[int], stacked: set[str]) -> Variables:
    """`variables` with only some rows of everything that is stacked by modality."""
    index = jnp.asarray(rows)

    def take(name: str, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[index], tree) if name in stacked else tree

    return {
        collection: {name: take(name, tree) for name, tree in trees.items()}
        for collection, trees in variables.items()
    }
