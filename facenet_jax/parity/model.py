"""How far our code is from the authors' release, quantity by quantity: what check_parity.py prints.

A golden directory holds what the release computed (shared golden/README.md). `model_rows` loads its
checkpoint through our reader and runs our model, losses and training step on its images;
`facenet_jax.parity_parts` compares the parts that need no FACENet. Both give rows.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from data_tfds.errors import UserError
from data_tfds.samples import BANDS
from facenet_jax import losses, models, optim
from facenet_jax.inputs.augment import normalise
from facenet_jax.models.vit import LastBlock, stacked
from facenet_jax.step import Resident, Schedule, State, loss_terms, make_chunk, used_losses
from facenet_jax.types import Batch, Outputs
from facenet_jax.weights import facenet_release as interop
from facenet_jax.weights.merge import flatten, read_checkpoint

ARRAYS = 2e-5  # of the largest reference value; arrays and losses
GRADIENT_NORMS = 1e-4  # relative, plus a hundredth of it times the largest norm
AFTER_STEPS = 3e-6  # losses and norms of the 5 steps: leaving out weight decay moves one by 6e-6
SHORT = ("r", "n", "t")


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity: errors, tolerance of the relative one, and what to think of it."""

    name: str
    absolute: float  # largest |difference|
    relative: float  # that over the largest |reference|, or as the quantity's tolerance has it
    tolerance: float
    status: str  # "ok" | "FAIL" | "absent"


def compared(name: str, ours: Any, reference: Any, tolerance: float) -> Row:
    """The row of an array or a number."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if ours.shape != reference.shape:
        return Row(f"{name} {ours.shape} {reference.shape}", np.inf, np.inf, tolerance, "FAIL")
    absolute = float(np.abs(ours - reference).max(initial=0.0))
    largest = float(np.abs(reference).max(initial=0.0))
    relative = absolute / largest if largest else absolute
    return Row(name, absolute, relative, tolerance, verdict(relative, tolerance))


def verdict(error: float, tolerance: float) -> str:
    """ "ok" or "FAIL"; a NaN fails."""
    return "ok" if error <= tolerance else "FAIL"


def absent(name: str) -> Row:
    """The row of something that the directory does not have."""
    return Row(name, np.nan, np.nan, np.nan, "absent")


class Golden:
    """The directory's files."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def arrays(self, name: str) -> Mapping[str, np.ndarray] | None:
        """An .npz as a mapping, None where there is none."""
        path = self.folder / name
        return read_checkpoint(path) if path.exists() else None

    def json(self, name: str) -> Any:
        """The content of a .json file, None where there is none."""
        path = self.folder / name
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); fetch it again") from error

    def needed(self, name: str) -> Any:
        """The content of a file without which there is nothing to compare."""
        content = self.json(name) if name.endswith(".json") else self.arrays(name)
        if content is None:
            raise UserError(f"{self.folder} has no {name}; give a golden directory with --golden")
        return content


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
        self.labels = self.arrays["labels"].astype(np.int32)

    def build(self, config: ml_collections.ConfigDict) -> models.Model:
        """The model of `config` for the directory's image size and identities."""
        return models.build(config.model, config.data.image_size, self.sizes.identities)

    def batch(self, flare: np.ndarray) -> Batch:
        """The directory's images with flare labels [B] that R and N share."""
        nothing = jnp.zeros(len(self.labels), jnp.int32)
        delta = jnp.repeat(jnp.asarray(flare, bool)[:, None], 2, axis=1)
        images = normalise(jnp.asarray(self.images))
        return Batch(images, jnp.asarray(self.labels), nothing, nothing, delta)

    def evaluate(
        self,
        flare: np.ndarray,
        variables: Mapping[str, Any] | None = None,
        model: models.Model | None = None,
    ) -> Outputs:
        """Outputs of our model, or of an ablated one, on `batch(flare)`."""
        apply = jax.jit((model or self.model).apply, static_argnames=("train",))
        return apply(variables or self.variables, self.batch(flare), train=False)[0]


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
        for band, value in zip(SHORT, ours, strict=False):
            yield compared(f"{kind}_{band}", value, z[f"{kind}_{band}"], ARRAYS)
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
    config, batch = twin.config, twin.batch(twin.arrays["flare"])
    variables = {**twin.variables, "params": params}
    outputs, _ = twin.model.apply(variables, batch, train=True, key=jax.random.key(0))
    extras, values = outputs.extras, {}
    marked = jnp.concatenate([extras["trunk"][:2, :, :1], extras["mfmp"]], axis=2)
    head = {name: params["flare_head"][name] for name in ("block", "norm")}
    last = stacked(LastBlock, in_axes=(0, None))(twin.meta["heads"], 0.0, jnp.float32, "xla")
    tokens = last.apply({"params": head}, marked, False)
    for i, (short, band) in enumerate(zip(SHORT, BANDS, strict=True)):
        logits, features = outputs.logits[band], outputs.features[band]
        values |= {f"train_logits_{short}": logits, f"train_feat_{short}": features}
        if i < len(tokens):
            values[f"train_flare_token_{short}"] = tokens[i]
            values[f"train_flare_logits_{short}"] = extras["flare_logits"][i]
        identity = losses.cross_entropy(logits, batch.identity)
        triplet = losses.batch_hard_triplet(features, batch.identity)
        values |= {f"loss_id_{short}": identity, f"loss_total_{short}": identity + triplet}
    terms = loss_terms(outputs, batch, used_losses(config), config.loss_options)
    total = sum(config.losses[name] * value for name, value in terms.items())
    values |= {"loss_kl": terms["mask_kl"], "loss_mc": terms["mc"], "loss_total": total}
    return total, values


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
    z, config = twin.arrays, twin.config
    steps = len(z["sgd_losses"])
    rates = optim.rate_table(config.optim, np.arange(1, steps + 1), config.train.epochs)
    yield compared("sgd_lrs", rates[:, 0], z["sgd_lrs"], ARRAYS)
    config.train.steps_per_dispatch = steps
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    descent = optim.optimizer(config.optim)
    nothing = jnp.zeros(len(twin.labels), jnp.int32)
    flare = jnp.repeat(jnp.asarray(z["flare"], bool)[:, None], 2, axis=1)
    images = tuple(jnp.asarray(band) for band in twin.images)
    data = Resident(images, jnp.asarray(twin.labels), nothing, nothing, flare)
    rows = jnp.broadcast_to(jnp.arange(len(twin.labels)), (steps, *twin.images.shape[:2]))
    params = jax.tree.map(jnp.asarray, twin.variables["params"])
    collections = {"batch_stats": jax.tree.map(jnp.asarray, twin.variables["batch_stats"])}
    state = State(jnp.int32(0), params, collections, descent.init(params))
    chunk = make_chunk(twin.model, descent, config, mesh)
    state, scalars = chunk(state, data, Schedule(rows, jnp.asarray(rates)), np.int32(steps))
    yield compared("sgd_losses", scalars["loss"], z["sgd_losses"], AFTER_STEPS)

    after = {"params": state.params, **state.collections}
    yield from norm_rows(twin, after, golden.json("param_norms_after_5_steps.json"))
    embedding = twin.evaluate(z["flare"], after).embedding
    yield compared("embedding_after_5_steps", embedding, z["embedding_after_5_steps"], ARRAYS)


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
