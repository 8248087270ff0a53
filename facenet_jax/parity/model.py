"""How far our code is from the authors' release, quantity by quantity: what check_parity.py prints.

A golden directory holds what the release computed, as in tests/golden/tiny. `model_rows` loads its
checkpoint through our reader and runs our model, losses and training step on its images; `parts`
compares what needs no FACENet. Both give rows.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from data_tfds.arrays import split_of
from data_tfds.errors import UserError
from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE, Protocol
from facenet_jax import models, objective, step
from facenet_jax.inputs.augment import normalise
from facenet_jax.inputs.dataset import Dataset
from facenet_jax.inputs.sampler import Plan
from facenet_jax.losses import identity
from facenet_jax.models.layers import plain_block, plain_layer_norm
from facenet_jax.parity.rows import ARRAYS, Golden, Row, absent, compared, verdict
from facenet_jax.run import Run, assemble, compile_step, training_images
from facenet_jax.runtime.mesh import replicate
from facenet_jax.types import Batch, DataSpec, Outputs
from facenet_jax.weights import facenet_release as interop
from facenet_jax.weights.merge import flatten

GRADIENT_NORMS = 1e-4  # relative, plus a hundredth of it times the largest norm
AFTER_STEPS = 3e-6  # losses and norms of the 5 steps: leaving out weight decay moves one by 6e-6
SHORT = {"r": VISIBLE, "n": NEAR_INFRARED, "t": THERMAL}
"""The release's names of the modalities."""


def recipe_named(recipes: Mapping[str, Any], name: str) -> Any:
    """The recipe that `meta.json` names; raises UserError where there is no such recipe."""
    if name not in recipes:
        raise UserError(f"meta.json names the recipe {name!r}; known are {', '.join(recipes)}")
    return recipes[name]


def official_config(
    meta: Mapping[str, Any], recipes: Mapping[str, ml_collections.ConfigDict]
) -> ml_collections.ConfigDict:
    """The `official` config of the directory's recipe, at its widths and without random parts."""
    c = ml_collections.ConfigDict(recipe_named(recipes, meta["recipe"]).to_dict())
    m = c.model
    m.variant, m.width, m.depth, m.heads = "", meta["width"], meta["depth"], meta["heads"]
    m.patch, m.dtype, m.drop_path = meta["patch"], "float32", 0.0
    m.mfmp.heads, m.mfmp.head_width = meta["mfmp_heads"], meta["mfmp_head_width"]
    m.mfmp.dropout = 0.0
    c.augment.flip, c.augment.pad, c.augment.erase = 0.0, 0, 0.0
    c.data.image_size = tuple(meta["image"])
    return c


class Twin:
    """Our FACENet with the directory's weights, and its images as a batch."""

    def __init__(self, golden: Golden, recipes: Mapping[str, ml_collections.ConfigDict]):
        self.meta = golden.needed("meta.json")
        self.arrays = golden.needed("facenet_official_small.npz")
        self.file = golden.needed("facenet_official_small.pth")
        source = str(golden.folder / "facenet_official_small.pth")
        self.variables, self.sizes = interop.import_release(self.file, source)
        self.config = official_config(self.meta, recipes)
        self.config.model.fce.mask_bias = -self.sizes.threshold
        self.model = self.build(self.config)
        self.images = self.arrays["images"].transpose(1, 0, 2, 3, 4)  # [M, B, H, W, 3]
        self.identity = self.arrays["labels"].astype(np.int32)

    @property
    def spec(self) -> DataSpec:
        """What the checkpoint was trained on, as far as it tells."""
        size = tuple(self.config.data.image_size)
        return DataSpec(tuple(SHORT.values()), size, self.sizes.identities)

    def build(self, config: ml_collections.ConfigDict) -> models.Model:
        """The model of `config` for the directory's image size and identities."""
        return models.build(config.model, self.spec)

    def flare(self, delta: np.ndarray) -> np.ndarray:
        """Flare labels [B] that R and N share as labels [M, B] of all modalities."""
        delta = np.asarray(delta, bool)
        return np.stack([delta, delta, np.zeros_like(delta)])

    def batch(self, delta: np.ndarray) -> Batch:
        """The directory's images with flare labels [B] that R and N share."""
        labels = {"flare": jnp.asarray(self.flare(delta))}
        return Batch(normalise(jnp.asarray(self.images)), jnp.asarray(self.identity), labels)

    def evaluate(
        self,
        delta: np.ndarray,
        variables: Mapping[str, Any] | None = None,
        model: models.Model | None = None,
    ) -> Outputs:
        """Outputs of our model, or of an ablated one, on `batch(delta)`."""
        model, batch = model or self.model, self.batch(delta)
        images = jnp.asarray(self.images)
        outputs = jax.jit(step.outputs, static_argnums=(0, 4))
        return outputs(
            model, variables or self.variables, images, batch, tuple(model.spec.modalities)
        )


