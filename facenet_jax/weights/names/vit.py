"""One ViT in the names of whoever published it -> our canonical names, arrays and layouts.

Canonical: patch/kernel [p, p, 3, D], patch/bias [D], class_token [1, D], position [1+n, D],
blocks/{i}/{norm1,norm2}/{scale,bias}, blocks/{i}/{qkv,proj,fc1,fc2}/{kernel [in, out], bias} and
norm/{scale,bias}; columns of qkv are (q, k, v) x head x head width; everything float32.

A family is one table of (pattern, canonical name, layout). Every key of a file meets exactly one
row or the file is refused, with everything that does not fit in one message.
"""

import re
from collections.abc import Mapping

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.messages import listed, shown
from facenet_jax.weights.names.tables import (
    IGNORED,
    Row,
    image_kernel,
    same,
    translate,
    transpose,
)


def _drop_first(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[1:]) if x.shape[0] == 1 else x  # [1, n, D] -> [n, D]


def _join_heads(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1) if x.ndim == 2 else x.reshape(len(x), -1)  # [(D,) heads, d] -> [(D,) D]


def _join_heads_in(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])  # [heads, d, D] -> [D, D]


def _linear(theirs: str, ours: str) -> list[Row]:
    """Rows of a torch Linear; `theirs` is a pattern."""
    return [
        (theirs + r"\.weight", ours + "/kernel", transpose),
        (theirs + r"\.bias", ours + "/bias", same),
    ]


def _norm(theirs: str, ours: str) -> list[Row]:
    """Rows of a torch LayerNorm; `theirs` is a pattern."""
    return [
        (theirs + r"\.weight", ours + "/scale", same),
        (theirs + r"\.bias", ours + "/bias", same),
    ]


_TIMM_BODY: list[Row] = [
    (r"cls_token", "class_token", _drop_first),
    (r"pos_embed", "position", _drop_first),
    (r"patch_embed\.proj\.weight", "patch/kernel", image_kernel),
    (r"patch_embed\.proj\.bias", "patch/bias", same),
    *_norm(r"blocks\.(\d{1,3})\.norm1", r"blocks/\1/norm1"),
    *_linear(r"blocks\.(\d{1,3})\.attn\.qkv", r"blocks/\1/qkv"),
    *_linear(r"blocks\.(\d{1,3})\.attn\.proj", r"blocks/\1/proj"),
    *_norm(r"blocks\.(\d{1,3})\.norm2", r"blocks/\1/norm2"),
    *_linear(r"blocks\.(\d{1,3})\.mlp\.fc1", r"blocks/\1/fc1"),
    *_linear(r"blocks\.(\d{1,3})\.mlp\.fc2", r"blocks/\1/fc2"),
    *_norm(r"norm", "norm"),
]
_TIMM: list[Row] = [*_TIMM_BODY, (r"(head|fc_norm|pre_logits)\..+", IGNORED, same)]

_DINO_PREFIX = r"(?:module\.)?(?:backbone\.)?"
_DINO: list[Row] = [
    *((_DINO_PREFIX + row[0], *row[1:]) for row in _TIMM_BODY),
    (r"(?:module\.)?(head|fc_norm|pre_logits)\..+", IGNORED, same),
]

_BLOCK = r"Transformer/encoderblock_(\d{1,3})/"
_ATTENTION = _BLOCK + r"MultiHeadDotProductAttention_1/"
_GOOGLE: list[Row] = [
    (r"cls", "class_token", _drop_first),
    (r"Transformer/posembed_input/pos_embedding", "position", _drop_first),
    (r"embedding/(kernel|bias)", r"patch/\1", same),
    (_BLOCK + r"LayerNorm_0/(scale|bias)", r"blocks/\1/norm1/\2", same),
    (_ATTENTION + r"(query|key|value)/(kernel|bias)", r"blocks/\1/\2/\3", _join_heads),
    (_ATTENTION + r"out/kernel", r"blocks/\1/proj/kernel", _join_heads_in),
    (_ATTENTION + r"out/bias", r"blocks/\1/proj/bias", same),
    (_BLOCK + r"LayerNorm_2/(scale|bias)", r"blocks/\1/norm2/\2", same),
    (_BLOCK + r"MlpBlock_3/Dense_0/(kernel|bias)", r"blocks/\1/fc1/\2", same),
    (_BLOCK + r"MlpBlock_3/Dense_1/(kernel|bias)", r"blocks/\1/fc2/\2", same),
    (r"Transformer/encoder_norm/(scale|bias)", r"norm/\1", same),
    (r"(head|pre_logits)/.+", IGNORED, same),
]

# On disk, and as transformers 5 renames it in memory.
_VIT = r"(?:vit\.)?"
_LAYER = _VIT + r"(?:encoder\.layer|layers)\.(\d{1,3})\."
_HUGGING_FACE: list[Row] = [
    (_VIT + r"embeddings\.cls_token", "class_token", _drop_first),
    (_VIT + r"embeddings\.position_embeddings", "position", _drop_first),
    (_VIT + r"embeddings\.patch_embeddings\.projection\.weight", "patch/kernel", image_kernel),
    (_VIT + r"embeddings\.patch_embeddings\.projection\.bias", "patch/bias", same),
    *_norm(_LAYER + r"layernorm_before", r"blocks/\1/norm1"),
    *_linear(_LAYER + r"attention\.attention\.(query|key|value)", r"blocks/\1/\2"),
    *_linear(_LAYER + r"attention\.q_proj", r"blocks/\1/query"),
    *_linear(_LAYER + r"attention\.k_proj", r"blocks/\1/key"),
    *_linear(_LAYER + r"attention\.v_proj", r"blocks/\1/value"),
    *_linear(_LAYER + r"attention\.(?:output\.dense|o_proj)", r"blocks/\1/proj"),
    *_norm(_LAYER + r"layernorm_after", r"blocks/\1/norm2"),
    *_linear(_LAYER + r"(?:intermediate\.dense|mlp\.fc1)", r"blocks/\1/fc1"),
    *_linear(_LAYER + r"(?:output\.dense|mlp\.fc2)", r"blocks/\1/fc2"),
    *_norm(_VIT + r"layernorm", "norm"),
    (_VIT + r"(embeddings\.mask_token|(pooler|classifier|decoder)\..+)", IGNORED, same),
]

