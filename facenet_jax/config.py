"""Every common option once, with its unit and its legal values; and the one check of a config.

A config has the sections below (the options of `augment` and `sampler` are in inputs/), `model`
(the options of the model that `model.name` names) and `losses` (one section for each loss).
On the command line: --config.section.option=value.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from data_tfds.errors import UserError
from data_tfds.limits import PILLOW_MOST_PIXELS, Limits
from facenet_jax import losses, models
from facenet_jax.inputs import augment
from facenet_jax.inputs import sampler as samplers
from facenet_jax.options import (
    Option,
    Options,
    above,
    absent_or,
    at_least,
    between,
    flat,
    numbers,
    one_of,
    options_of,
    pair,
    problems,
    rising,
    schedule,
    some_text,
    switch,
    text,
    whole,
)
from facenet_jax.options import defaults as default_values

FILTERS = ("bicubic", "bilinear", "lanczos")
WRITERS = [a + b for a in ("tensorboard", "wandb", "tensorboard,wandb") for b in ("", ",images")]
CHOICE = one_of("auto", "always", "never")

DATA: Options = {
    "name": Option(
        "wmveid863",
        "wmveid863, rgbnt100, msvr310, rgbnt201, sysu_mm01, regdb, rendered or folder/PROTOCOL, "
        "with or without its protocol (wmveid863/clean); or the import path of your own",
        some_text(),
    ),
    "root": Option("", "the extracted folder, the .zip (also gs://), or a .csv (folder)", text()),
    "prepared": Option(
        "data/prepared", "prepared data sets, each under a fingerprint of its source", some_text()
    ),
    "image_size": Option((256, 128), "height, width in pixels", numbers(2, whole(1))),
    "train_resize": Option("bicubic", "filter of training images", one_of(*FILTERS)),
    "test_resize": Option("bicubic", "filter of test images", one_of(*FILTERS)),
    "validation_identities": Option(
        0, "training identities left out of training, to choose the best checkpoint", whole(0)
    ),
    "incomplete": Option(
        "error",
        "a sample that lacks a modality is an error, left out, or kept and marked; where no two "
        "images belong together each is a sample of its own and lacks nothing",
        one_of("error", "skip", "keep"),
    ),
    "max_pixels": Option(
        Limits.pixels, "of an image; a larger one is refused unread", whole(1, PILLOW_MOST_PIXELS)
    ),
    "max_file_bytes": Option(Limits.file_bytes, "of a file; a larger is refused", whole(1)),
    "changed": Option(
        "error",
        "files other than those that a workdir was trained and scored on are an error, or accepted "
        "for one start",
        one_of("error", "accept"),
    ),
    "resident": Option(
        "auto", "images in device memory, or streamed from disk; auto: while they fit", CHOICE
    ),
    "max_memory_fraction": Option(
        0.5, "of a device's memory, for the images of training and evaluation", above(0, 1)
    ),
    "workers": Option(0, "processes that read a stream; 0: threads of the main one", whole(0, 256)),
    "flare_statistic": Option(
        "luma",
        "luma: share of pixels with a grey value of 251..255 | histogram: the release's",
        one_of("luma", "histogram"),
    ),
    "flare_threshold": Option(0.05, "a fraction of the image", between(0, 1)),
    "flare_rule": Option(
        "per_modality",
        "a label for each modality, or one for both where either or both are flared",
        one_of("per_modality", "either", "both"),
    ),
    "flare_removal": Option(
        "none",
        "set saturated pixels (251..255) of visible and near-infrared images to 0 before the "
        "resize, in training and test: where their luma, any channel or all channels are "
        "(FACENet's Table 4)",
        one_of("none", "luma", "any", "all"),
    ),
}

TRAIN: Options = {
    "identities_per_batch": Option(8, "P", whole(1)),
    "samples_per_identity": Option(4, "K", whole(1)),
    "epochs": Option(120, "the length of the run, where steps is 0", whole(1)),
    "steps": Option(0, "the length of the run in steps instead of epochs; 0: epochs", whole(0)),
    "steps_per_dispatch": Option(20, "steps in one call of the device", whole(1, 100_000)),
    "shard_state": Option(
        "auto", "divide parameters and optimiser over devices (FSDP); auto: over TPUs", CHOICE
    ),
    "shard_above": Option(65536, "elements; smaller arrays are not divided", whole(0)),
    "evaluate_every": Option(5, "epochs; 0: at the end only", whole(0)),
    "save_every": Option(5, "epochs; 0: at the end only", whole(0)),
    "save_every_steps": Option(0, "steps, besides save_every; 0: not", whole(0)),
    "writers": Option(
        "tensorboard", "of scalars; images: ranked lists (.[report])", one_of(*WRITERS, "none")
    ),
    "wandb_project": Option("facenet_jax", "where wandb shows the run", some_text()),
}

OPTIM: Options = {
    "name": Option("sgd", "the optimiser", one_of("sgd", "adam", "adamw")),
    "learning_rate": Option(3e-3, "the peak", above(0)),
    "schedule": Option(
        "recipe",
        "recipe: of each epoch, the release's | cosine: of each step, to 0 | multistep: of each "
        "epoch, times gamma from each of the milestones on",
        one_of("recipe", "cosine", "multistep"),
    ),
    "milestones": Option((), "epochs, multistep", rising(at_least(0))),
    "gamma": Option(0.1, "multistep", between(0, 1)),
    "warmup": Option(5.0, "epochs", at_least(0)),
    "warmup_start": Option(0.01, "recipe, multistep: first rate, of the full one", between(0, 1)),
    "floor": Option(0.002, "recipe: the last rate, of the full one", between(0, 1)),
    "warmup_each": Option("epoch", "multistep: when it rises", one_of("epoch", "step")),
    "weight_decay": Option(1e-4, "times the parameter", at_least(0)),
    "bias_lr_factor": Option(2.0, "learning rate of biases relative to the others", at_least(0)),
    "momentum": Option(0.9, "sgd", between(0, 1)),
    "nesterov": Option(False, "sgd: Nesterov's momentum", switch()),
    "betas": Option((0.9, 0.999), "adam, adamw", numbers(2, between(0, 1))),
    "clip": Option(0.0, "largest global norm of the gradient; 0: no limit", at_least(0)),
}

MEANS = absent_or(pair(whole(1), at_least(0)))

EVALUATE: Options = {
    "batch": Option(0, "samples in a call; 0: 64 on each device", whole(0)),
    "export": Option("last", "checkpoint whose embeddings are exported", one_of("last", "best")),
    "centre": Option(False, "match embeddings less the mean of the gallery", switch()),
    "flare_weight": Option(
        1.0, "what flared modalities count; below 1 each part has unit length", above(0, 1)
    ),
    "complete": Option(
        (), "neighbours, alpha: blinded parts come from similar gallery rows", MEANS
    ),
    "expand": Option(
        (), "neighbours, alpha of query expansion (alpha 0: AQE), scored as refined", MEANS
    ),
    "augment_gallery": Option((), "neighbours, alpha of database augmentation, likewise", MEANS),
    "rerank": Option(
        (), "k1, k2, lambda of re-ranking, too; (20, 6, 0.3)", absent_or(numbers(3, at_least(0)))
    ),
    "sanity_baselines": Option(
        False, "also score the untrained network, raw pixels and colours", switch()
    ),
    "per_modality": Option(
        False, "also score subsets of the modalities, and flared and clean queries apart", switch()
    ),
}

SECTIONS: Mapping[str, Option | Options] = {
    "seed": Option(0, "of the parameters, the order and the augmentation", whole(0, 2**32 - 1)),
    "data": DATA,
    "augment": augment.OPTIONS,
    "sampler": samplers.OPTIONS,
    "train": TRAIN,
    "optim": OPTIM,
    "evaluate": EVALUATE,
}

TERM: Options = {
    "term": Option("id", "a term of the model or of ours, or an import path", some_text()),
    "weight": Option(1.0, "a number, or ((progress, weight), ...)", schedule()),
}


def default_config(model: str, **choices: str) -> ml_collections.ConfigDict:
    """The common options, those of a model and its losses, all at their defaults.

    `choices` are options of the model that decide which further options it has, such as
    backbone="vit".
    """
    config = as_config(default_values(SECTIONS))
    config.model = as_config(
        {"name": model, **default_values(models.options(model, choices)), **choices}
    )
    config.losses = ml_collections.ConfigDict()
    for label, values in models.default_losses(model).items():
        config.losses[label] = loss(model, **values)
    return config


def loss(model: str, term: str, weight: float | Sequence = 1.0, **parameters: Any) -> Any:
    """A section of `config.losses`: the term's parameters at their defaults, but for these."""
    known = options_of(losses.find(term, models.own_terms(model)))
    values = {"term": term, "weight": weight, **default_values(known), **parameters}
    section = as_config({name: value for name, value in values.items() if name != "weight"})
    # A reference takes a table where a number was; a plain field keeps to its type.
    section.weight = ml_collections.FieldReference(weight, field_type=object)
    return section


