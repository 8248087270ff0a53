"""TOP-ReID against its authors' code: the rows of a golden directory of that system, in float32."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.errors import UserError
from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE
from facenet_jax.config import default_config
from facenet_jax.losses import terms
from facenet_jax.models import three_stream, topreid
from facenet_jax.parity.releases import FLOAT32, filled, norm_rows, pictures
from facenet_jax.parity.rows import Golden, compared
from facenet_jax.parity.rows import Row as Result
from facenet_jax.parity.transreid import NORM_ERROR, NORMS, SMALL
from facenet_jax.types import Batch, DataSpec, Outputs
from facenet_jax.weights.merge import flatten
from facenet_jax.weights.messages import listed
from facenet_jax.weights.torch_rows import Layout, Row, block, linear, neck, norm, to_ours, trunk

SIDE = Layout(lambda x: x[:, 0], lambda x: x[:, None])
BRANCHES = {VISIBLE: ("RGB", "r"), NEAR_INFRARED: ("NI", "n"), THERMAL: ("TI", "t")}
NAMES = tuple(BRANCHES)
# Which modality the two blocks of each one reconstruct.
TARGETS = {VISIBLE: NAMES[1:], NEAR_INFRARED: NAMES[::2], THERMAL: NAMES[:2]}
HEADS = {topreid.PERMUTED: "TPM", topreid.DIRECT: "ViT"}


def used_rows(depth: int) -> Iterator[Row]:
    """Rows of all tensors that take part, whichever heads there are."""
    for i, (modality, (theirs, _)) in enumerate(BRANCHES.items()):
        base = f"{theirs}.base"
        yield from trunk(base, i, depth - 1)
        yield f"{base}.sie_embed", "params/side/table", (i,), SIDE
        yield from block(f"{base}.blocks.{depth - 1}", "params/last/block", (i,))
        yield from norm(f"{base}.norm", "params/last/norm", (i,))
        yield from neck(f"{theirs}.bottleneck", "neck", (i,))
        yield from linear(f"{theirs}.classifier", "params/classifier", (i,), bias=False)
        for which, target in enumerate(TARGETS[modality], start=1):
            ours = f"params/reconstruct_{modality}_{target}"
            for row in block(f"CRM.{theirs}RE.re{which}.blocks.0", ours, ()):
                if not row[1].endswith("qkv/bias"):
                    yield row
    for step, name in enumerate(("start", "middle", "end"), start=1):
        theirs, ours = f"TPM.Ro_{name}.Rotation", f"params/turn{step}"
        for which in ("q", "k", "v"):
            yield from linear(f"{theirs}.attn.{which}_", f"{ours}/{which}", (), bias=False)
        yield from linear(f"{theirs}.attn.proj", f"{ours}/proj", ())
        yield from norm(f"{theirs}.attn.normy", f"{ours}/norm_patches", ())
        yield from norm(f"{theirs}.norm1", f"{ours}/norm1", ())
        yield from norm(f"{theirs}.norm2", f"{ours}/norm2", ())
        yield from linear(f"{theirs}.mlp.fc1", f"{ours}/fc1", ())
        yield from linear(f"{theirs}.mlp.fc2", f"{ours}/fc2", ())
    for ours, theirs in HEADS.items():
        yield from neck(f"bottleneck_{theirs}", f"neck_{ours}", ())
        yield from linear(f"classifier_{theirs}", f"params/classifier_{ours}", (), bias=False)


class Twin:
    """Our TOP-ReID with the directory's weights, and its images as a batch."""

    def __init__(self, golden: Golden):
        meta, z = golden.needed("meta.json"), golden.needed("arrays.npz")
        state = filled(golden.needed("state_dict_shapes.json"), meta["seed"])
        self.rows = list(used_rows(meta["depth"]))
        if lacking := sorted({row[0] for row in self.rows} - set(state)):
            raise UserError(f"{golden.folder} is not what TOP-ReID has: it lacks {listed(lacking)}")
        self.variables = jax.tree.map(jnp.asarray, to_ours(state, self.rows))
        model = default_config("topreid").model
        model.variant, model.drop_path = "", 0.0
        model.width, model.depth, model.heads = meta["width"], meta["depth"], meta["heads"]
        model.patch = state["RGB.base.patch_embed.proj.weight"].shape[-1]
        model.stride = meta["stride"]
        model.sie.camera, model.sie.coefficient = True, meta["sie_coe"]
        labels = {"camera": meta["cameras"]}
        spec = DataSpec(NAMES, tuple(meta["image"]), meta["classes"], labels)
        self.nets = {}
        for model.neck_feature in ("before", "after"):
            for model.heads_of in ("each", "all"):
                key = (model.neck_feature, model.heads_of)
                network = topreid.network(model, spec)
                self.nets[key] = three_stream.assembled(model, spec, network)
        camera = jnp.broadcast_to(jnp.asarray(z["cam"], jnp.int32), (3, len(z["cam"])))
        images = jnp.asarray(pictures(z["images"], meta))
        self.batch = Batch(images, jnp.asarray(z["labels"], jnp.int32), {"camera": camera})

    def apply(
        self, variables: Mapping, key: tuple[str, str], train: bool, names: tuple[str, ...] = NAMES
    ) -> Outputs:
        """The outputs for the images of some modalities."""
        rows = [NAMES.index(name) for name in names]
        taken = three_stream.select(
            variables, rows, {"neck", "classifier", "side", "last", "trunk"}
        )
        labels = {name: label[jnp.array(rows)] for name, label in self.batch.labels.items()}
        batch = Batch(self.batch.images[jnp.array(rows)], self.batch.identity, labels)
        outputs, _ = self.nets[key].apply(
            taken,
            batch,
            names,
            train,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"] if train else ["none"],
        )
        return outputs