def model_rows(golden: Golden, recipes: Mapping[str, ml_collections.ConfigDict]) -> Iterator[Row]:
    """Rows of everything that the release's network computed in this directory."""
    twin = Twin(golden, recipes)
    for rows in (forward_rows, training_rows, step_rows):
        yield from rows(twin, golden)


def forward_rows(twin: Twin, golden: Golden) -> Iterator[Row]:
    """Tokens, MFMP, FCE and embeddings in evaluation mode, with the ablations."""
    z = twin.arrays
    flares = {"none": np.zeros_like(z["flare"]), "mixed": z["flare"], "all": 0 * z["flare"] + 1}
    outputs = {name: twin.evaluate(flare) for name, flare in flares.items()}
    shown = len(z["tokens_before_last_block_r"])
    extras = {name: np.asarray(array)[:, :shown] for name, array in outputs["all"].extras.items()}
    masks = np.concatenate([extras["trunk"][:2, :, :1], extras["mfmp"]], axis=2)
    tokens = {"tokens_before_last_block": extras["trunk"], "mfmp": masks, "fce": extras["fce"]}
    for kind, ours in tokens.items():
        for short, value in zip(SHORT, ours, strict=False):
            yield compared(f"{kind}_{short}", value, z[f"{kind}_{short}"], ARRAYS)
    for name, output in outputs.items():
        label = f"embedding_flare_{name}"
        yield compared(label, output.embedding, z[label], ARRAYS)
    for name, fce in (("baseline", False), ("fce_only", True)):
        config = twin.config.copy_and_resolve_references()
        config.model.mfmp.enabled = config.model.flare_heads = False
        config.model.fce.enabled = fce
        output = twin.evaluate(flares["all"], model=twin.build(config))
        yield compared(f"embedding_{name}", output.embedding, z[f"embedding_{name}"], ARRAYS)


def training_rows(twin: Twin, golden: Golden) -> Iterator[Row]:
    """Outputs in training mode, every loss term, and the gradient of their sum."""
    compute = jax.jit(jax.value_and_grad(lambda p: training_values(twin, p), has_aux=True))
    (_, values), gradients = compute(twin.variables["params"])
    for name, value in values.items():
        yield compared(name, value, twin.arrays[name], ARRAYS)
    yield from gradient_rows(twin, gradients, golden.json("grad_norms.json"))


