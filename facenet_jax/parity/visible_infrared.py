"""What visible-infrared systems share, against the releases: scores, galleries, rates and losses.

The directories "agw", whose networks lie in folders of their own, and "mmd".
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data_tfds.sets.sysu_mm01 import BUILDER
from data_tfds.source import Stamp
from facenet_jax.losses import centres, divergence, identity
from facenet_jax.models.two_stem import gem
from facenet_jax.optim import Group, rate_table
from facenet_jax.parity import agw
from facenet_jax.parity.releases import ARRAYS, FLOAT32, NUMBERS
from facenet_jax.parity.rows import Golden, Row, compared
from facenet_jax.retrieval import protocols
from facenet_jax.retrieval.distances import given_rows
from facenet_jax.retrieval.metrics import rank

METRICS = 1e-6
FORMATS = ("float64", "float32")


def agw_rows(golden: Golden, optim: ml_collections.ConfigDict) -> Iterator[Row]:
    """Rows of the directory "agw"; `optim` is that section of AGW's recipe."""
    yield from metric_rows(golden.needed("metrics.npz"))
    yield from gallery_rows(golden.needed("sysu_gallery.json"))
    yield from rate_rows(golden.needed("lr_by_epoch.json"), optim)
    yield from loss_rows(Golden(golden.folder / "losses"))
    for name in ("net", "net_nonlocal"):
        yield from agw.rows(Golden(golden.folder / name), f" of {name}")


