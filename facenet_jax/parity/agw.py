"""AGW's two-stem ResNet against the authors' release: the directories "agw/net" and its like.

As in `parity.releases`, weights follow a rule from the names of the release's tensors. Its network
holds three whole ResNets, of which it uses one stem each and the layers of one; tensors that it
does not use must have no gradient and must stay as they are.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.samples import INFRARED, VISIBLE
from facenet_jax.config import default_config
from facenet_jax.losses import identity
from facenet_jax.models import two_stem
from facenet_jax.parity import releases
from facenet_jax.parity.rows import Golden, Row, compared
from facenet_jax.types import Batch, DataSpec
from facenet_jax.weights.merge import flatten, nest

MODALITIES = (VISIBLE, INFRARED)

PLACES = (
    (r"visible_module\.visible\.(conv1|bn1)", r"stem_visible/\1"),
    (r"thermal_module\.thermal\.(conv1|bn1)", r"stem_infrared/\1"),
    (r"base_resnet\.base\.(layer\d)\.(\d+)\.(conv\d|bn\d)", r"shared/\1_\2/\3"),
    (r"base_resnet\.base\.(layer\d)\.(\d+)\.downsample\.0", r"shared/\1_\2/shortcut_conv"),
    (r"base_resnet\.base\.(layer\d)\.(\d+)\.downsample\.1", r"shared/\1_\2/shortcut_bn"),
    (r"NL_(\d)\.(\d+)\.(theta|phi)", r"shared/non_local_layer\1_\2/\3"),
    (r"NL_(\d)\.(\d+)\.g\.0", r"shared/non_local_layer\1_\2/g"),
    (r"NL_(\d)\.(\d+)\.W\.0", r"shared/non_local_layer\1_\2/out"),
    (r"NL_(\d)\.(\d+)\.W\.1", r"shared/non_local_layer\1_\2/norm"),
    (r"bottleneck", "neck"),
    (r"classifier", "classifier"),
)
"""Pattern of a module of the release that is used, and its path here."""

LEAVES = {"bias": "bias", "running_mean": "mean", "running_var": "var"}


def rows(golden: Golden, ending: str = "") -> Iterator[Row]:
    """Rows of everything that the release's network computed in this directory."""
    reference, errors = golden.needed("arrays.npz"), golden.json("float32_error.json") or {}
    found = []
    with jax.enable_x64(True):
        twin = Twin(golden, "float64")
        found += releases.forward_rows("eval", twin.evaluate(), reference)
        if golden.json("losses.json") is not None:
            found += training_rows(twin, golden)
    single = Twin(golden, "float32")
    found += releases.forward_rows("eval", single.evaluate(), reference, errors, " in float32")
    for row in found:
        yield Row(row.name + ending, *(getattr(row, f) for f in list(vars(row))[1:]))


