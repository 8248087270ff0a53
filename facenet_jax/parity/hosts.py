"""HAMNet, PFNet and IEEE against their authors' code: the rows of a golden directory of theirs.

As for CCNet, weights follow from the names of the release's tensors, and all is in float64; what
evaluation gives, in float32 as well. A `Host` says what the release calls what.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.errors import UserError
from data_tfds.samples import VISIBLE
from facenet_jax.config import default_config
from facenet_jax.losses import centres, identity, terms
from facenet_jax.models import hamnet, ieee, map_streams, pfnet
from facenet_jax.parity.host_names import HAMNET_ROWS, NAMES, PFNET_ROWS, SHORT, STREAMS, ieee_rows
from facenet_jax.parity.releases import NUMBERS, filled, forward_rows, norm_rows, pictures
from facenet_jax.parity.rows import Golden, Row, compared
from facenet_jax.types import Batch, DataSpec, Outputs
from facenet_jax.weights.merge import flatten, nest
from facenet_jax.weights.messages import listed
from facenet_jax.weights.names import resnet as resnet_names
from facenet_jax.weights.names.tables import translate

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Host:
    """What differs between the three."""

    model: str
    rows: list[tuple]  # (pattern of the release's names, our path, layout)
    kind: Callable[[Any], Any]  # the network of a section `model`, but for common fields
    evaluated: Callable[[Outputs, Values], dict[str, jax.Array]]
    trained: Callable[[Outputs], dict[str, jax.Array]]
    losses: Callable[[Outputs, Batch], dict[str, jax.Array]]
    total: str  # the loss that gradients are of
    stem_relu: bool = False


class Twin:
    """Our network with the directory's weights, and its images as a batch, in one number format."""

    def __init__(self, golden: Golden, dtype: str):
        self.meta, z = golden.needed("meta.json"), golden.needed("arrays.npz")
        self.host = HOSTS[self.meta["system"]]
        state = filled(golden.needed("state_dict_shapes.json"), self.meta["seed"])
        canonical, _, *problems = translate(state, self.host.rows, str(golden.folder))
        if any(problems):
            said = listed([each for clauses in problems for each in clauses])
            raise UserError(f"{golden.folder} is not what {self.meta['system']} has: {said}")
        self.names = self.our_names(state)
        self.idle = dict.fromkeys((name for name in state if name not in self.names), 0.0)
        variables = nest(self.joined(canonical))
        self.variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        model = default_config(self.host.model).model
        model.variant, stem = "", f"params/trunk_{VISIBLE}"
        of_resnet = {
            path.removeprefix(f"{stem}/"): value
            for path, value in canonical.items()
            if path.startswith(stem)
        }
        model.width = of_resnet["conv1/kernel"].shape[-1]
        model.depths = tuple(resnet_names.depths_of(of_resnet))
        model.dtype, model.stem_relu = dtype, self.host.stem_relu
        spec = DataSpec(NAMES, tuple(self.meta["image"]), self.meta["classes"])
        self.net = map_streams.network(model, spec, self.host.kind(model))
        images = jnp.asarray(pictures(z["images"], self.meta), dtype)
        self.batch = Batch(images, jnp.asarray(z["labels"], jnp.int32), {})

    def our_names(self, state: Values) -> dict[str, tuple[str, int | None]]:
        """{the release's name: our path, and row of it or None} of all tensors that we have."""
        found = {}
        for name in state:
            canonical, *_ = translate({name: state[name]}, self.host.rows, "")
            for path in canonical:
                found[name] = self.place(path)
        return found

    def place(self, path: str) -> tuple[str, int | None]:
        """(our path, row) of a canonical path, where <part>@<row> is a row of a stacked part."""
        match = re.fullmatch(r"([^@]*)@(\d)(/.*)", path)
        return (match[1] + match[3], int(match[2])) if match else (path, None)

    def joined(self, canonical: Values) -> dict[str, np.ndarray]:
        """The canonical arrays with the rows of stacked parts put together."""
        found: dict[str, Any] = {}
        for path, value in canonical.items():
            ours, row = self.place(path)
            if row is None:
                found[ours] = value
            else:
                found.setdefault(ours, {})[row] = value
        return {
            path: np.stack([value[i] for i in sorted(value)]) if isinstance(value, dict) else value
            for path, value in found.items()
        }

    def apply(self, variables: Values, train: bool) -> tuple[Outputs, Any]:
        """(outputs, {"batch_stats", "intermediates"}) on the batch."""
        changed = ["intermediates", *(["batch_stats"] if train else [])]
        return self.net.apply(variables, self.batch, NAMES, train, mutable=changed)

    def norms(self, variables: Values) -> dict[str, float]:
        """{the release's name: norm of our array} of those tensors that `variables` has."""
        ours = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(variables).items()}
        return {
            name: float(np.linalg.norm(ours[path] if row is None else ours[path][row]))
            for name, (path, row) in self.names.items()
            if path in ours
        }


