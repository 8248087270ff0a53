"""Models behind one interface. This folder is the only one that imports Flax.

A model is a module: one of this folder, or yours by its import path. It has

    build(config.model, DataSpec) -> Model

and may have

    options(choices) -> Options         what config.model holds besides the name
    LOSSES    {label: {"term": ..., "weight": ..., parameters}}    the losses of its recipe
    TERMS     {name: function}                                     loss terms of its own
    problems(config) -> list of clauses                            what does not fit together
    NO_WEIGHTS   the error where a recipe needs weights and config.model.pretrained is ''; the
                 module of its backbone may have it instead
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from data_tfds import door
from data_tfds.errors import UserError
from data_tfds.paths import is_remote
from facenet_jax.models import backbones, contract
from facenet_jax.models.base import Group, Model, Variables, init_batch
from facenet_jax.options import Options
from facenet_jax.types import DataSpec

__all__ = [
    "Group",
    "Model",
    "Variables",
    "build",
    "default_losses",
    "find",
    "init_batch",
    "options",
    "own_terms",
]


WEIGHT_FILES = (".pth", ".pt", ".bin", ".npz", ".safetensors")
"""How names of files of weights end; other words in config.model.pretrained may mean anything."""


def find(name: str) -> Any:
    """The module of a model: "facenet", "three_stream", or the import path of your own."""
    return door.find(name, "facenet_jax.models", "model (config.model.name)", "build")


def options(name: str, choices: Mapping[str, Any]) -> Options:
    """The options of a model, which may depend on its other options `choices` (a backbone)."""
    module = find(name)
    return module.options(choices) if hasattr(module, "options") else {}


def default_losses(name: str) -> Mapping[str, Mapping[str, Any]]:
    """{label: {"term", "weight", parameters}} of a model's recipe."""
    return getattr(find(name), "LOSSES", {})


def own_terms(name: str) -> Mapping[str, Callable]:
    """The loss terms that a model defines, by name."""
    return getattr(find(name), "TERMS", {})


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together in a config, as found by its model, a clause each."""
    module = find(config.model.name)
    return module.problems(config) if hasattr(module, "problems") else []


def build(config: ml_collections.ConfigDict, spec: DataSpec) -> Model:
    """The model that the section `model` describes, for data like `spec`.

    Raises UserError where the model cannot serve such data.
    """
    if len(set(spec.modalities)) < len(spec.modalities) or not spec.modalities:
        raise UserError(f"A data set has the modalities {spec.modalities}; each must stand once.")
    return contract.check_model(find(config.name).build(config, spec), config.name)


def licence(config: ml_collections.ConfigDict) -> str:
    """What the licence of the pretrained weights of a section `model` asks; "": nothing more."""
    if config.get("pretrained", "none") in ("", "none") or "backbone" not in config:
        return ""
    return getattr(backbones.find(config.backbone), "LICENCE", "")


def check_start(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where a run of this config cannot begin: without weights, or their file."""
    pretrained = config.model.get("pretrained", "none")
    file = pathlib.Path(pretrained)
    if file.suffix in WEIGHT_FILES and not is_remote(pretrained) and not file.is_file():
        raise UserError(f"The weights {file} (config.model.pretrained) do not exist.", exit_code=2)
    if "pretrained" in config.model and not config.model.pretrained:
        module = find(config.model.name)
        if not hasattr(module, "NO_WEIGHTS") and "backbone" in config.model:
            module = backbones.find(config.model.backbone)
        default = "config.model.pretrained is not set; give a file, or 'none' for random weights"
        sentence = getattr(module, "NO_WEIGHTS", default)
        raise UserError(f"{sentence}.", exit_code=2)
