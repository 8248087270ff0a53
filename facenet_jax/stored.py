"""The config and the data facts that are stored in a workdir; older configs are completed."""

import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from data_tfds.errors import UserError
from data_tfds.paths import Place, as_os_error
from facenet_jax import config as configs
from facenet_jax.config import DATA
from facenet_jax.options import defaults
from facenet_jax.runtime import data_record
from facenet_jax.runtime.workdir import flat, read_json
from facenet_jax.runtime.writers import write_json
from facenet_jax.types import DataSpec

RESUMABLE = (
    *("evaluate.batch", "evaluate.export", "evaluate.sanity_baselines", "evaluate.per_modality"),
    *("evaluate.rerank", "evaluate.expand", "evaluate.augment_gallery"),
    *("model.remat", "model.unroll"),
    "train.evaluate_every",
    "train.save_every",
    "train.shard_",
    "train.wandb_project",
    "train.writers",
    "data.root",
    "data.prepared",
    "data.changed",
    "data.max_pixels",
    "data.max_file_bytes",
    "data.resident",
    "data.max_memory_fraction",
    "data.workers",
)
"""Options that may change between the starts of one run: nothing learned depends on them."""

OF_MODEL = ("model.", "data.image_size")
"""Options that the checkpoints depend on, but for those of USED."""

USED = tuple(f"model.{x}" for x in ("attention", "dtype", "remat", "unroll"))
"""Options of the model that change its embeddings by rounding alone: evaluation may take others."""

OF_DATA = ("data.name", "data.root", "data.incomplete", "data.test_resize", "data.flare_")
"""Options that decide what is scored."""


def read_config(workdir: Place) -> ml_collections.ConfigDict:
    """The config that a run was started with; options that it lacks are added at their defaults."""
    return read_completed(workdir)[0]


def log_added(workdir: Place) -> None:
    """One log line that names the options which the stored config lacks, if there are any."""
    added = read_completed(workdir)[1]
    if added:
        logging.info(
            "The config in %s is older than this program; added at their defaults: %s.",
            workdir,
            ", ".join(added),
        )


def read_completed(workdir: Place) -> tuple[ml_collections.ConfigDict, list[str]]:
    """(the stored config, the names of the options that were added to it)."""
    values = read_json(workdir / "config.json", workdir)
    try:
        values = upgrade(values)
        config = configs.as_config(values)
        added = complete(config)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{workdir / 'config.json'} is no config of this program ({error}); is {workdir} a "
            "workdir?"
        ) from error
    return config, added


def complete(config: ml_collections.ConfigDict) -> list[str]:
    """Add the options that a config lacks, at their defaults; their names."""
    added = []

    def fill(section: ml_collections.ConfigDict, values: Mapping[str, Any], path: str) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping) and name in section:
                fill(section[name], value, f"{path}{name}.")
            elif name not in section:
                section[name] = configs.as_config(value) if isinstance(value, Mapping) else value
                added.append(path + name)

    with config.unlocked():
        fill(config, defaults(configs.schema(config)), "")
        configs.loosen(config)
    return added


RENAMED = {
    "augment.draw": ("augment.per_modality", lambda x: x == "independent"),
    "optim.bias_rate": ("optim.bias_lr_factor", float),
    "evaluate.floors": ("evaluate.sanity_baselines", bool),
    "evaluate.breakdown": ("evaluate.per_modality", bool),
    "data.resident_share": ("data.max_memory_fraction", float),
}
"""Options of version 0.1.0: {old: (new, value in terms of the new one)}."""


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config.json in today's names; earlier versions had others."""
    values = json.loads(json.dumps(values))
    if type(values["train"].get("shard_state")) is bool:
        values["train"]["shard_state"] = "always" if values["train"]["shard_state"] else "never"
    if "loss_options" not in values:  # version 0.1.0
        return values
    for old, (new, convert) in RENAMED.items():
        section, name = old.split(".")
        into, renamed = new.split(".")
        if name in values[section]:
            values[into][renamed] = convert(values[section].pop(name))
    options = values.pop("loss_options")
    reduction = {"reduction": options["kl_reduction"]}
    parameters = {
        "id": {"label_smoothing": options["label_smoothing"]},
        "triplet": {"margin": options["margin"]},
        "mask_kl": reduction,
        "mc": reduction,
    }
    values["losses"] = {
        label: {"term": label, "weight": weight, **parameters.get(label, {})}
        for label, weight in values["losses"].items()
    }
    values["model"].pop("identities")
    return values


