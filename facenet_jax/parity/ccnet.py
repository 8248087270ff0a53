"""CCNet against the authors' release: the rows of a golden directory whose system is "ccnet".

Weights follow a rule from the names of the release's tensors, so that none are stored; they come
through our importer. Everything is computed in float64, since BatchNorm over four images amplifies
the noise of float32; what evaluation gives, in float32 as well.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE
from facenet_jax.config import default_config
from facenet_jax.losses import centres, identity
from facenet_jax.models import ccnet
from facenet_jax.parity.releases import NUMBERS, filled, forward_rows, norm_rows, pictures
from facenet_jax.parity.rows import Golden, Row, compared
from facenet_jax.types import Batch, DataSpec, Outputs
from facenet_jax.weights import ccnet_release
from facenet_jax.weights.merge import flatten

SHORT = {VISIBLE: "r", NEAR_INFRARED: "n", THERMAL: "t"}
EVERY_64TH = (slice(None), 5, 9, slice(None, None, 64))  # of the maps behind ALNU


def rows(golden: Golden) -> Iterator[Row]:
    """Rows of everything that the release's CCNet computed in this directory."""
    reference = golden.needed("ccnet.npz")
    with jax.enable_x64(True):
        twin = Twin(golden, "float64")
        yield from forward_rows("eval", twin.evaluate(), reference)
        yield from training_rows(twin, golden)
    errors = golden.json("float32_error.json") or {}
    single = Twin(golden, "float32")
    yield from forward_rows("eval", single.evaluate(), reference, errors, " in float32")


class Twin:
    """Our CCNet with the directory's weights, and its images as a batch, in one number format."""

    def __init__(self, golden: Golden, dtype: str):
        self.meta, z = golden.needed("meta.json"), golden.needed("ccnet.npz")
        state = filled(golden.needed("state_dict_shapes.json"), self.meta["seed"])
        source = f"the rule of {golden.folder}"
        variables, self.sizes = ccnet_release.import_release(state, tuple(SHORT), source)
        self.variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        model = default_config("ccnet").model
        model.variant, model.width, model.depths = "", self.sizes.width, self.sizes.depths
        model.norm = "alnu" if self.sizes.alnu else "none"
        model.dtype = dtype
        spec = DataSpec(tuple(SHORT), tuple(self.meta["image"]), self.sizes.identities)
        self.net = ccnet.network(model, spec)
        images = jnp.asarray(pictures(z["images"], self.meta), dtype)
        labels = jnp.asarray(z["labels"], jnp.int32)
        self.batch = Batch(images, labels, {})

    def apply(self, variables: Mapping[str, Any], train: bool) -> tuple[Outputs, Any]:
        """(outputs, {"batch_stats", "intermediates"}) on the batch."""
        changed = ["intermediates", *(["batch_stats"] if train else [])]
        return self.net.apply(variables, self.batch, tuple(SHORT), train, mutable=changed)

    def evaluate(self) -> dict[str, jax.Array]:
        """The release's names of what evaluation gives, without their beginning."""

        @jax.jit
        def compute(variables):
            outputs, changed = self.apply(variables, False)
            values = in_release_names(self.net, outputs, changed.get("intermediates", {}))
            return values | {"embedding": outputs.embedding}

        values = compute(self.variables)
        length = jnp.linalg.norm(values["embedding"], axis=1, keepdims=True)
        return values | {"embedding": values["embedding"] / length}


def in_release_names(net: ccnet.CCNet, outputs: Outputs, kept: Mapping) -> dict[str, jax.Array]:
    """{"f_r", "fbn_r", "logits_r", "alnu_gamma_r", ...} of all branches."""
    width, values = outputs.embedding.shape[-1] // len(SHORT), {}
    for i, (modality, short) in enumerate(SHORT.items()):
        values[f"f_{short}"] = outputs.features[modality]
        values[f"fbn_{short}"] = outputs.embedding[:, i * width : (i + 1) * width]
        values[f"logits_{short}"] = outputs.logits[modality]
        found = kept.get(f"trunk_{modality}", {}).get("norm", {}).get("alnu", ({},))[0]
        names = {"mean": "alnu_in_mean", "var": "alnu_in_var"}
        for name, value in found.items():
            value = value[EVERY_64TH] if name == "out" else value
            values[f"{names.get(name, f'alnu_{name}')}_{short}"] = value
    return values


def training_rows(twin: Twin, golden: Golden) -> Iterator[Row]:
    """Outputs in training mode, losses, gradients and what BatchNorm keeps, after one batch."""
    compute = jax.jit(jax.value_and_grad(functools.partial(training_values, twin), has_aux=True))
    (_, (values, losses, changed)), gradients = compute(twin.variables["params"])
    yield from forward_rows("train", values, golden.needed("ccnet.npz"))
    for name, value in golden.needed("losses.json").items():
        yield compared(f"loss {name}", losses.get(name, np.nan), value, NUMBERS)
    ours = norms(twin, {"params": gradients})
    yield from norm_rows("gradient norm", ours, golden.needed("grad_norms.json"))
    ours = norms(twin, {"batch_stats": changed})
    after = golden.needed("bn_norms_after_forward.json")
    yield from norm_rows("norm after the steps", ours, after)


def training_values(twin: Twin, params: Any) -> tuple[jax.Array, tuple]:
    """(total loss, (values by the release's names, losses, running statistics))."""
    outputs, changed = twin.apply({**twin.variables, "params": params}, True)
    labels, meta = twin.batch.identity, twin.meta
    losses = {
        f"ce_{short}": identity.cross_entropy(outputs.logits[modality], labels)
        for modality, short in SHORT.items()
    }
    features = list(outputs.features.values())
    for norm in ("code", "paper"):
        for which, weights in (("s", (0.0, 1.0)), ("m", (1.0, 0.0))):
            value = centres.cdc(features, labels, weights[0], norm, weights[1])
            losses[f"cdc_{which}_{norm}"] = value
    cdc = losses["cdc_s_code"] + meta["alpha"] * losses["cdc_m_code"]
    total = sum(losses[f"ce_{short}"] for short in SHORT.values()) + meta["lam"] * cdc
    values = in_release_names(twin.net, outputs, changed.get("intermediates", {}))
    return total, (values, {**losses, "total_code": total}, changed["batch_stats"])


def norms(twin: Twin, variables: Mapping[str, Any]) -> dict[str, float]:
    """{the release's name: norm of our array} of those tensors that `variables` has."""
    ours = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(variables).items()}
    return {
        row.theirs: float(np.linalg.norm(row.to_theirs(ours[row.ours])))
        for row in ccnet_release.rows(twin.sizes, tuple(SHORT))
        if row.ours in ours
    }
