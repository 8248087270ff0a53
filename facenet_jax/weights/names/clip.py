"""The image tower of CLIP in the names of OpenAI (and open_clip), timm and Hugging Face."""

import numpy as np

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
    transpose,
)


def _row(x: np.ndarray) -> np.ndarray:
    return x.reshape(1, -1) if x.ndim == 1 else x  # [D] -> [1, D]


_BLOCK = r"visual\.transformer\.resblocks\.(\d{1,3})\."
_OPENAI: list[Row] = [
    (r"visual\.class_embedding", "class_token", _row),
    (r"visual\.positional_embedding", "position", same),
    (r"visual\.conv1\.weight", "patch/kernel", image_kernel),
    *norm(r"visual\.ln_pre", "norm_before"),
    *norm(_BLOCK + r"ln_1", r"blocks/\1/norm1"),
    (_BLOCK + r"attn\.in_proj_weight", r"blocks/\1/qkv/kernel", transpose),
    (_BLOCK + r"attn\.in_proj_bias", r"blocks/\1/qkv/bias", same),
    *linear(_BLOCK + r"attn\.out_proj", r"blocks/\1/proj"),
    *norm(_BLOCK + r"ln_2", r"blocks/\1/norm2"),
    *linear(_BLOCK + r"mlp\.c_fc", r"blocks/\1/fc1"),
    *linear(_BLOCK + r"mlp\.c_proj", r"blocks/\1/fc2"),
    *norm(r"visual\.ln_post", "norm"),
    (r"visual\.proj", "projection/kernel", same),
    (
        r"(transformer|token_embedding|ln_final)\..+|positional_embedding|text_projection"
        r"|logit_scale|logit_bias|attn_mask|input_resolution|context_length|vocab_size",
        IGNORED,
        same,
    ),
]

_TIMM_BLOCK = r"blocks\.(\d{1,3})\."
_TIMM: list[Row] = [
    (r"cls_token", "class_token", drop_first),
    (r"pos_embed", "position", drop_first),
    (r"patch_embed\.proj\.weight", "patch/kernel", image_kernel),
    *norm(r"norm_pre", "norm_before"),
    *norm(_TIMM_BLOCK + r"norm1", r"blocks/\1/norm1"),
    *linear(_TIMM_BLOCK + r"attn\.qkv", r"blocks/\1/qkv"),
    *linear(_TIMM_BLOCK + r"attn\.proj", r"blocks/\1/proj"),
    *norm(_TIMM_BLOCK + r"norm2", r"blocks/\1/norm2"),
    *linear(_TIMM_BLOCK + r"mlp\.(fc[12])", r"blocks/\1/\2"),
    *norm(r"norm", "norm"),
    *linear(r"head", "projection"),
    (r"fc_norm\..+", IGNORED, same),
]

_VISION = r"vision_model\."
_LAYER = _VISION + r"encoder\.layers\.(\d{1,3})\."
_HUGGING_FACE: list[Row] = [
    (_VISION + r"embeddings\.class_embedding", "class_token", _row),
    (_VISION + r"embeddings\.position_embedding\.weight", "position", same),
    (_VISION + r"embeddings\.patch_embedding\.weight", "patch/kernel", image_kernel),
    *norm(_VISION + r"pre_layrnorm", "norm_before"),
    *norm(_LAYER + r"layer_norm1", r"blocks/\1/norm1"),
    *linear(_LAYER + r"self_attn\.q_proj", r"blocks/\1/query"),
    *linear(_LAYER + r"self_attn\.k_proj", r"blocks/\1/key"),
    *linear(_LAYER + r"self_attn\.v_proj", r"blocks/\1/value"),
    *linear(_LAYER + r"self_attn\.out_proj", r"blocks/\1/proj"),
    *norm(_LAYER + r"layer_norm2", r"blocks/\1/norm2"),
    *linear(_LAYER + r"mlp\.(fc[12])", r"blocks/\1/\2"),
    *norm(_VISION + r"post_layernorm", "norm"),
    (r"visual_projection\.weight", "projection/kernel", transpose),
    (
        r"(text_model|text_projection)\..+|logit_scale|" + _VISION + r"embeddings\.position_ids",
        IGNORED,
        same,
    ),
]


def _timm_head(canonical: Arrays, flat: Arrays) -> tuple[dict[str, np.ndarray], list[str], str]:
    """timm keeps the projection as a classifier of bias 0; another bias says that it is one."""
    del flat
    found = dict(canonical)
    note = "timm's names do not say the activation: config.model.activation decides"
    if np.any(found.pop("projection/bias", np.zeros(1))):
        found.pop("projection/kernel", None)
        note += "; its head is a classifier and no projection"
    return found, [], note


FORMATS = (
    Format("clip", "OpenAI", (r"visual\.conv1",), _OPENAI),
    Format("clip", "Hugging Face", (r"vision_model\.",), _HUGGING_FACE),
    Format("clip", "timm", (r"norm_pre\.",), _TIMM, _timm_head),
)
