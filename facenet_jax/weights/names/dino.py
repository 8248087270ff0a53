"""DINOv2 and DINOv3 in the names of Meta, timm and Hugging Face; see `names.vit`."""

import re

import numpy as np

from facenet_jax.weights.messages import shown
from facenet_jax.weights.names.tables import (
    IGNORED,
    Arrays,
    Format,
    Row,
    drop_first,
    image_kernel,
    linear,
    norm,
    same,
)

_BLOCK = r"blocks\.(\d{1,3})\."
_COMMON: list[Row] = [
    (r"cls_token", "class_token", drop_first),
    (r"patch_embed\.proj\.weight", "patch/kernel", image_kernel),
    (r"patch_embed\.proj\.bias", "patch/bias", same),
    *norm(_BLOCK + r"norm1", r"blocks/\1/norm1"),
    *linear(_BLOCK + r"attn\.qkv", r"blocks/\1/qkv"),
    *linear(_BLOCK + r"attn\.proj", r"blocks/\1/proj"),
    *norm(_BLOCK + r"norm2", r"blocks/\1/norm2"),
    *linear(_BLOCK + r"mlp\.fc1", r"blocks/\1/fc1"),
    *linear(_BLOCK + r"mlp\.fc2", r"blocks/\1/fc2"),
    *norm(r"norm", "norm"),
]
_SCALES: list[Row] = [(_BLOCK + r"ls([12])\.gamma", r"blocks/\1/scale\2", same)]
_V2: list[Row] = [*_COMMON, *_SCALES, (r"pos_embed", "position", drop_first)]
_V2_META: list[Row] = [
    *_V2,
    (r"register_tokens", "registers", drop_first),
    (r"mask_token", IGNORED, same),
]
_HEAD: list[Row] = [(r"(head|fc_norm)\..+", IGNORED, same)]
_V2_TIMM: list[Row] = [*_V2, (r"reg_token", "registers", drop_first), *_HEAD]
_V3_META: list[Row] = [
    *_COMMON,
    *_SCALES,
    (r"storage_tokens", "registers", drop_first),
    (r"mask_token|rope_embed\.periods|" + _BLOCK + r"attn\.qkv\.bias_mask", IGNORED, same),
]
_V3_TIMM: list[Row] = [
    *_COMMON,
    (r"reg_token", "registers", drop_first),
    (_BLOCK + r"gamma_([12])", r"blocks/\1/scale\2", same),
    (_BLOCK + r"attn\.q_bias", r"blocks/\1/query/bias", same),
    (_BLOCK + r"attn\.v_bias", r"blocks/\1/value/bias", same),
    *_HEAD,
]

_V2_LAYER = r"(?:encoder\.layer|layers?)\.(\d{1,3})\."
_V3_LAYER = r"(?:model\.)?layer\.(\d{1,3})\."


def _hugging_face(layer: str, final: str) -> list[Row]:
    """What both have there, by the pattern of a layer and that of the last norm."""
    return [
        (r"embeddings\.cls_token", "class_token", drop_first),
        (r"embeddings\.register_tokens", "registers", drop_first),
        (r"embeddings\.mask_token", IGNORED, same),
        *norm(layer + r"norm1", r"blocks/\1/norm1"),
        *linear(layer + r"attention\.q_proj", r"blocks/\1/query"),
        *linear(layer + r"attention\.k_proj", r"blocks/\1/key"),
        *linear(layer + r"attention\.v_proj", r"blocks/\1/value"),
        *linear(layer + r"attention\.o_proj", r"blocks/\1/proj"),
        *norm(layer + r"norm2", r"blocks/\1/norm2"),
        (layer + r"layer_scale([12])\.lambda1", r"blocks/\1/scale\2", same),
        *norm(final, "norm"),
    ]