def rows(golden: Golden) -> Iterator[Result]:
    """Rows of everything that the authors' code computed in this directory."""
    twin, errors = Twin(golden), golden.needed("float32_error.json")
    reference = golden.needed("arrays.npz")

    def tolerance(name: str) -> float:
        return max(FLOAT32[0], FLOAT32[1] * errors.get(name, 0.0))

    values = evaluated(twin)
    compute = jax.jit(jax.value_and_grad(functools.partial(trained, twin), has_aux=True))
    (_, (found, losses)), gradients = compute(twin.variables["params"])
    values |= found
    for name in (name for name in reference if name.startswith(("eval_", "train_"))):
        yield compared(name, values.get(name, np.nan), reference[name], tolerance(name))
    for name, value in golden.needed("losses.json").items():
        yield compared(f"loss {name}", losses.get(name, np.nan), value, tolerance(name))
    ours = {p: np.asarray(x, np.float64) for p, x in flatten({"params": gradients}).items()}
    norms = {n: float(np.linalg.norm(ours[p][i])) for n, p, i, _ in twin.rows if p in ours}
    limit = max(NORMS, FLOAT32[1] * errors.get(NORM_ERROR, 0.0))
    expected = golden.needed("grad_norms.json")
    yield from norm_rows("gradient norm", norms, expected, limit, limit * SMALL)


MISSING = ("r", "n", "t", "rn", "rt", "nt")


def evaluated(twin: Twin, missing: tuple[str, ...] = MISSING) -> dict[str, jax.Array]:
    """What evaluation gives, by the release's names; also without the modalities `missing`."""

    def run(key: tuple[str, str], names: tuple[str, ...] = NAMES) -> Outputs:
        return jax.jit(lambda variables: twin.apply(variables, key, False, names))(twin.variables)

    outputs = run(("before", "each"))
    values = {"eval_feature": outputs.embedding}
    values["eval_feature_after"] = run(("after", "each")).embedding
    for modality, (_, short) in BRANCHES.items():
        values[f"eval_cls_{short}"] = outputs.features[f"score_{modality}"]
    for letters in missing:
        names = tuple(name for name in NAMES if BRANCHES[name][1] not in letters)
        values[f"eval_missing_{letters}"] = run(("before", "each"), names).embedding
    return values


def trained(twin: Twin, params: Any) -> tuple[jax.Array, tuple[dict, dict]]:
    """(the smoothed total with a head for each modality, (values, losses))."""
    losses, values = {}, {}
    for number, heads_of in enumerate(("each", "all")):
        variables = {**twin.variables, "params": params}
        outputs = twin.apply(variables, ("before", heads_of), True)
        losses["reconstruction"] = topreid.reconstruction(outputs, twin.batch)
        metric = terms.triplet(outputs, twin.batch)
        for kind, smoothing in (("smooth", 0.1), ("plain", 0.0)):
            ce = terms.identity_loss(outputs, twin.batch, label_smoothing=smoothing)
            losses[f"total_{kind}_direct{number}"] = ce + metric + losses["reconstruction"]
        for name, short in names_of(outputs).items():
            values[f"train_score_{short}"] = outputs.logits[name]
            values[f"train_feature_{short}"] = outputs.features[name]
    return losses["total_smooth_direct0"], (values, losses)


def names_of(outputs: Outputs) -> dict[str, str]:
    """{our name: the release's} of features."""
    known = {topreid.PERMUTED: "tpm", topreid.DIRECT: "ori"}
    known |= {f"score_{modality}": short for modality, (_, short) in BRANCHES.items()}
    return {name: known[name] for name in outputs.features}