# The first whose pattern starts a key of the file; DINO before timm, whose names it prefixes.
_FAMILIES: list[tuple[str, str, list[Row]]] = [
    ("Google", r"Transformer/|embedding/kernel", _GOOGLE),
    ("Hugging Face", r"(vit\.)?embeddings\.patch_embeddings\.", _HUGGING_FACE),
    ("DINO", r"module\.|backbone\.|head\.(mlp|last_layer)\.", _DINO),
    ("timm", r"patch_embed\.proj\.|blocks\.\d+\.attn\.", _TIMM),
]

_FOREIGN_PARTS = [
    ("LayerScale", r"(.*\.)?(ls[12]\.gamma|layer_scale[12]\.lambda1|gamma_[12])"),
    ("register tokens", r"(.*\.)?(reg_tokens?|register_tokens|storage_tokens)"),
    ("rotary positions", r"(.*\.)?rope(_embed(dings)?)?\..*"),
]


def to_canonical(
    flat: Mapping[str, np.ndarray], source: str = "the checkpoint"
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(canonical arrays of one ViT, names in `flat` that a trunk does not need).

    Raises UserError for unknown families, for DINOv2 and DINOv3, for arrays that are no finite
    floating numbers, and with both sides of every mismatch where names or shapes do not make up one
    complete ViT.
    """
    family, rows = _family(flat, source)
    canonical, ignored, problems, unknown = translate(flat, rows, source)
    canonical, missing, shapes = _complete(canonical)
    problems += [f"{source} lacks {name}" for name in missing] + shapes + unknown
    if problems:
        raise UserError(f"{source} is not one ViT in {family} names: {listed(problems)}")
    return canonical, ignored


def _family(flat: Mapping[str, np.ndarray], source: str) -> tuple[str, list[Row]]:
    parts = {
        part: next((name for name in flat if re.fullmatch(pattern, name)), None)
        for part, pattern in _FOREIGN_PARTS
    }
    foreign = [f"{part} ({shown(name)})" for part, name in parts.items() if name]
    if foreign:
        kind = "DINOv3" if parts["rotary positions"] else "DINOv2 or a relative of it"
        raise UserError(
            f"{source} is {kind}, which has {' and '.join(foreign)}: this ViT computes without "
            "them; take a timm, Google AugReg, Hugging Face ViT or DINO (v1) file"
        )
    if {"base.cls_token", "b1.1.weight"} & set(flat):
        raise UserError(
            f"{source} is a whole FACENet of the PyTorch release, not one ViT: "
            "import it with facenet convert"
        )
    for family, pattern, rows in _FAMILIES:
        if any(re.match(pattern, name) for name in flat):
            return family, rows
    raise UserError(
        f"{source} holds no ViT in timm, Google, Hugging Face or DINO names; "
        f"its first names are {', '.join(map(shown, list(flat)[:4]))}"
    )


def _complete(
    parts: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """(arrays with q, k and v joined, names that a whole ViT would also have, wrong shapes)."""
    joined = dict(parts)
    for name in parts:
        head, _, leaf = name.partition("/query/")
        trio = [f"{head}/{part}/{leaf}" for part in ("query", "key", "value")]
        if leaf and all(part in parts for part in trio):
            arrays = [joined.pop(part) for part in trio]
            if len({array.shape for array in arrays}) > 1 or not arrays[0].ndim:
                joined[name] = arrays[0]
            else:
                joined[f"{head}/qkv/{leaf}"] = np.concatenate(arrays, -1)
    shapes = _shapes(joined)
    problems = [
        f"{name} has shape {list(joined[name].shape)} where the file's width asks for {list(shape)}"
        for name, shape in shapes.items()
        if name in joined and joined[name].shape != shape
    ]
    problems += [
        f"{name} does not join query, key and value to one qkv"
        for name in joined
        if name not in shapes
    ]
    return joined, [name for name in shapes if name not in joined], problems


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The canonical names and shapes of the ViT that has this file's width, patch and depth."""

    def size(name: str, axis: int, otherwise: int) -> int:
        shape = arrays[name].shape if name in arrays else ()
        return shape[axis] if shape else otherwise

    width = size("class_token", -1, size("norm/scale", -1, 0))
    patch, hidden = size("patch/kernel", 0, 16), size("blocks/0/fc1/bias", -1, 4 * width)
    indices = [int(name.split("/")[1]) for name in arrays if name.startswith("blocks/")]
    shapes = {
        "patch/kernel": (patch, patch, 3, width),
        "patch/bias": (width,),
        "class_token": (1, width),
        "position": (size("position", 0, 1), width),
    }
    for i in range(max(indices, default=0) + 1):
        for layer, (rows, columns) in {
            "qkv": (width, 3 * width),
            "proj": (width, width),
            "fc1": (width, hidden),
            "fc2": (hidden, width),
        }.items():
            shapes[f"blocks/{i}/{layer}/kernel"] = (rows, columns)
            shapes[f"blocks/{i}/{layer}/bias"] = (columns,)
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks/{i}/{norm}/{leaf}": (width,) for leaf in ("scale", "bias")}
    return shapes | {"norm/scale": (width,), "norm/bias": (width,)}