def sampler(name: str, **parameters: Any) -> ml_collections.ConfigDict:
    """The section `config.sampler`: the sampler's parameters at their defaults, but for these."""
    return as_config(
        {"name": name, **default_values(options_of(samplers.find(name))), **parameters}
    )


def as_config(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A ConfigDict of nested mappings; lists become tuples, as options have them."""
    config = ml_collections.ConfigDict()
    for name, value in values.items():
        if isinstance(value, Mapping):
            config[name] = as_config(value)
        elif isinstance(value, list):
            config[name] = tuple(tuple(x) if isinstance(x, list) else x for x in value)
        else:
            config[name] = value
    return config


def schema(config: ml_collections.ConfigDict) -> Options:
    """The options that a config with these names (model, backbone, losses) has.

    Raises UserError for a model or a loss that cannot be found.
    """
    terms = {label: term_options(config, label) for label in config.losses}
    return {
        **SECTIONS,
        "model": model_options(config),
        "sampler": sampler_options(config),
        "losses": terms,
    }


def model_options(config: ml_collections.ConfigDict) -> Options:
    """The options of the section `model`."""
    model = config.model.to_dict()
    name = Option(model["name"], "the model", some_text())
    return {"name": name, **models.options(model["name"], model)}


def sampler_options(config: ml_collections.ConfigDict) -> Options:
    """The options of the section `sampler`."""
    name = config.sampler.name if "sampler" in config else samplers.OPTIONS["name"].default
    return samplers.OPTIONS | options_of(samplers.find(name))


def term_options(config: ml_collections.ConfigDict, label: str) -> Options:
    """The options of one loss."""
    section, where = config.losses[label], f"config.losses.{label}.term"
    if not isinstance(section, ml_collections.ConfigDict) or "term" not in section:
        return TERM
    return TERM | options_of(losses.find(section.term, models.own_terms(config.model.name), where))


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that are not legal, naming all of them; loads nothing."""
    for name in ("model", "losses", "sampler"):
        section = config.get(name) if isinstance(config, ml_collections.ConfigDict) else None
        if not isinstance(section, ml_collections.ConfigDict):
            raise UserError(f"The config has no section '{name}'; start from configs/common.py.")
    for name in ("model", "sampler"):
        if not isinstance(config[name].get("name"), str):
            raise UserError(f"config.{name}.name is missing; it names the {name}.")
    options = model_options(config)
    foreign = sorted(set(config.model) - set(options))
    if foreign:
        name = config.model.name
        raise UserError(
            f"config.model.name is '{name}', which has no option "
            f"{', '.join(map(repr, foreign))}; another model has its own options and losses, so "
            f"start its config with common.get_config('{name}')."
        )
    found, terms, values = [], {}, config.to_dict()
    for label in config.losses:
        try:
            terms[label] = term_options(config, label)
        except UserError as error:
            found.append(str(error).removesuffix("."))
            del values["losses"][label]
    options = {**SECTIONS, "model": options, "sampler": sampler_options(config), "losses": terms}
    found = problems(options, values, "config") + found
    if not found and not any(section.weight for section in config.losses.values()):
        found.append("every weight in config.losses is 0, so there is nothing to learn")
    used = [x for x in ("complete", "expand", "augment_gallery", "rerank") if config.evaluate[x]]
    if not found and used and config.evaluate.flare_weight < 1:
        found.append(f"config.evaluate.{used[0]} does not know evaluate.flare_weight; take one")
    if not found and config.augment.flare and config.data.flare_rule != "per_modality":
        found.append(
            f"config.augment.flare labels each modality by itself, config.data.flare_rule is "
            f"{config.data.flare_rule!r}; set it to 'per_modality' or augment.flare to 0"
        )
    found = found or losses.problems(config.losses, config.train) or models.problems(config)
    if found:
        raise UserError(f"{'; '.join(found)}. facenet train --help lists all options.")


def loosen(config: ml_collections.ConfigDict) -> None:
    """Let the weight of every loss take a table where it is a number; see `loss`."""
    for section in config.losses.values():
        weight = section.weight
        del section["weight"]
        section.weight = ml_collections.FieldReference(weight, field_type=object)


def describe(config: ml_collections.ConfigDict) -> list[tuple[str, Any, Option]]:
    """(name, value, option) of every option of a config, in the order of the sections."""
    values = config.to_dict()

    def value(path: str) -> Any:
        found = values
        for part in path.split("."):
            found = found[part]
        return found

    return [(path, value(path), option) for path, option in flat(schema(config)).items()]