_V2_HUGGING_FACE: list[Row] = [
    *_hugging_face(_V2_LAYER, r"layernorm"),
    (r"embeddings\.position_embeddings", "position", drop_first),
    (r"embeddings\.patch_embeddings\.projection\.weight", "patch/kernel", image_kernel),
    (r"embeddings\.patch_embeddings\.projection\.bias", "patch/bias", same),
    *linear(_V2_LAYER + r"attention\.attention\.(query|key|value)", r"blocks/\1/\2"),
    *linear(_V2_LAYER + r"attention\.output\.dense", r"blocks/\1/proj"),
    *linear(_V2_LAYER + r"mlp\.(fc[12])", r"blocks/\1/\2"),
]
_V3_HUGGING_FACE: list[Row] = [
    *_hugging_face(_V3_LAYER, r"(?:model\.)?norm"),
    (r"embeddings\.patch_embeddings\.weight", "patch/kernel", image_kernel),
    (r"embeddings\.patch_embeddings\.bias", "patch/bias", same),
    *linear(_V3_LAYER + r"mlp\.up_proj", r"blocks/\1/fc1"),
    *linear(_V3_LAYER + r"mlp\.down_proj", r"blocks/\1/fc2"),
]


def _timm_registers(
    canonical: Arrays, flat: Arrays
) -> tuple[dict[str, np.ndarray], list[str], str]:
    """timm adds the position of the class token to it where there are registers, and drops it."""
    del flat
    found = dict(canonical)
    position = found.get("position", np.zeros(0))
    if "registers" in found and position.ndim == 2:
        found["position"] = np.pad(position, ((1, 0), (0, 0)))
    return found, [], ""


def _without_key_bias(
    canonical: Arrays, flat: Arrays
) -> tuple[dict[str, np.ndarray], list[str], str]:
    """DINOv3: the bias of the keys is 0, and that of queries and values too where a file has none.

    Its masks must say so, and its rotary periods must be those that are computed here.
    """
    found, problems, note = dict(canonical), [], ""
    biased = [name for name in found if re.search(r"/(qkv|query|value)/bias$", name)]
    kernels = [name for name in found if re.search(r"/(qkv|query)/kernel$", name)]
    if not biased and kernels:
        note = "no bias of queries, keys and values in it, so 0"
        for name in (name for name in kernels if found[name].ndim == 2):
            columns = found[name].shape[1] * (1 if "/qkv/" in name else 3)
            found[f"{name.rpartition('/')[0].rpartition('/')[0]}/qkv/bias"] = np.zeros(
                columns, np.float32
            )
    for name in biased:
        bias = found[name]
        if name.endswith("/query/bias"):
            found.setdefault(name.replace("query", "key"), np.zeros_like(bias))
        elif name.endswith("/qkv/bias") and bias.ndim == 1 and len(bias) % 3 == 0:
            query, _, value = np.split(bias, 3)
            found[name] = np.concatenate([query, np.zeros_like(query), value])
    for name, array in flat.items():
        mask = np.asarray(array, np.float32).ravel() if name.endswith("bias_mask") else None
        if mask is not None and not np.array_equal(
            mask, np.repeat([1.0, 0.0, 1.0], len(mask) // 3)
        ):
            problems.append(f"{shown(name)} is not 1, 0 and 1 by thirds")
    if "rope_embed.periods" in flat:
        periods = np.asarray(flat["rope_embed.periods"], np.float32).ravel()
        ours = 100.0 ** (np.arange(len(periods)) / max(len(periods), 1))
        if not np.allclose(periods, ours, rtol=1e-2):
            problems.append("rope_embed.periods are not those of base 100")
    return found, problems, note


FORMATS = (
    Format("dinov3", "Meta", (r"storage_tokens|rope_embed\.",), _V3_META, _without_key_bias),
    Format("dinov3", "timm", (r"reg_token", _BLOCK + r"gamma_1"), _V3_TIMM, _without_key_bias),
    Format(
        "dinov2",
        "Hugging Face",
        (r"embeddings\.position_embeddings", r".*layer_scale1\."),
        _V2_HUGGING_FACE,
    ),
    Format(
        "dinov3",
        "Hugging Face",
        (r"embeddings\.", r".*layer_scale1\."),
        _V3_HUGGING_FACE,
        _without_key_bias,
    ),
    # Meta's names and timm's differ in these two only.
    Format(
        "dinov2",
        "Meta",
        (_BLOCK + r"ls1\.gamma", r"pos_embed", r"mask_token|register_tokens"),
        _V2_META,
    ),
    Format("dinov2", "timm", (_BLOCK + r"ls1\.gamma", r"pos_embed"), _V2_TIMM, _timm_registers),
)
