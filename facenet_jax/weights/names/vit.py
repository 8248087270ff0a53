"""One ViT in the names of whoever published it -> our canonical names, arrays and layouts.

Canonical: patch/kernel [p, p, 3, D], patch/bias [D], class_token [1, D], position [1+n, D],
blocks/{i}/{norm1,norm2}/{scale,bias}, blocks/{i}/{qkv,proj,fc1,fc2}/{kernel [in, out], bias} and
norm/{scale,bias}; columns of qkv are (q, k, v) x head x head width; everything float32. DINOv2 and
DINOv3 add registers [R, D] and blocks/{i}/{scale1,scale2} [D], CLIP norm_before/{scale,bias} and
projection/kernel [D, P]; DINOv3 has no position and CLIP no patch/bias.

A format is one table of (pattern, canonical name, layout). Every key of a file meets exactly one
row or the file is refused, with everything that does not fit in one message.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.messages import listed, shown
from facenet_jax.weights.names import clip, dino
from facenet_jax.weights.names.tables import (
    IGNORED,
    Format,
    Row,
    drop_first,
    image_kernel,
    linear,
    norm,
    same,
    translate,
)


def _join_heads(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1) if x.ndim == 2 else x.reshape(len(x), -1)  # [(D,) heads, d] -> [(D,) D]


def _join_heads_in(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])  # [heads, d, D] -> [D, D]


_TIMM_BODY: list[Row] = [
    (r"cls_token", "class_token", drop_first),
    (r"pos_embed", "position", drop_first),
    (r"patch_embed\.proj\.weight", "patch/kernel", image_kernel),
    (r"patch_embed\.proj\.bias", "patch/bias", same),
    *norm(r"blocks\.(\d{1,3})\.norm1", r"blocks/\1/norm1"),
    *linear(r"blocks\.(\d{1,3})\.attn\.qkv", r"blocks/\1/qkv"),
    *linear(r"blocks\.(\d{1,3})\.attn\.proj", r"blocks/\1/proj"),
    *norm(r"blocks\.(\d{1,3})\.norm2", r"blocks/\1/norm2"),
    *linear(r"blocks\.(\d{1,3})\.mlp\.fc1", r"blocks/\1/fc1"),
    *linear(r"blocks\.(\d{1,3})\.mlp\.fc2", r"blocks/\1/fc2"),
    *norm(r"norm", "norm"),
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
    (r"cls", "class_token", drop_first),
    (r"Transformer/posembed_input/pos_embedding", "position", drop_first),
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
    (_VIT + r"embeddings\.cls_token", "class_token", drop_first),
    (_VIT + r"embeddings\.position_embeddings", "position", drop_first),
    (_VIT + r"embeddings\.patch_embeddings\.projection\.weight", "patch/kernel", image_kernel),
    (_VIT + r"embeddings\.patch_embeddings\.projection\.bias", "patch/bias", same),
    *norm(_LAYER + r"layernorm_before", r"blocks/\1/norm1"),
    *linear(_LAYER + r"attention\.attention\.(query|key|value)", r"blocks/\1/\2"),
    *linear(_LAYER + r"attention\.q_proj", r"blocks/\1/query"),
    *linear(_LAYER + r"attention\.k_proj", r"blocks/\1/key"),
    *linear(_LAYER + r"attention\.v_proj", r"blocks/\1/value"),
    *linear(_LAYER + r"attention\.(?:output\.dense|o_proj)", r"blocks/\1/proj"),
    *norm(_LAYER + r"layernorm_after", r"blocks/\1/norm2"),
    *linear(_LAYER + r"(?:intermediate\.dense|mlp\.fc1)", r"blocks/\1/fc1"),
    *linear(_LAYER + r"(?:output\.dense|mlp\.fc2)", r"blocks/\1/fc2"),
    *norm(_VIT + r"layernorm", "norm"),
    (_VIT + r"(embeddings\.mask_token|(pooler|classifier|decoder)\..+)", IGNORED, same),
]

FAMILIES = {"vit": "a ViT", "dinov2": "DINOv2", "dinov3": "DINOv3", "clip": "CLIP"}
"""Families of ViTs, by the name of their backbone, in words."""

# The first whose marks a file has; DINO before timm, whose names it prefixes.
FORMATS = (
    *clip.FORMATS,
    *dino.FORMATS,
    Format("vit", "Google", (r"Transformer/|embedding/kernel",), _GOOGLE),
    Format("vit", "Hugging Face", (r"(vit\.)?embeddings\.patch_embeddings\.",), _HUGGING_FACE),
    Format("vit", "DINO", (r"module\.|backbone\.|head\.(mlp|last_layer)\.",), _DINO),
    Format("vit", "timm", (r"patch_embed\.proj\.|blocks\.\d+\.attn\.",), _TIMM),
)

_FOREIGN_PARTS = [
    ("LayerScale", r"(.*\.)?(ls[12]\.gamma|layer_scale[12]\.lambda1|gamma_[12])"),
    ("register tokens", r"(.*\.)?(reg_tokens?|register_tokens|storage_tokens)"),
    ("rotary positions", r"(.*\.)?rope(_embed(dings)?)?\..*"),
]


@dataclasses.dataclass(frozen=True)
class Recognised:
    """One ViT of a file, in canonical names."""

    family: str  # one of FAMILIES
    publisher: str  # whose names its tensors have in the file
    canonical: Mapping[str, np.ndarray]
    ignored: Sequence[str]  # names that a trunk does not need
    note: str  # what was made up for it, for the report


def to_canonical(
    flat: Mapping[str, np.ndarray], source: str = "the checkpoint"
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(canonical arrays of one plain ViT, names in `flat` that a trunk does not need).

    Raises UserError as `recognised` does.
    """
    found = recognised(flat, source)
    return dict(found.canonical), list(found.ignored)