def rows(golden: Golden) -> Iterator[Row]:
    """Rows of everything that the release computed in this directory."""
    reference, losses = golden.needed("arrays.npz"), golden.needed("losses.json")
    with jax.enable_x64(True):
        twin = Twin(golden, "float64")
        yield from forward_rows("eval", evaluated(twin), reference)
        compute = jax.jit(jax.value_and_grad(functools.partial(trained, twin), has_aux=True))
        (_, (values, ours, changed)), gradients = compute(twin.variables["params"])
        yield from forward_rows("train", values, reference)
        for name, value in losses.items():
            yield compared(f"loss {name}", ours.get(name, np.nan), value, NUMBERS)
        norms = golden.needed("grad_norms.json")
        found = twin.norms({"params": gradients})
        yield from norm_rows("gradient norm", {**twin.idle, **found}, norms)
        after = golden.needed("bn_norms_after_forward.json")
        ours = twin.norms({"batch_stats": changed})
        yield from norm_rows("norm after the steps", ours, after)
    errors = golden.json("float32_error.json") or {}
    single = Twin(golden, "float32")
    yield from forward_rows("eval", evaluated(single), reference, errors, " in float32")


def evaluated(twin: Twin) -> dict[str, jax.Array]:
    """What evaluation gives, by the release's names."""

    @jax.jit
    def compute(variables):
        outputs, changed = twin.apply(variables, False)
        return twin.host.evaluated(outputs, changed.get("intermediates", {}))

    return compute(twin.variables)


def trained(twin: Twin, params: Any) -> tuple[jax.Array, tuple]:
    """(total loss, (values by the release's names, losses, running statistics))."""
    outputs, changed = twin.apply({**twin.variables, "params": params}, True)
    losses = twin.host.losses(outputs, twin.batch)
    values = twin.host.trained(outputs)
    return losses[twin.host.total], (values, losses, changed["batch_stats"])


# HAMNet


def hamnet_evaluated(outputs: Outputs, kept: Values) -> dict[str, jax.Array]:
    """The release's names of what evaluation gives."""
    (maps,) = kept["class_maps"]
    values = {"fused_feature": outputs.embedding}
    for i, (modality, short) in enumerate(SHORT.items()):
        values[f"fbn_{short}"] = outputs.features[modality]
        values[f"class_map_{short}"] = maps[i, :, 3, 7]
    return values


def hamnet_trained(outputs: Outputs) -> dict[str, jax.Array]:
    """The release's names of what training gives."""
    values = {"fused_score": outputs.logits["fused"]}
    for modality, short in SHORT.items():
        values[f"fbn_{short}"] = outputs.features[modality]
        values[f"score_{short}"] = outputs.logits[f"score_{modality}"]
    return values


def hamnet_losses(outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """The release's losses."""
    losses, labels = {"similarity_unweighted": hamnet.similarity(outputs, batch)}, batch.identity
    shorts = {**SHORT, "fused": "fused"}
    for name, short in shorts.items():
        logits = outputs.logits["fused" if name == "fused" else f"score_{name}"]
        losses[f"ce_{short}"] = identity.cross_entropy(logits, labels)
        feature = outputs.features[name]
        losses[f"triplet_{short}"] = identity.batch_hard_triplet(feature, labels, 0.3)
    of = (losses[f"{kind}_{short}"] for short in shorts.values() for kind in ("ce", "triplet"))
    losses["total"] = sum(of) + 1e-3 * losses["similarity_unweighted"]
    return losses


# PFNet


def pfnet_trained(outputs: Outputs) -> dict[str, jax.Array]:
    """The release's names of what training gives."""
    kinds = {name: "pair" if name in ("RT", "RN") else "part" for name in STREAMS}
    names = [
        f"{kinds[theirs]}{part + 1}_{ours}"
        for part in range(pfnet.STRIPES)
        for theirs, ours in STREAMS.items()
    ]
    values = {f"score_{i}": outputs.logits[name] for i, name in enumerate([*names, "all"])}
    return values | normalised(outputs)


def normalised(outputs: Outputs) -> dict[str, jax.Array]:
    """The unit features of the modalities."""
    return {f"normalised_{s}": centres.unit(outputs.features[m]) for m, s in SHORT.items()}


def pfnet_losses(outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """The release's losses."""
    return {"ce_sum": terms.identity_loss(outputs, batch)}


# IEEE


def ieee_trained(outputs: Outputs) -> dict[str, jax.Array]:
    """The release's names of what training gives."""
    values = {
        f"score_{short}{part}": outputs.logits[f"part{part + 1}_{modality}"]
        for modality, short in SHORT.items()
        for part in range(6)
    }
    return values | normalised(outputs)


def ieee_losses(outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """The release's losses."""
    losses = {
        f"ce_smooth_sum_over_parts_{short}": terms.identity_loss(
            outputs, batch, on=(f"part*_{modality}",), label_smoothing=0.1
        )
        for modality, short in SHORT.items()
    }
    losses["3m"] = terms.mmm(outputs, batch, margin=1.0)
    total = sum(losses.values())
    return {**losses, "3m_margin3": terms.mmm(outputs, batch, margin=3.0), "total": total}


def embedding_alone(outputs: Outputs, kept: Values) -> dict[str, jax.Array]:
    """What evaluation gives where that is the feature."""
    del kept
    return {"feature": outputs.embedding}


HOSTS = {
    "hamnet": Host(
        "hamnet",
        HAMNET_ROWS,
        lambda _: hamnet.HAMNet,
        hamnet_evaluated,
        hamnet_trained,
        hamnet_losses,
        "total",
    ),
    "pfnet": Host(
        "pfnet",
        PFNET_ROWS,
        pfnet.network_kind,
        embedding_alone,
        pfnet_trained,
        pfnet_losses,
        "ce_sum",
        stem_relu=True,
    ),
    "ieee": Host(
        "ieee",
        ieee_rows(),
        ieee.network_kind,
        embedding_alone,
        ieee_trained,
        ieee_losses,
        "total",
        stem_relu=True,
    ),
}
