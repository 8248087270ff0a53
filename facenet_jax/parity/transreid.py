"""TransReID against the authors' release: the rows of a golden directory of that system."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.samples import VISIBLE
from facenet_jax.config import default_config
from facenet_jax.losses import identity
from facenet_jax.models import three_stream, transreid
from facenet_jax.parity.releases import FLOAT32, filled, norm_rows, pictures
from facenet_jax.parity.rows import Golden, Row, compared
from facenet_jax.types import Batch, DataSpec, Outputs
from facenet_jax.weights import transreid_release
from facenet_jax.weights.merge import flatten

NORMS = 1e-4  # of gradients, at least
SMALL = 1e-3  # gradients below that share of the largest may be off by more of themselves
NORM_ERROR = "grad_norms: largest relative error among norms above 1e-3 of the largest"


class Twin:
    """Our TransReID with the directory's weights, and its images as a batch."""

    def __init__(self, golden: Golden):
        self.meta, z = golden.needed("meta.json"), golden.needed("arrays.npz")
        self.reference = z
        shapes, meta = golden.json("state_dict_shapes.json"), self.meta
        state = filled(shapes, meta["seed"]) if shapes else golden.needed("weights.npz")
        variables, self.rows = transreid_release.import_release(state, str(golden.folder))
        self.variables = jax.tree.map(jnp.asarray, variables)
        model = default_config("transreid").model
        model.variant, model.drop_path = "", 0.0
        model.width, model.depth, model.heads = meta["width"], meta["depth"], meta["heads"]
        patch = state["base.patch_embed.proj.weight"].shape[-1]
        model.patch, (model.stride, _) = patch, meta["stride"]
        model.sie.camera, model.sie.view = meta["sie_camera"], meta["sie_view"]
        model.sie.coefficient = meta["sie_coe"]
        model.jpm.enabled, model.jpm.shuffle = meta["jpm"], meta["re_arrange"]
        model.jpm.parts, model.jpm.shift = meta["divide_length"], meta["shift_num"]
        model.jpm.interleave = meta["shuffle_groups"]
        labels = {"camera": meta["cameras"], "view": meta["views"]}
        spec = DataSpec((VISIBLE,), tuple(meta["image"]), meta["classes"], labels)
        self.nets = {}
        for model.neck_feature in ("before", "after"):
            network = transreid.network(model, spec)
            self.nets[model.neck_feature] = three_stream.assembled(model, spec, network)
        self.names = ["global", *(f"local_{i + 1}" for i in range(meta["divide_length"]))]
        self.names = self.names[: 1 + meta["divide_length"] * meta["jpm"]]
        given = {"camera": z["cam"][None], "view": z["view"][None]}
        self.batch = Batch(
            jnp.asarray(pictures(z["images"][:, None], meta)),
            jnp.asarray(z["labels"], jnp.int32),
            {name: jnp.asarray(label, jnp.int32) for name, label in given.items()},
        )

    def apply(
        self, neck_feature: str, train: bool, variables: Mapping[str, Any]
    ) -> tuple[Outputs, Mapping[str, Any]]:
        """(outputs, {"batch_stats", "intermediates": tokens of the trunk}) on the batch."""
        return self.nets[neck_feature].apply(
            variables,
            self.batch,
            (VISIBLE,),
            train,
            rngs={"dropout": jax.random.key(0)},
            mutable=["intermediates", *(["batch_stats"] if train else [])],
            capture_intermediates=lambda module, _: module.name == "trunk",
        )


def rows(golden: Golden) -> Iterator[Row]:
    """Rows of everything that the release's TransReID computed in this directory."""
    twin, errors = Twin(golden), golden.needed("float32_error.json")

    def tolerance(name: str) -> float:
        return max(FLOAT32[0], FLOAT32[1] * errors.get(name, 0.0))

    values = evaluated(twin)
    compute = jax.jit(jax.value_and_grad(functools.partial(trained, twin), has_aux=True))
    (_, (outputs, losses, changed)), gradients = compute(twin.variables["params"])
    for i, name in enumerate(twin.names):
        values[f"train_feat_{i}"] = outputs.features[f"{VISIBLE}_{name}"]
        values[f"train_logits_{i}"] = outputs.logits[f"{VISIBLE}_{name}"]
    for name in (n for n in twin.reference if n.startswith(("eval_", "train_"))):
        yield compared(name, values.get(name, np.nan), twin.reference[name], tolerance(name))
    for name, value in golden.needed("losses.json").items():
        yield compared(f"loss {name}", losses.get(name, np.nan), value, tolerance(name))
    ours = norms(twin, {"params": gradients})
    limit = max(NORMS, FLOAT32[1] * errors.get(NORM_ERROR, 0.0))
    yield from norm_rows(
        "gradient norm", ours, golden.needed("grad_norms.json"), limit, limit * SMALL
    )
    ours = norms(twin, {"batch_stats": changed})
    after = golden.needed("bn_norms_after_forward.json")
    yield from norm_rows("norm after the steps", ours, after, FLOAT32[0], 0.0)


def evaluated(twin: Twin) -> dict[str, jax.Array]:
    """What evaluation gives, by the release's names."""
    found = {}
    for name in twin.nets:
        outputs, kept = jax.jit(functools.partial(twin.apply, name, False))(twin.variables)
        found[f"eval_embedding_{name}"] = outputs.embedding
    (tokens,) = kept["intermediates"]["trunk"]["__call__"]
    return found | {"eval_trunk_tokens_sample0": tokens[0, 0]}


def trained(twin: Twin, params: Any) -> tuple[jax.Array, tuple[Outputs, dict, Any]]:
    """(total loss with the soft triplet, (outputs, losses by the release's names, statistics))."""
    outputs, changed = twin.apply("before", True, {**twin.variables, "params": params})
    labels, losses = twin.batch.identity, {}
    for i, name in enumerate(f"{VISIBLE}_{name}" for name in twin.names):
        feature = outputs.features[name]
        losses[f"ce_{i}"] = identity.cross_entropy(outputs.logits[name], labels)
        losses[f"soft_triplet_{i}"] = identity.batch_hard_triplet(feature, labels)
        losses[f"margin_triplet_{i}"] = identity.batch_hard_triplet(feature, labels, margin=0.3)
    for kind in ("soft", "margin"):
        each = [losses[f"ce_{i}"] + losses[f"{kind}_triplet_{i}"] for i in range(len(twin.names))]
        first, *others = each
        total = 0.5 * first + 0.5 * sum(others) / len(others) if others else first
        losses[f"loss_{kind}_triplet"] = total
    return losses["loss_soft_triplet"], (outputs, losses, changed["batch_stats"])


def norms(twin: Twin, variables: Mapping[str, Any]) -> dict[str, float]:
    """{the release's name: norm of our array} of those tensors that `variables` has."""
    ours = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(variables).items()}
    return {
        name: float(np.linalg.norm(ours[path][index]))
        for name, path, index, _ in twin.rows
        if path in ours
    }