class Twin:
    """Our network with the directory's weights, and its images as a batch, in one number format."""

    def __init__(self, golden: Golden, dtype: str):
        meta, z = golden.needed("meta.json"), golden.needed("arrays.npz")
        shapes = golden.needed("state_dict_shapes.json")
        if meta["no_local"] == "on":  # its names and shapes are those that the other part lacks
            shapes = {
                **Golden(golden.folder.parent / "net").needed("state_dict_shapes.json"),
                **shapes,
            }
        self.state = releases.filled(shapes, meta["seed"])
        model = default_config("two_stem").model
        model.pool = "gem" if meta["gm_pool"] == "on" else "mean"
        model.dtype, model.variant = dtype, ""
        model.width, model.depths = sizes(shapes)
        counts = [blocks_of(shapes, rf"NL_{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
        model.non_local = tuple(counts)
        model.non_local_width = next(
            (shape[0] for name, shape in shapes.items() if name.endswith("theta.weight")), 1
        )
        self.places = places(shapes, model.depths, counts)
        ours = {
            path: in_our_layout(self.state[name], path).astype(dtype)
            for name, path in self.places.items()
        }
        self.variables = jax.tree.map(jnp.asarray, nest(ours))
        spec = DataSpec(MODALITIES, tuple(meta["image"]), meta["classes"])
        self.model = two_stem.build(model, spec)
        halves = z["images"].reshape(2, -1, *z["images"].shape[1:]).swapaxes(0, 1)
        self.images = jnp.asarray(releases.pictures(halves, meta), dtype)
        self.labels = jnp.asarray(z["labels"], jnp.int32) if "labels" in z else None

    def batch(self, images: jax.Array) -> Batch:
        """A batch of images [M, B, H, W, 3]."""
        return Batch(images, jnp.zeros(images.shape[1], jnp.int32), {})

    def evaluate(self) -> dict[str, jax.Array]:
        """The release's names of what evaluation gives; each modality is embedded by itself."""

        @functools.partial(jax.jit, static_argnames="modality")
        def compute(variables, images, modality):
            outputs, _ = self.model.apply(
                variables, self.batch(images), train=False, modalities=(modality,)
            )
            return outputs.features[modality], outputs.embedding

        both = [
            compute(self.variables, self.images[i : i + 1], modality)
            for i, modality in enumerate(MODALITIES)
        ]
        pool, feat = (jnp.concatenate(each) for each in zip(*both, strict=True))
        return {"pool": pool, "pool_l2": unit(pool), "feat_l2": unit(feat)}


def unit(x: jax.Array) -> jax.Array:
    """Rows of length 1."""
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def sizes(shapes: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """(channels of the stem, blocks of layer1 to layer4) of the release's tensors."""
    depths = (blocks_of(shapes, rf"base_resnet\.base\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    return shapes["visible_module.visible.conv1.weight"][0], tuple(depths)


def blocks_of(shapes: Mapping[str, Any], pattern: str) -> int:
    """How many blocks the names that begin with `pattern` count."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def places(shapes: Mapping[str, Any], depths: tuple, non_local: list[int]) -> dict[str, str]:
    """{the release's name: our path} of the tensors that are used."""
    found = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        match = re.match(r"NL_(\d)\.(\d+)\.", name)
        if match:  # it counts them; we name them by the block they follow
            at = int(match[1]) - 1
            block = depths[at] - non_local[at] + int(match[2])
            module = re.sub(r"^NL_(\d)\.\d+\.", rf"NL_\1.{block}.", module)
        to = [re.fullmatch(pattern, module) and (pattern, path) for pattern, path in PLACES]
        for pattern, path in filter(None, to):
            ours = LEAVES.get(leaf, "kernel" if len(shape) > 1 else "scale")
            kept = leaf.startswith("running") or name == "bottleneck.bias"
            collection = "batch_stats" if kept else "params"
            if leaf != "num_batches_tracked":
                found[name] = f"{collection}/{re.sub(pattern, path, module)}/{ours}"
    return found


def in_our_layout(tensor: np.ndarray, path: str) -> np.ndarray:
    """A tensor of the release as we have it."""
    if tensor.ndim == 4 and "non_local" in path:
        return tensor[:, :, 0, 0].T
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def training_rows(twin: Twin, golden: Golden) -> Iterator[Row]:
    """Outputs in training mode, losses, gradients and what BatchNorm keeps, after one batch."""
    compute = jax.jit(jax.value_and_grad(functools.partial(training_values, twin), has_aux=True))
    (_, (values, losses, changed)), gradients = compute(twin.variables["params"], twin.images)
    yield from releases.forward_rows("train", values, golden.needed("arrays.npz"))
    for name, value in golden.needed("losses.json").items():
        yield compared(f"loss {name}", losses.get(name, np.nan), value, releases.NUMBERS)
    ours = norms(twin, {"params": gradients})
    yield from releases.norm_rows("gradient norm", ours, golden.needed("grad_norms.json"))
    unused = {
        name: np.linalg.norm(tensor.astype(np.float64))
        for name, tensor in twin.state.items()
        if name not in twin.places
    }
    after = golden.needed("bn_norms_after_forward.json")
    ours = {**unused, **norms(twin, {"batch_stats": changed})}
    yield from releases.norm_rows("norm after the steps", ours, after)


def training_values(twin: Twin, params: Any, images: jax.Array) -> tuple[jax.Array, tuple]:
    """(total loss, (values by the release's names, losses, running statistics))."""
    variables = {**twin.variables, "params": params}
    outputs, changed = twin.model.apply(variables, twin.batch(images), train=True)
    pool, logits = (
        jnp.concatenate([each[m] for m in MODALITIES])
        for each in (outputs.features, outputs.logits)
    )
    apart = identity.distance(pool[:, None], pool[None])
    losses = {
        "ce": identity.cross_entropy(logits, twin.labels),
        "wrt": identity.weighted_triplet(pool, twin.labels),
        "largest_distance": apart.max(),
    }
    values = {"pool": pool, "logits": logits}
    return losses["ce"] + losses["wrt"], (values, losses, changed["batch_stats"])


def norms(twin: Twin, variables: Mapping[str, Any]) -> dict[str, float]:
    """{the release's name: norm of our array} of those tensors that `variables` has."""
    ours = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(variables).items()}
    return {
        name: float(np.linalg.norm(ours[path]))
        for name, path in twin.places.items()
        if path in ours
    }