def training_values(twin: Twin, params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(total loss, {the reference's name: our value}) in training mode."""
    batch = twin.batch(twin.arrays["flare"])
    variables = {**twin.variables, "params": params}
    outputs, _ = twin.model.apply(variables, batch, train=True, key=jax.random.key(0))
    values = {}
    tokens = flare_tokens(twin, params, outputs)
    for i, (short, modality) in enumerate(SHORT.items()):
        logits, features = outputs.logits[modality], outputs.features[modality]
        values |= {f"train_logits_{short}": logits, f"train_feat_{short}": features}
        if i < len(tokens):
            values[f"train_flare_token_{short}"] = tokens[i]
            values[f"train_flare_logits_{short}"] = outputs.extras["flare_logits"][i]
        cross_entropy = identity.cross_entropy(logits, batch.identity)
        triplet = identity.batch_hard_triplet(features, batch.identity)
        values |= {
            f"loss_id_{short}": cross_entropy,
            f"loss_total_{short}": cross_entropy + triplet,
        }
    terms = objective.terms(twin.config)
    values["loss_kl"], values["loss_mc"] = (
        terms[label][1](outputs, batch) for label in ("mask_kl", "mc")
    )
    values["loss_total"], _ = objective.total(terms, outputs, batch, jnp.float32(0))
    return values["loss_total"], values


def flare_tokens(twin: Twin, params: Mapping[str, Any], outputs: Outputs) -> jax.Array:
    """Class tokens [2, B, D] that the flare heads' own last blocks give."""
    extras, head = outputs.extras, params["flare_head"]
    marked = jnp.concatenate([extras["trunk"][:2, :, :1], extras["mfmp"]], axis=2)

    def one(block, norm, tokens):
        last = plain_block(block, tokens, twin.meta["heads"], class_only=True)
        return plain_layer_norm(norm, last[:, 0])

    return jax.vmap(one)(head["block"], head["norm"], marked)


def in_release_names(twin: Twin, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{the release's name: our array} of every tensor of `variables` that the release has."""
    ours = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    rows = interop.used_rows(twin.sizes.depth)
    return {name: ours[path][index] for name, path, index, _ in rows if path in ours}


def norm(array: np.ndarray) -> float:
    """The Euclidean norm of all elements, in float64."""
    return float(np.linalg.norm(np.asarray(array, np.float64).ravel()))


def gradient_rows(
    twin: Twin, gradients: Any, reference: Mapping[str, float | None] | None
) -> Iterator[Row]:
    """The norm of the total loss's gradient for every parameter; null: there must be none."""
    if reference is None:
        yield absent("gradient norms")
        return
    ours = {k: norm(v) for k, v in in_release_names(twin, {"params": gradients}).items()}
    floor = 1e-2 * max(value for value in reference.values() if value is not None)
    for name, value in reference.items():
        label = f"gradient norm {name}"
        if value is None:  # we either have no such parameter or it must not move
            yield compared(label + " (none)", ours.get(name, 0.0), 0.0, 0.0)
        else:
            error = abs(ours.get(name, np.nan) - value)
            scaled = error / (value + floor)
            yield Row(label, error, scaled, GRADIENT_NORMS, verdict(scaled, GRADIENT_NORMS))
    for name in sorted(set(ours) - set(reference)):
        yield compared(f"gradient norm {name} (not in the reference)", ours[name], np.nan, 0.0)


def step_rows(twin: Twin, golden: Golden) -> Iterator[Row]:
    """Steps of our trainer on the repeated batch: losses, all norms, the embedding after them."""
    z = twin.arrays
    run = repeated(twin, len(z["sgd_losses"]))
    steps = len(run.plan.epoch)
    yield compared("sgd_lrs", run.rates[:, 0], z["sgd_lrs"], ARRAYS)
    data = training_images(run)
    # A run numbers the identities that there are; the classifier knows those of the release.
    data = dataclasses.replace(data, identity=replicate((twin.identity,) * len(SHORT), run.mesh))
    params, statistics = twin.variables["params"], twin.variables["batch_stats"]
    state = step.State(np.int32(0), params, {"batch_stats": statistics}, run.optimizer.init(params))
    state, scalars = compile_step(run, data)(replicate(state, run.mesh), data, steps)
    yield compared("sgd_losses", scalars["loss"], z["sgd_losses"], AFTER_STEPS)

    yield from norm_rows(twin, state.variables, golden.json("param_norms_after_5_steps.json"))
    embedding = twin.evaluate(z["flare"], state.variables).embedding
    yield compared("embedding_after_5_steps", embedding, z["embedding_after_5_steps"], ARRAYS)


def repeated(twin: Twin, steps: int) -> Run:
    """A run on one device that takes the directory's batch at every step, an epoch each."""
    images = dict(zip(SHORT.values(), twin.images, strict=True))
    split = split_of(images, twin.identity, flare=twin.flare(twin.arrays["flare"]).T)
    dataset = Dataset("golden", split.modalities, {"train": split}, Protocol("golden"))
    config = twin.config.copy_and_resolve_references()
    config.train.steps_per_dispatch = steps
    rows = np.broadcast_to(np.arange(len(twin.identity), dtype=np.int32), (steps, 3, len(split)))
    plan = Plan(rows, np.arange(1, steps + 1, dtype=np.int32))
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    return assemble(config, dataset, mesh=mesh, spec=twin.spec, plan=plan)


def norm_rows(
    twin: Twin, after: Mapping[str, Any], reference: Mapping[str, float] | None
) -> Iterator[Row]:
    """Norms after the steps; what our model has no use for must have kept the file's values."""
    if reference is None:
        yield absent("norms after the steps")
        return
    ours = twin.file | in_release_names(twin, after)
    for name, value in reference.items():
        yield compared(f"norm after the steps {name}", norm(ours[name]), value, AFTER_STEPS)
