"""What goes wrong in a stranger's code: each of these must end in one sentence."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np

from facenet_jax.inputs.sampler import Plan
from facenet_jax.models import Group
from facenet_jax.types import Outputs
from lab import samplers, two_streams

nothing = types.SimpleNamespace()
"""A model without build."""


def variant(**changes) -> types.SimpleNamespace:
    """The two-stream model with other fields of `Model`, each made from the right model."""

    def build(config, spec):
        model = two_streams.build(config, spec)
        return dataclasses.replace(model, **{name: f(model) for name, f in changes.items()})

    return types.SimpleNamespace(build=build, options=two_streams.options, TERMS=two_streams.TERMS)


def outputs(**changes) -> types.SimpleNamespace:
    """The two-stream model with other fields of `Outputs`, each made from the right ones."""

    def wrapped(model):
        def apply(*args, **keywords):
            found, changed = model.apply(*args, **keywords)
            new = {name: f(found) for name, f in changes.items()}
            return dataclasses.replace(found, **new), changed

        return apply

    return variant(apply=wrapped)


def collections(change) -> types.SimpleNamespace:
    """The two-stream model whose changed collections are `change` of the right ones."""

    def wrapped(model):
        def apply(*args, **keywords):
            found, changed = model.apply(*args, **keywords)
            return found, change(changed)

        return apply

    return variant(apply=wrapped)


no_model = types.SimpleNamespace(
    build=lambda config, spec: "a network", options=two_streams.options, TERMS=two_streams.TERMS
)
short_apply = variant(apply=lambda model: lambda variables, images: None)
only_outputs = variant(apply=lambda model: lambda *a, **k: model.apply(*a, **k)[0])
no_parts = outputs(parts=lambda found: {})
wide_part = outputs(parts=lambda found: {"all": (0, 99)})
flat_embedding = outputs(embedding=lambda found: found.embedding.sum(axis=-1))
odd_feature = outputs(features=lambda found: {"visible": jnp.zeros((3, 5))})
new_collection = collections(lambda changed: {**changed, "memory": jnp.zeros(3)})
moved_collection = collections(lambda changed: changed and {"batch_stats": {"neck": jnp.zeros(3)}})
other_load = variant(load=lambda model: lambda variables, path: ({"params": {}}, "report"))
empty_group = variant(groups=lambda model: {"head": Group("head/", 0.1)})


def positional(outputs: Outputs, batch, margin=0.3):
    """A term whose parameter is no keyword."""


def vector(outputs: Outputs, batch):
    """A term that gives many numbers."""
    return next(iter(outputs.logits.values())).sum(axis=-1)


def of_rows(change):
    """The sampler of this package with other rows."""

    def sampler(split, **options):
        plan = samplers.cross_modal(split, **options)
        return Plan(change(plan.rows), plan.epoch)

    return sampler


mixed = of_rows(lambda rows: np.stack([rows[:, 0], np.roll(rows[:, 1], 2, axis=-1)], axis=1))
beyond = of_rows(lambda rows: rows + 1000)
one_modality = of_rows(lambda rows: rows[:, :1])


def no_plan(split, **options):
    """A sampler that gives an array."""
    return np.zeros(3)


def few_arguments(split, seed):
    """A sampler that does not take what it is given."""


def no_split(data):
    """A data set that is none."""
    return {"train": None}
