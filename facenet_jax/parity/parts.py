"""Parity of the parts that need no FACENet: losses, metrics, re-ranking, flare labels, a ViT."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data_tfds import flare
from data_tfds.errors import UserError
from data_tfds.samples import NEAR_INFRARED, VISIBLE
from facenet_jax import optim
from facenet_jax.inputs.augment import normalise
from facenet_jax.losses import centres, divergence, identity
from facenet_jax.models.layers import plain_layer_norm
from facenet_jax.models.trunk import plain_tokens
from facenet_jax.parity.rows import ARRAYS, Golden, Row, absent, compared
from facenet_jax.retrieval import metrics, rerank
from facenet_jax.weights.merge import depth_of, trunk_parameters
from facenet_jax.weights.names.vit import to_canonical
from facenet_jax.weights.positions import fit_position, resize_position

RERANKED = 1e-2  # the release accumulates re-ranked distances in float16


def part_rows(golden: Golden, recipes: Mapping[str, ml_collections.ConfigDict]) -> Iterator[Row]:
    """Rows of whatever the directory has of the parts, and `absent` for what it has not."""
    yield from vit_rows(golden)
    yield from rate_rows(golden, recipes)
    components = golden.arrays("components_official.npz")
    if components is None:
        yield absent("components_official.npz")
        return
    for rows in (position_rows, loss_rows, comparison_rows, flare_rows, retrieval_rows):
        yield from rows(components)


def vit_rows(golden: Golden) -> Iterator[Row]:
    """Tokens of a plain ViT in timm names, at an image size that resizes its positions."""
    z, state = golden.arrays("vit_timm_small.npz"), golden.arrays("vit_timm_small.pth")
    if z is None or state is None:
        yield absent("vit_timm_small")
        return
    meta = golden.needed("meta.json")
    canonical, _ = to_canonical(state, str(golden.folder / "vit_timm_small.pth"))
    patch = canonical["patch/kernel"].shape[0]
    grid = tuple(size // patch for size in z["images"].shape[1:3])
    canonical["position"], _ = fit_position(canonical["position"], grid, "vit_timm_small.pth")
    yield compared("vit pos_embed", canonical["position"][None], z["pos_embed"], ARRAYS)
    images, heads = normalise(jnp.asarray(z["images"])), meta["heads"]
    tokens = jax.jit(plain_tokens, static_argnums=2)
    depth = depth_of(canonical)
    before = tokens(trunk_parameters(canonical, depth - 1), images, heads)
    yield compared("vit tokens_before_last_block", before, z["tokens_before_last_block"], ARRAYS)
    scale = {"scale": canonical["norm/scale"], "bias": canonical["norm/bias"]}
    after = tokens(trunk_parameters(canonical, depth), images, heads)
    yield compared("vit tokens_final", plain_layer_norm(scale, after), z["tokens_final"], ARRAYS)


def rate_rows(golden: Golden, recipes: Mapping[str, ml_collections.ConfigDict]) -> Iterator[Row]:
    """Learning rates of the weights in every epoch, by the recipe's name in the file."""
    tables = golden.json("lr_by_epoch.json")
    if tables is None:
        yield absent("lr_by_epoch.json")
        return
    for file, rates in tables.items():
        name = file.split("/")[0].lower()
        if name not in recipes:
            yield absent(f"learning rates of {file}")
            continue
        c = recipes[name]
        groups = optim.parameter_groups({}, c.optim.bias_lr_factor)
        ours = optim.rate_table(c.optim, np.arange(1, len(rates) + 1), c.train.epochs, groups)
        yield compared(f"learning rates {name}", ours[:, 0], rates, ARRAYS)