def metric_rows(z: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """Scores of given distances under the rules of SYSU-MM01, of RegDB, and of a small gallery."""
    sysu = protocols.by_name("sysu_mm01/all_single")
    regdb = protocols.by_name("regdb/visible_to_thermal_1")
    columns = len(z["small_regdb_cmc"])
    for prefix, protocol, count in (
        ("sysu", sysu, None),
        ("regdb", regdb, None),
        ("small_regdb", regdb, columns),
    ):
        query = {"identity": z["sysu_q_pids"], "camera": z["sysu_q_cams"]}
        gallery = {"identity": z["sysu_g_pids"][:count], "camera": z["sysu_g_cams"][:count]}
        distances = z["sysu_distmat"][:, :count]
        order = np.arange(distances.shape[1])
        relevance = protocols.relevance(protocol, query, gallery, len(distances), order)
        chosen = given_rows([distances], *distances.shape, relevance.valid)
        found = rank(chosen, relevance, protocol.collapse)
        steps = np.arange(1, 1 + len(z[f"{prefix}_cmc"]))
        cmc = (found.first_match[:, None] <= steps).mean(axis=0)
        yield compared(f"{prefix}_cmc", cmc, z[f"{prefix}_cmc"], METRICS)
        scores = found.metrics()
        for ours, theirs in (("mAP", "map"), ("mINP", "minp")):
            yield compared(f"{prefix}_{theirs}", scores[ours], z[f"{prefix}_{theirs}"], METRICS)


class Listed:
    """A data set that is a list of names alone, and some texts."""

    def __init__(self, names: list[str], texts: Mapping[str, str]):
        self.root, self.texts = pathlib.Path("listing"), texts
        self.files = {name: Stamp(0, 0) for name in [*names, *texts]}

    def read(self, path: str) -> bytes:
        """One of the texts."""
        return self.texts[path].encode()

    def where(self, path: str) -> str:
        """The name itself."""
        return path


def gallery_rows(reference: Mapping[str, Any]) -> Iterator[Row]:
    """The queries, and the gallery of every trial, of a folder listing: how many names differ."""
    names = [f"{folder}/{x}" for folder, images in reference["listing"].items() for x in images]
    others = dict.fromkeys(("exp/train_id.txt", "exp/val_id.txt"), "0")
    source = Listed(names, {**others, "exp/test_id.txt": reference["test_id_txt"]})
    with tempfile.TemporaryDirectory() as folder:
        splits = BUILDER(source=source, data_dir=folder).listing(source).splits
    queries = sorted(each.name for each in splits["query"])
    yield differing("queries", queries, sorted(reference["query"]))
    labels = {
        field: np.array([getattr(each, field) for each in splits["gallery"]])
        for field in ("identity", "camera", "name")
    }
    for mode, trials in reference["gallery"].items():
        drawn = protocols.by_name(f"sysu_mm01/{mode}_single").trials(labels)
        yield differing(f"gallery {mode}: trials", [*range(len(drawn))], [*range(len(trials))])
        for number, (rows, theirs) in enumerate(zip(drawn, trials, strict=False)):
            yield differing(f"gallery {mode} {number}", labels["name"][rows].tolist(), theirs)


def differing(name: str, ours: list, theirs: list) -> Row:
    """The row of two lists that must be equal."""
    wrong = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    return compared(name, wrong, 0, 0.0)


def rate_rows(reference: Mapping[str, Any], optim: ml_collections.ConfigDict) -> Iterator[Row]:
    """The learning rates of every epoch of AGW's recipe."""
    optim, epochs = optim.copy_and_resolve_references(), len(reference["heads"])
    optim.learning_rate = reference["base_lr"]
    groups = {"pretrained": Group("", 0.1)}
    table = rate_table(optim, np.arange(1, 1 + epochs), epochs, groups)
    for column, name in enumerate(("heads", "pretrained_part")):
        yield compared(f"learning rate {name}", table[:, column], reference[name], METRICS)


def tolerance(dtype: str, name: str, errors: Mapping[str, float], exact: float) -> float:
    """How far a quantity may be off in this number format."""
    return exact if dtype == "float64" else max(FLOAT32[0], FLOAT32[1] * errors.get(name, 0.0))


def in_format(dtype: str, function: Callable, *arguments: Any) -> Any:
    """The results, as NumPy arrays, of a function of arrays in a number format."""
    with jax.enable_x64(dtype == "float64"):
        return jax.tree.map(np.asarray, function(*(jnp.asarray(x, dtype) for x in arguments)))


def loss_rows(golden: Golden) -> Iterator[Row]:
    """Weighted and hard triplet losses with their gradients, distances, and generalised mean."""
    z, errors = golden.needed("losses.npz"), golden.json("float32_error.json") or {}
    labels = np.asarray(z["labels"], np.int32)
    functions = {
        "wrt": lambda x: identity.weighted_triplet(x, labels),
        "hard": lambda x: identity.batch_hard_triplet(x, labels, 0.3),
        "normalised": lambda x: identity.weighted_triplet(centres.unit(x), labels),
    }
    for dtype in FORMATS:
        found = {}
        for name in [name for name in z if f"{name}_grad" in z]:
            kind = "normalised" if name.endswith("normalised") else name.split("_")[0]
            scale = float(name.partition("_x")[2].partition("_")[0])
            both = jax.jit(jax.value_and_grad(functions[kind]))
            found[name], found[f"{name}_grad"] = in_format(dtype, both, scale * z["features"])
        found["gem"] = in_format(
            dtype, functools.partial(gem, power=3.0), z["gem_input"].transpose(0, 2, 3, 1)
        )
        found["distance_min_median_max_x1"] = in_format(dtype, distances, z["features"])
        for name in (name for name in z if name not in ("labels", "features", "gem_input")):
            exact = ARRAYS if z[name].ndim else NUMBERS
            allowed = tolerance(dtype, name, errors, exact)
            yield compared(f"losses {name} in {dtype}", found.get(name, np.nan), z[name], allowed)


def distances(features: jax.Array) -> jax.Array:
    """The smallest, median and largest distance of pairs of rows [N, D].

    The median is torch's: of two in the middle, the smaller one.
    """
    apart = identity.distance(features[:, None], features[None])
    apart = jnp.sort(apart[jnp.triu_indices(len(features), k=1)])
    return jnp.stack([apart[0], apart[(len(apart) - 1) // 2], apart[-1]])


def mmd_rows(golden: Golden) -> Iterator[Row]:
    """The mean discrepancy with and without margins, its gradients and its kernels."""
    meta, z = golden.needed("meta.json"), golden.needed("mmd.npz")
    reference, errors = golden.needed("losses.json"), golden.json("float32_error.json") or {}
    labels = np.repeat(np.arange(meta["P"]), meta["K"]).astype(np.int32)
    for dtype in FORMATS:
        found = mmd_values(meta, z, labels, dtype)
        for name in [*(name for name in z if name not in ("source", "target")), *reference]:
            theirs = z[name] if name in z else reference[name]
            allowed = tolerance(dtype, name, errors, ARRAYS if np.ndim(theirs) else NUMBERS)
            yield compared(f"{name} in {dtype}", found.get(name, np.nan), theirs, allowed)


def mmd_values(
    meta: Mapping[str, Any], z: Mapping[str, np.ndarray], labels: np.ndarray, dtype: str
) -> dict[str, np.ndarray]:
    """What we compute, by the names of the directory."""
    width = {"kernels": meta["kernels"], "multiplier": meta["multiplier"]}
    found, both = {}, (z["source"], z["target"])

    def loss(source, target, margin=0.0, labels=labels):
        return divergence.identity_discrepancy(source, target, labels, margin, **width)

    for label, margin in meta["margins"].items():
        step = jax.jit(jax.value_and_grad(functools.partial(loss, margin=margin or 0.0), (0, 1)))
        for scale in (1, 25):
            name = f"margin_{label}_scale_{scale}"
            value, (of_source, of_target) = in_format(dtype, step, *(scale * x for x in both))
            found |= {
                f"mmd_{name}": value,
                f"grad_source_{name}": of_source,
                f"grad_target_{name}": of_target,
            }
    whole = functools.partial(loss, labels=np.zeros_like(labels))
    found["mmd_whole_batch"] = in_format(dtype, whole, *both)
    equal = [np.broadcast_to(z["source"][:1], z["source"].shape)] * 2
    found["mmd_all_rows_equal"] = in_format(dtype, loss, *equal)
    found["per_identity"] = np.array(
        [
            in_format(dtype, functools.partial(loss, labels=labels[own]), *(x[own] for x in both))
            for own in (labels == one for one in np.unique(labels))
        ]
    )
    return found | kernels(z, labels, dtype, width)


def kernels(
    z: Mapping[str, np.ndarray], labels: np.ndarray, dtype: str, width: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The means of the parts of the kernel, and an identity's largest squared distance."""
    twice = np.concatenate([labels, labels])
    same = (twice[:, None] == twice).astype(dtype)
    rows = np.concatenate([z["source"], z["target"]])
    apart, kernel = in_format(dtype, lambda x, y: divergence.kernels_of(x, y, **width), rows, same)
    halves, found = {"x": slice(len(labels)), "y": slice(len(labels), None)}, {}
    for a, first in halves.items():
        for b, second in halves.items():
            own = same[first, second]
            found[f"mean_k_{a}{b}"] = (own * kernel[first, second]).sum() / own.sum()
    last = twice == labels.max()
    found["max_squared_distance_last_identity"] = apart[np.ix_(last, last)].max()
    return found
