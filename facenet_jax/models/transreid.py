"""TransReID: a ViT that knows the camera and the view, with a head of its own for mixed patches.

He et al., "TransReID: Transformer-based Object Re-Identification", ICCV 2021. Side information
(SIE) is added to the tokens; the jigsaw patch module (JPM) regroups the patches that leave the
trunk, and a second copy of the last block gives a feature of each group. One branch for each
modality; `model.facenet` puts FACENet's masks and enhancement between trunk and heads (Table 8 of
the FACENet paper).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from data_tfds.errors import UserError
from facenet_jax.models import facenet, three_stream, vit
from facenet_jax.models.backbones import branches, stack
from facenet_jax.models.base import Model
from facenet_jax.models.facenet import FACENet
from facenet_jax.models.three_stream import Head, ThreeStream
from facenet_jax.options import Option, Options, defaults, finite, one_of, switch, whole
from facenet_jax.types import Batch, DataSpec

OWN_OPTIONS: Options = {
    # Groups of patches have no place on the grid of rotary positions, so no dinov3.
    "backbone": Option("vit", "what has patch tokens", one_of("vit", "dinov2", "clip")),
    "sie": {
        "camera": Option(False, "the camera is known to the network", switch()),
        "view": Option(False, "the view is known to the network", switch()),
        "coefficient": Option(3.0, "lambda, the weight of what is added", finite()),
    },
    "jpm": {
        "enabled": Option(True, "features of groups of patches, too", switch()),
        "parts": Option(4, "groups, each with a feature", whole(1, 64)),
        "shuffle": Option(True, "False: groups are neighbouring patches", switch()),
        "shift": Option(8, "patches, 8 for vehicles and 5 for people", whole(1, 4096)),
        "interleave": Option(2, "runs of patches that are dealt out in turns", whole(1, 64)),
    },
    "facenet": Option(False, "FACENet's MFMP and FCE between trunk and heads", switch()),
}

GLOBAL, LOCAL = ("*_global",), ("*_local_*",)

LOSSES: Mapping[str, Mapping[str, Any]] = {
    # Half for the global feature, half for the mean of the four local ones.
    "id": {"term": "id", "weight": 0.5, "on": GLOBAL},
    "id_local": {"term": "id", "weight": 0.125, "on": LOCAL},
    "triplet": {"term": "triplet", "weight": 0.5, "on": GLOBAL},
    "triplet_local": {"term": "triplet", "weight": 0.125, "on": LOCAL},
    # Those of FACENet.
    "mask_kl": {"term": "mask_kl", "weight": 0.0},
    "mc": {"term": "mc", "weight": 0.0, "on": GLOBAL},
    "flare": {"term": "flare", "weight": 0.0},
}

TERMS = facenet.TERMS


def regrouped(
    patches: jax.Array, parts: int, shuffle: bool, shift: int, interleave: int
) -> jax.Array:
    """Patch tokens [..., n, D] as groups [..., parts, n // parts, D]; those left over are dropped.

    With `shuffle` they are rotated by `shift` - 1 first (the release counts from the class token)
    and then dealt out: the first of each of `interleave` equal runs, then the second of each.
    Where the runs do not come out equal, one token more makes the run: the last but one again.
    """
    length = patches.shape[-2] // parts
    if shuffle:
        patches = jnp.roll(patches, 1 - shift, axis=-2)
        while patches.shape[-2] % interleave:
            patches = jnp.concatenate([patches, patches[..., -2:-1, :]], axis=-2)
        *outer, n, width = patches.shape
        patches = patches.reshape(*outer, interleave, n // interleave, width).swapaxes(-3, -2)
        patches = patches.reshape(*outer, n, width)
    groups = patches[..., : parts * length, :]
    return groups.reshape(*groups.shape[:-2], parts, length, groups.shape[-1])


class SideInformation(nn.Module):
    """SIE: a learned vector for each camera, view, or pair of both."""

    rows: int
    width: int

    @nn.compact
    def __call__(self, row: jax.Array) -> jax.Array:
        """[B] int32 to [B, width] float32; 0 for a row that is not known (-1) or too large."""
        init = nn.initializers.truncated_normal(0.02)
        table = self.param("table", init, (self.rows, self.width))
        row = jnp.where(row < 0, self.rows, row)  # a negative index would count from the end
        return table.at[row].get(mode="fill", fill_value=0.0)


class TransReID(ThreeStream):
    """TransReID in each branch."""

    sides: tuple[tuple[str, int], ...] = ()  # (label, number of its values), those that SIE knows
    coefficient: float = 3.0
    jpm: Mapping | None = None  # the arguments of `regrouped`; None: the global feature alone

    def tokens(self, batch: Batch, modalities: Sequence[str], train: bool) -> jax.Array:
        """The trunk's tokens [M, B, 1 + n, D] of images, camera and view."""
        if not self.sides:
            return super().tokens(batch, modalities, train)
        row, rows, known = jnp.zeros(batch.images.shape[:2], jnp.int32), 1, True
        for name, count in self.sides:
            label = batch.labels[name]
            row, rows = row * count + label, rows * count
            known &= (label >= 0) & (label < count)
        copies = not self.shared_trunk
        side = functools.partial(SideInformation, rows, self.backbone.token_width)
        side = stack(side, in_axes=(0,), copies=copies)(name="side")
        added = self.coefficient * side(jnp.where(known, row, -1))
        trunk = stack(self.backbone.tokens, (0, None, 0), copies, self.in_turn(train))
        return trunk(name="trunk")(batch.images, train, added)

    def heads(self, tokens: jax.Array, modalities: Sequence[str], train: bool) -> list[Head]:
        """The global feature, and the local ones, which count for their share in the embedding."""
        (last,) = super().heads(tokens, modalities, train)
        found = [Head("_global", last.features)]
        if self.jpm is None:
            return found
        prefix = self.backbone.prefix
        groups = regrouped(tokens[:, :, prefix:], **self.jpm)  # [M, B, parts, length, D]
        first = tokens[:, :, None, :prefix]
        first = jnp.broadcast_to(first, (*groups.shape[:3], prefix, groups.shape[-1]))
        rows = jnp.concatenate([first, groups], axis=3)
        rows = rows.reshape(rows.shape[0], -1, *rows.shape[3:])  # all groups in one batch
        head = branches(
            self.backbone.head,
            "last_local",
            modalities,
            shared=False,
            stacked=self.backbone.stacked,
        )
        local = head(rows, train).reshape(*groups.shape[:3], -1)
        parts = groups.shape[2]
        return found + [Head(f"_local_{i + 1}", local[:, :, i], 1 / parts) for i in range(parts)]


class FlareAware(TransReID, FACENet):
    """TransReID with FACENet's exchange of tokens."""


def options(choices: Mapping[str, Any]) -> Options:
    """The options of `config.model`: FACENet's and these."""
    return {**facenet.options(choices), **OWN_OPTIONS}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, a clause each."""
    found, model = facenet.problems(config), config.model
    patches = math.prod(vit.grid(config.data.image_size, model.patch, model.stride or model.patch))
    if model.jpm.enabled and model.jpm.parts > patches:
        found.append(
            f"config.model.jpm.parts is {model.jpm.parts} and config.data.image_size "
            f"{tuple(config.data.image_size)} gives {patches} patches; make fewer groups of them"
        )
    unchanged = defaults(facenet.OWN_OPTIONS)
    idle = [name for name in ("mfmp", "fce") if model[name].to_dict() != unchanged[name]]
    if idle and not model.facenet:
        found.append(
            f"options of config.model.{idle[0]} are changed but config.model.facenet is False; "
            "switch it on or leave them"
        )
    for label, section in config.losses.items():
        if section.weight and not model.jpm.enabled and tuple(section.get("on", ())) == LOCAL:
            found.append(
                f"config.losses.{label}.weight is {section.weight} but config.model.jpm.enabled is "
                "False, so that there are no local features; set the weight to 0 (and that of the "
                "global ones to 1)"
            )
        if section.weight and not model.facenet and section.term in facenet.TERMS:
            found.append(
                f"config.losses.{label}.weight is {section.weight} but config.model.facenet is "
                "False; switch it on or set the weight to 0"
            )
    return found


def sides(config: ml_collections.ConfigDict, spec: DataSpec) -> tuple[tuple[str, int], ...]:
    """(label, number of its values) of what SIE is to know. Raises UserError for unknown ones."""
    found = []
    for name in ("camera", "view"):
        count = spec.labels.get(name, 0)
        if config[name] and count < 2:
            raise UserError(
                f"config.model.sie.{name} is True, but the training samples have {count} known "
                f"values of {name}; set --config.model.sie.{name}=False."
            )
        if config[name]:
            found.append((name, count))
    return tuple(found)


def network(config: ml_collections.ConfigDict, spec: DataSpec) -> functools.partial:
    """The network of the section `model`, but for the fields of the baseline.

    Raises UserError for side information that the data do not have, and for `config.facenet` on
    other modalities than visible, near-infrared and thermal.
    """
    jpm = config.jpm.to_dict()
    fields = {
        "sides": sides(config.sie, spec),
        "coefficient": config.sie.coefficient,
        "jpm": jpm if jpm.pop("enabled") else None,
    }
    if not config.facenet:
        return functools.partial(TransReID, **fields)
    facenet.check_modalities(spec)
    return functools.partial(FlareAware, **fields, **facenet.fields(config))


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """TransReID with one branch for each modality of the data; see `network` for its errors."""
    parts = config.jpm.parts if config.jpm.enabled else 0
    names = ["_global", *(f"_local_{i + 1}" for i in range(parts))]
    per_modality = [f"{part}{name}" for part in ("neck", "classifier") for name in names]
    fill = {"last_local": "head"} if parts else {}
    per_modality += list(fill) + ([] if config.shared_trunk else ["side"])
    kept = ("neck_", "classifier_", "side/")
    if config.facenet:
        fill, kept = fill | facenet.fill(config), kept + facenet.KEPT
    model = three_stream.streams(
        config, spec, network(config, spec), per_modality=per_modality, fill=fill, kept=kept
    )
    return dataclasses.replace(model, mixes=facenet.mixes(config) if config.facenet else ())