def refuse_other_run(workdir: Place, config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the training to be resumed had another config."""
    refuse_clashes(
        workdir, config, lambda name: not name.startswith(RESUMABLE), "Choose another --workdir"
    )


def claim(workdir: Place, config: ml_collections.ConfigDict, spec: DataSpec) -> None:
    """Write config.json and spec.json; see `refuse_other_run` for a run to be resumed.

    Before the first checkpoint any config may be written: a failed attempt can be corrected. That
    other files were accepted holds for one start and is not written.
    """
    values = config.to_dict()
    values["data"]["changed"] = DATA["changed"].default
    write_json(workdir / "config.json", values)
    write_json(workdir / "spec.json", as_json(spec))


def refuse_clashes(workdir: Place, config: ml_collections.ConfigDict, matters, advice: str) -> None:
    """Raises UserError for options that `matters` and differ from the stored ones, naming both."""
    before, now = (flat(c.to_dict()) for c in (read_config(workdir), config))
    clashes = [
        f"config.{name} was {before.get(name, 'absent')!r} and is {now.get(name, 'absent')!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and matters(name)
    ]
    if clashes:
        raise UserError(
            f"The workdir {workdir} belongs to a run with another config: {'; '.join(clashes)}. "
            f"{advice}, or give the old values."
        )


def results_folder(workdir: Place, config: ml_collections.ConfigDict) -> Place:
    """Where results of `config` on a trained workdir go: the workdir, or a folder for other data.

    Raises UserError where the model is not the stored one, and where that folder has the results of
    further data.
    """
    refuse_clashes(
        workdir,
        config,
        lambda name: name.startswith(OF_MODEL) and name not in USED,
        "Choose the --workdir of this model",
    )
    before, now = (flat(c.to_dict()) for c in (read_config(workdir), config))
    if all(before[name] == now.get(name) for name in before if name.startswith(OF_DATA)):
        return workdir
    words = f"{config.data.name} {config.data.root.rstrip('/').rpartition('/')[2]}".strip()
    folder = workdir / "other_data" / re.sub(r"[^\w.]+", "-", words)
    if (folder / "config.json").exists():  # two roots may end in the same name
        refuse_clashes(
            folder, config, lambda name: name.startswith(OF_DATA), "Move this folder away"
        )
    return folder


def log_used(workdir: Place, config: ml_collections.ConfigDict) -> None:
    """One log line for each option of the model that is used otherwise than in training."""
    before, now = (flat(c.to_dict()) for c in (read_config(workdir), config))
    for name in USED:
        if before.get(name) != now.get(name):
            logging.info("config.%s is %s; in training it was %s.", name, now[name], before[name])


def same_scores(workdir: Place, config: ml_collections.ConfigDict) -> bool:
    """Whether what training scored, with the stored config, was scored as `config` says."""
    before, now = (flat(c.to_dict()) for c in (read_config(workdir), config))
    rule = (f"evaluate.{name}" for name in ("centre", "complete", "flare_weight"))
    names = (*rule, "model.attention", "model.dtype")
    return all(before.get(name) == now.get(name) for name in names)


def moved(workdir: Place, config: ml_collections.ConfigDict, digests: Mapping[str, str]) -> bool:
    """Whether the data are those that the workdir was scored on, at another place."""
    before, now = (flat(c.to_dict()) for c in (read_config(workdir), config))
    names = [name for name in before if name.startswith(OF_DATA) and name != "data.root"]
    if any(before[name] != now.get(name) for name in names):
        return False
    known = data_record.read(workdir)["digests"]
    return bool(digests) and all(known.get(name) == digests[name] for name in digests)


def as_json(spec: DataSpec) -> dict[str, Any]:
    """The fields of a specification."""
    return {
        "modalities": list(spec.modalities),
        "image_size": list(spec.image_size),
        "identities": spec.identities,
        "labels": dict(spec.labels),
    }


def read_spec(workdir: Place) -> DataSpec:
    """What the model of a workdir was trained on."""
    path = workdir / "spec.json"
    with as_os_error(path):
        known = path.exists()
    if not known:  # version 0.1.0 kept the number of identities in the config
        old = read_json(workdir / "config.json", workdir)
        if "identities" not in old.get("model", {}):
            raise UserError(f"{path} is missing; it says what the model was trained on.")
        modalities = ("visible", "near_infrared", "thermal")
        size, identities = tuple(old["data"]["image_size"]), old["model"]["identities"]
        return DataSpec(modalities, size, identities)
    values = read_json(path, workdir)
    try:
        return DataSpec(
            tuple(values["modalities"]),
            tuple(values["image_size"]),
            values["identities"],
            values["labels"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks {error}; is {workdir} a workdir?") from error