def position_rows(z: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """Position embeddings of a square grid on other grids."""
    names = [name for name in z if name.startswith("pos_embed_")]
    grids = {name: tuple(map(int, name.split("_")[-1].split("x"))) for name in names}
    source = next(name for name, grid in grids.items() if grid[0] == grid[1])
    for name in names:
        resized = resize_position(z[source][0], grids[source], grids[name])
        yield compared(name, resized[None], z[name], ARRAYS)


def loss_rows(z: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """Triplet losses with their gradients, and the pieces of the KL losses."""
    x, labels = jnp.asarray(z["triplet_features"]), jnp.asarray(z["triplet_labels"])
    for name, margin in (("triplet_soft", None), ("triplet_margin03", 0.3)):
        triplet = jax.jit(jax.value_and_grad(identity.batch_hard_triplet), static_argnums=2)
        value, gradient = triplet(x, labels, margin)
        yield compared(name, value, z[name], ARRAYS)
        yield compared(f"{name}_grad", gradient, z[f"{name}_grad"], ARRAYS)
    a, b = jnp.asarray(z["logits_a"]), jnp.asarray(z["logits_b"])
    classes = a.shape[1]  # the release's "ab" is KL(b || a), a mean over all elements
    yield compared(
        "kl_ab_mean", divergence.kl_divergence(b, a).mean() / classes, z["kl_ab_mean"], ARRAYS
    )
    yield compared(
        "kl_ba_mean", divergence.kl_divergence(a, b).mean() / classes, z["kl_ba_mean"], ARRAYS
    )
    yield compared("kl_min", divergence.min_kl(a, b, "batch"), z["kl_min"], ARRAYS)


def comparison_rows(z: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """3M, HC and CdC as the release computes them."""
    features = [jnp.asarray(z[k]) for k in ("triplet_features", "features_2", "features_3")]
    identities = len(np.unique(z["triplet_labels"]))
    of_modalities, of_samples = cdc_official(features, identities)
    for name, value in {
        "loss_3m_margin3": mmm_official(features, identities, 3.0),
        "loss_3m_margin1": mmm_official(features, identities, 1.0),
        "loss_hc_cos": hc_official(features, identities),
        "loss_hc_l2_margin10": hc_official(features, identities, "l2", 10.0),
        "loss_cdc_modality": of_modalities,
        "loss_cdc_sample": of_samples,
        "loss_cdc": of_modalities + of_samples,
    }.items():
        yield compared(name, value, z[name], ARRAYS)


def mmm_official(
    features: Sequence[jax.Array] | jax.Array, identities: int, margin: float = 3.0
) -> jax.Array:
    """3M as the release has it: raw features and margin 3.

    `features` M arrays [B, D] whose rows are `identities` consecutive groups of equal size.
    """
    middle = jnp.mean(groups_of(features, identities), axis=2)
    return jnp.sum(centres.largest_margin_gap(middle, margin))


def hc_official(
    features: Sequence[jax.Array] | jax.Array,
    identities: int,
    metric: Literal["cosine", "l2"] = "cosine",
    margin: float = 10.0,
) -> jax.Array:
    """HC as the release has it: `cosine` has no margin, `l2` draws distances to the margin.

    `features` as in `mmm_official`; the first two modalities count.
    """
    middle = jnp.mean(groups_of(features[:2], identities), axis=2)
    distance = centres.centre_distance(middle, metric)
    if metric == "cosine":
        return jnp.sum(jnp.maximum(0.0, distance))
    return jnp.sum(jnp.abs(margin - distance))


def cdc_official(
    features: Sequence[jax.Array] | jax.Array, identities: int, margin: float = 0.1
) -> tuple[jax.Array, jax.Array]:
    """CdC as the release has it: (modality term, sample term); the loss is their sum.

    `features` as in `mmm_official`, at least M identities. Its defects are kept: the modality
    centres are those of the first identity, `identities` times over; the sample term takes the
    first M identities only; the margin is a floor of each distance, without a gradient below it.
    """
    groups = groups_of(features, identities)
    modalities, _, samples, _ = groups.shape
    if identities < modalities:
        raise UserError(
            f"The release's CdC loss needs at least {modalities} identities in a batch, "
            f"not {identities}: use more identities or the loss 'cdc'."
        )
    first = jnp.mean(groups[:, 0], axis=1)
    of_modalities = identities * jnp.mean(jnp.maximum(margin, centres.pairwise_squared(first)))
    if samples == 1:
        return of_modalities, jnp.zeros(())
    samples_of_first = jnp.mean(groups, axis=0)[:modalities]
    pairs = jax.vmap(centres.pairwise_squared)(samples_of_first)
    return of_modalities, jnp.sum(jnp.mean(jnp.maximum(margin, pairs), axis=1))


def groups_of(features: Sequence[jax.Array] | jax.Array, identities: int) -> jax.Array:
    """Modalities cut into consecutive groups of equal size, [M, identities, K, D]."""
    stacked = centres.stack(features)
    modalities, batch, width = stacked.shape
    if batch % identities:
        raise UserError(
            f"A batch of {batch} rows does not divide into {identities} identities of equal size."
        )
    return stacked.reshape(modalities, identities, batch // identities, width)


def flare_rows(z: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """The release's histogram ratios and its flare labels."""
    ratio = np.array(
        [[flare.histogram_ratio(image) for image in pair] for pair in z["flare_images"]]
    )
    yield compared("flare_ratio_official", ratio, z["flare_ratio_official"], ARRAYS)
    label = flare.labels(
        ratio,
        ratio,
        (VISIBLE, NEAR_INFRARED),
        statistic="histogram",
        rule="both",
        threshold=0.095,
    )
    yield compared("flare_label_official", label[:, 0], z["flare_label_official"], 0.0)


def retrieval_rows(z: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """CMC and mAP under both filters, re-ranked distances and their scores."""
    features, identities = (
        (z["query_features"], z["gallery_features"]),
        (z["query_ids"], z["gallery_ids"]),
    )
    for group in ("camera", "scene"):
        groups = z[f"query_{group}s"], z[f"gallery_{group}s"]
        result = metrics.per_query(*features, *identities, *groups)
        yield from score_rows(z, group, result, ARRAYS)
        if f"{group}_ap" in z:
            yield compared(f"{group}_ap", result.average_precision, z[f"{group}_ap"], ARRAYS)
    distances = {
        f"rerank_k{k1}_{k2}_l03": np.concatenate(list(rerank.rerank(*features, k1, k2, 0.3)))
        for k1, k2 in ((20, 6), (50, 15))
    }
    for name, ours in distances.items():
        yield compared(name, ours, z[name], RERANKED)
    cameras = z["query_cameras"], z["gallery_cameras"]
    result = metrics.per_query_of_distances([distances["rerank_k20_6_l03"]], *identities, *cameras)
    yield from score_rows(z, "rerank_camera", result, RERANKED)


def score_rows(
    z: Mapping[str, np.ndarray], name: str, result: metrics.PerQuery, tolerance: float
) -> Iterator[Row]:
    """CMC at every recorded rank and mAP."""
    ranks = np.arange(1, len(z[f"{name}_cmc"]) + 1)
    cmc = [(result.first_match <= rank).mean() for rank in ranks]
    yield compared(f"{name}_cmc", cmc, z[f"{name}_cmc"], tolerance)
    yield compared(f"{name}_map", result.average_precision.mean(), z[f"{name}_map"], tolerance)
