"""How many FLOPs the network needs: our own count, from the config alone.

Counted are the matrix products that something reads, a multiply-add as 2; nothing elementwise, and
no product twice, so rematerialisation adds nothing. These are "model FLOPs", the numerator of MFU.

    M bands, n patches of p x p pixels, T = 1 + n tokens, D width, L depth, C identities

The backward pass of a product is two products of its size, one for each operand's gradient.
"""

from collections.abc import Collection, Sequence

import ml_collections

from data_tfds.samples import BANDS
from facenet_jax.models import checked_size, vit


def product(rows: int, inner: int, columns: int) -> int:
    """FLOPs of [rows, inner] times [inner, columns]: 2 rows inner columns."""
    return 2 * rows * inner * columns


def attention(queries: int, tokens: int, width: int) -> int:
    """FLOPs of Q K^T and of the weights times V: 2 queries tokens width each, for all heads."""
    return product(queries, width, tokens) + product(queries, tokens, width)


def block(queries: int, tokens: int, width: int) -> int:
    """FLOPs of a transformer block of which `queries` tokens are computed, of `tokens` in all.

    q for the queries, k and v for all tokens: 2 (queries + 2 tokens) D^2; attention; the projection
    2 queries D^2; the MLP D -> 4D -> D, 16 queries D^2. With queries = T: 24 T D^2 + 4 T^2 D. A
    last block computes the class token alone: queries = 1.
    """
    qkv = product(queries, width, width) + product(tokens, width, 2 * width)
    mlp = product(queries, width, 4 * width) + product(queries, 4 * width, width)
    return qkv + attention(queries, tokens, width) + product(queries, width, width) + mlp


def mfmp(patches: int, width: int, inner: int) -> int:
    """FLOPs of MFMP in one direction: q, k, v of width `inner`, attention over n patches, W_O.

    8 n D inner + 4 n^2 inner. The release's windows are as many products as heads of that width.
    """
    projections = 3 * product(patches, width, inner) + product(patches, inner, width)
    return projections + attention(patches, patches, inner)


def forward(
    config: ml_collections.ConfigDict, image_size: Sequence[int], identities: int
) -> dict[str, int]:
    """Forward FLOPs of one triplet by the part of the network, everything included.

    Args:
        config: the section `model`.
        image_size: height, width in pixels.
        identities: C; the classes of each band's classifier.

    `patch`: M products [n, 3 p^2] x [3 p^2, D]. `trunk`: M (L - 1) whole blocks. `last`: M blocks
    of one query. `mfmp`: two directions, R <- N and N <- R. `flare_heads`: two blocks of one query;
    `flare_logits`: two products [1, D] x [D, 2]. `classifiers`: M products [1, D] x [D, C].
    """
    size = checked_size(config)
    width, depth = size["width"], size["depth"]
    rows, columns = vit.grid(tuple(image_size), config.patch, config.stride or config.patch)
    patches, bands = rows * columns, len(BANDS)
    tokens = 1 + patches
    parts = {
        "patch": bands * product(patches, 3 * config.patch**2, width),
        "trunk": bands * (depth - 1) * block(tokens, tokens, width),
        "last": bands * block(1, tokens, width),
        "classifiers": bands * product(1, width, identities),
    }
    if config.mfmp.enabled:
        inner = config.mfmp.heads * (config.mfmp.head_width or width)
        parts["mfmp"] = 2 * mfmp(patches, width, inner)
    if config.flare_heads:
        parts["flare_heads"] = 2 * block(1, tokens, width)
        parts["flare_logits"] = 2 * product(1, width, 2)
    return parts


def embedding(config: ml_collections.ConfigDict, image_size: Sequence[int]) -> dict[str, int]:
    """FLOPs of one embedding from three bands by the part of the network.

    Classifiers and flare heads are not needed, and MFMP is only where FCE reads its masks.
    """
    parts = forward(config, image_size, 0)
    used = {"patch", "trunk", "last"} | ({"mfmp"} if config.fce.enabled else set())
    return {name: count for name, count in parts.items() if name in used}


def training(
    config: ml_collections.ConfigDict,
    image_size: Sequence[int],
    identities: int,
    losses: Collection[str],
) -> dict[str, int]:
    """FLOPs of one training triplet, forward and backward, by the part of the network.

    Args:
        config, image_size, identities: as for `forward`.
        losses: the names of the losses with a weight, `step.used_losses`.

    Three times the forward count, with these exceptions. Images need no gradient: the patch
    embedding counts twice. What no loss reads counts nothing: flare logits without `mask_kl` and
    `flare`, classifiers without `id` and `mc`. Flare heads without those two losses still run
    forward, once, for the statistics of their BatchNorm. MFMP counts once where no gradient reaches
    it, as behind a hard mask, and not at all where neither FCE nor flare heads read it. The
    products within a loss, a few of batch x batch x D, are left out.
    """
    heads_learn = not {"mask_kl", "flare"}.isdisjoint(losses)
    masks_learn = config.fce.enabled and config.fce.mask != "hard"
    masks_read = config.fce.enabled or config.flare_heads
    times = {
        "patch": 2,
        "trunk": 3,
        "last": 3,
        "classifiers": 0 if {"id", "mc"}.isdisjoint(losses) else 3,
        "mfmp": 3 if heads_learn or masks_learn else int(masks_read),
        "flare_heads": 3 if heads_learn else 1,
        "flare_logits": 3 if heads_learn else 0,
    }
    parts = forward(config, image_size, identities)
    return {name: times[name] * count for name, count in parts.items() if times[name]}