def recognised(
    flat: Mapping[str, np.ndarray], source: str = "the checkpoint", family: str = "vit"
) -> Recognised:
    """The ViT of this family in a file, whoever named its tensors.

    Raises UserError for files of no or another family, for arrays that are no finite floating
    numbers, and with both sides of every mismatch where names or shapes do not make up one complete
    ViT.
    """
    if family != "vit":
        flat = unwrapped(flat)
    known = _format(flat, source, family)
    parts, ignored, problems, unknown = translate(flat, known.rows, source)
    parts, unfit, note = known.finish(parts, flat)
    canonical, missing, shapes = _complete(parts, family)
    problems += [f"{source} lacks {name}" for name in missing] + unfit + shapes + unknown
    if problems:
        raise UserError(
            f"{source} is not {_one(family)} in {known.publisher} names: {listed(problems)}"
        )
    return Recognised(family, known.publisher, canonical, ignored, note)


def _one(family: str) -> str:
    return "one ViT" if family == "vit" else f"one {FAMILIES[family]}"


def unwrapped(flat: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """`flat` without what a training checkpoint puts before all of its names."""
    for prefix in ("teacher.", "backbone."):
        if flat and all(name.startswith(prefix) for name in flat):
            flat = {name.removeprefix(prefix): array for name, array in flat.items()}
    return flat


def _format(flat: Mapping[str, np.ndarray], source: str, family: str) -> Format:
    """The format of a file of this family; raises UserError for another one."""
    if {"base.cls_token", "b1.1.weight"} & set(flat):
        raise UserError(
            f"{source} is a whole FACENet of the PyTorch release, not one ViT: "
            "import it with facenet convert"
        )
    if family == "vit":
        _refuse_foreign(flat, source)
    found = next((known for known in FORMATS if known.meets(list(flat))), None)
    if found is not None and found.family == family:
        return found
    if found is None:
        publishers = sorted({known.publisher for known in FORMATS if known.family == family})
        raise UserError(
            f"{source} holds no {FAMILIES[family].removeprefix('a ')} in "
            f"{', '.join(publishers[:-1])} or {publishers[-1]} names; "
            f"its first names are {', '.join(map(shown, list(flat)[:4]))}"
        )
    raise UserError(
        f"{source} is {FAMILIES[found.family]} in {found.publisher} names, and "
        f"config.model.backbone is '{family}', {FAMILIES[family]}; set "
        f"--config.model.backbone={found.family} in a recipe for it, or take a file of "
        f"{FAMILIES[family]}"
    )


def _refuse_foreign(flat: Mapping[str, np.ndarray], source: str) -> None:
    parts = {
        part: next((name for name in flat if re.fullmatch(pattern, name)), None)
        for part, pattern in _FOREIGN_PARTS
    }
    foreign = [f"{part} ({shown(name)})" for part, name in parts.items() if name]
    if foreign:
        kind = "DINOv3" if parts["rotary positions"] else "DINOv2 or a relative of it"
        raise UserError(
            f"{source} is {kind}, which has {' and '.join(foreign)}: config.model.backbone 'vit' "
            "computes without them; take backbone 'dinov2' or 'dinov3', or a timm, Google AugReg, "
            "Hugging Face ViT or DINO (v1) file"
        )


def _complete(
    parts: dict[str, np.ndarray],
    family: str,
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
    shapes = _shapes(joined, family)
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


def _shapes(arrays: Mapping[str, np.ndarray], family: str) -> dict[str, tuple[int, ...]]:
    """The canonical names and shapes of the ViT that has this file's width, patch and depth."""

    def size(name: str, axis: int, otherwise: int) -> int:
        shape = arrays[name].shape if name in arrays else ()
        return shape[axis] if shape else otherwise

    width = size("class_token", -1, size("norm/scale", -1, 0))
    patch, hidden = size("patch/kernel", 0, 16), size("blocks/0/fc1/bias", -1, 4 * width)
    indices = [int(name.split("/")[1]) for name in arrays if name.startswith("blocks/")]
    shapes = {"patch/kernel": (patch, patch, 3, width), "class_token": (1, width)}
    if family != "clip":
        shapes["patch/bias"] = (width,)
    if family != "dinov3":
        shapes["position"] = (size("position", 0, 1), width)
    if family == "dinov3" or (family == "dinov2" and "registers" in arrays):
        shapes["registers"] = (size("registers", 0, 1), width)
    if family == "clip":
        shapes |= {f"norm_before/{leaf}": (width,) for leaf in ("scale", "bias")}
        if "projection/kernel" in arrays:  # not all files have it, and not all models need it
            shapes["projection/kernel"] = (width, size("projection/kernel", -1, 1))
    for i in range(max(indices, default=0) + 1):
        for layer, (rows, columns) in {
            "qkv": (width, 3 * width),
            "proj": (width, width),
            "fc1": (width, hidden),
            "fc2": (hidden, width),
        }.items():
            shapes[f"blocks/{i}/{layer}/kernel"] = (rows, columns)
            shapes[f"blocks/{i}/{layer}/bias"] = (columns,)
        vectors = ["norm1/scale", "norm1/bias", "norm2/scale", "norm2/bias"]
        vectors += ["scale1", "scale2"] if family.startswith("dino") else []
        shapes |= {f"blocks/{i}/{vector}": (width,) for vector in vectors}
    return shapes | {"norm/scale": (width,), "norm/bias": (width,)}
