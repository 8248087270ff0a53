"""One ViT in canonical names and arrays, and the same in the names of every family."""

import numpy as np


def canonical_vit(width=8, depth=3, patch=4, positions=9, hidden=12, seed=0):
    """A ViT of random numbers in the names and layouts of facenet_jax.weights.names.vit."""
    rng = np.random.default_rng(seed)
    shapes = {
        "patch/kernel": (patch, patch, 3, width),
        "patch/bias": (width,),
        "class_token": (1, width),
        "position": (1 + positions, width),
    }
    for i in range(depth):
        for layer, rows, columns in (
            ("qkv", width, 3 * width),
            ("proj", width, width),
            ("fc1", width, hidden),
            ("fc2", hidden, width),
        ):
            shapes[f"blocks/{i}/{layer}/kernel"] = (rows, columns)
            shapes[f"blocks/{i}/{layer}/bias"] = (columns,)
        for norm in ("norm1", "norm2"):
            shapes[f"blocks/{i}/{norm}/scale"] = shapes[f"blocks/{i}/{norm}/bias"] = (width,)
    shapes |= {"norm/scale": (width,), "norm/bias": (width,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _torch(arrays, names):
    """{their name: tensor} for dotted `names` of layers; q, k, v apart where `names` has them."""
    flat = {}
    for path, array in arrays.items():
        layer, _, leaf = path.rpartition("/")
        kind = layer.split("/")[-1]
        block = layer.split("/")[1] if layer.startswith("blocks/") else ""
        leaf = "bias" if leaf == "bias" else "weight"
        if path == "patch/kernel":
            flat[names["patch"] + ".weight"] = array.transpose(3, 2, 0, 1)
        elif path in ("class_token", "position"):
            flat[names[path]] = array[None]
        elif kind == "qkv" and "query" in names:
            for part, piece in zip(("query", "key", "value"), np.split(array, 3, -1), strict=True):
                flat[f"{names[part].format(block)}.{leaf}"] = piece.T
        else:
            flat[f"{names[kind].format(block)}.{leaf}"] = array.T
    return flat


TIMM = {
    "patch": "patch_embed.proj",
    "class_token": "cls_token",
    "position": "pos_embed",
    "norm1": "blocks.{}.norm1",
    "qkv": "blocks.{}.attn.qkv",
    "proj": "blocks.{}.attn.proj",
    "norm2": "blocks.{}.norm2",
    "fc1": "blocks.{}.mlp.fc1",
    "fc2": "blocks.{}.mlp.fc2",
    "norm": "norm",
}
_HF_COMMON = {
    "patch": "embeddings.patch_embeddings.projection",
    "class_token": "embeddings.cls_token",
    "position": "embeddings.position_embeddings",
    "norm": "layernorm",
}
HF_DISK = _HF_COMMON | {
    "norm1": "encoder.layer.{}.layernorm_before",
    "query": "encoder.layer.{}.attention.attention.query",
    "key": "encoder.layer.{}.attention.attention.key",
    "value": "encoder.layer.{}.attention.attention.value",
    "proj": "encoder.layer.{}.attention.output.dense",
    "norm2": "encoder.layer.{}.layernorm_after",
    "fc1": "encoder.layer.{}.intermediate.dense",
    "fc2": "encoder.layer.{}.output.dense",
}
HF_MEMORY = _HF_COMMON | {
    "norm1": "layers.{}.layernorm_before",
    "query": "layers.{}.attention.q_proj",
    "key": "layers.{}.attention.k_proj",
    "value": "layers.{}.attention.v_proj",
    "proj": "layers.{}.attention.o_proj",
    "norm2": "layers.{}.layernorm_after",
    "fc1": "layers.{}.mlp.fc1",
    "fc2": "layers.{}.mlp.fc2",
}


def _extra(*names):
    return {name: np.ones((2, 2), np.float32) for name in names}


def _prefixed(flat, prefix):
    return {prefix + name: array for name, array in flat.items()}


def google(arrays, heads, *extra):
    """The .npz of the AugReg release."""
    flat = {
        "cls": arrays["class_token"][None],
        "embedding/kernel": arrays["patch/kernel"],
        "embedding/bias": arrays["patch/bias"],
        "Transformer/posembed_input/pos_embedding": arrays["position"][None],
        "Transformer/encoder_norm/scale": arrays["norm/scale"],
        "Transformer/encoder_norm/bias": arrays["norm/bias"],
    }
    layers = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}
    layers |= {"fc1": "MlpBlock_3/Dense_0", "fc2": "MlpBlock_3/Dense_1"}
    width = arrays["class_token"].shape[1]
    for path, array in arrays.items():
        if not path.startswith("blocks/"):
            continue
        _, i, layer, leaf = path.split("/")
        root = f"Transformer/encoderblock_{i}/"
        attention = root + "MultiHeadDotProductAttention_1/"
        if layer == "qkv":
            for part, piece in zip(("query", "key", "value"), np.split(array, 3, -1), strict=True):
                shape = (*piece.shape[:-1], heads, width // heads)
                flat[f"{attention}{part}/{leaf}"] = piece.reshape(shape)
        elif path.endswith("proj/kernel"):
            flat[attention + "out/kernel"] = array.reshape(heads, width // heads, width)
        elif path.endswith("proj/bias"):
            flat[attention + "out/bias"] = array
        else:
            flat[f"{root}{layers[layer]}/{leaf}"] = array
    return flat | _extra(*extra)


def families(arrays, heads):
    """{description: flat checkpoint} of the same ViT; each holds some names that are ignored."""
    timm = _torch(arrays, TIMM)
    disk, memory = _torch(arrays, HF_DISK), _torch(arrays, HF_MEMORY)
    classifier = _extra("classifier.weight", "classifier.bias")
    pooler = _extra("pooler.dense.weight", "pooler.dense.bias")
    return {
        "timm 2020": timm | _extra("pre_logits.fc.weight", "head.weight", "head.bias"),
        "timm today": timm | _extra("fc_norm.weight", "fc_norm.bias", "head.weight"),
        "Google 21k": google(arrays, heads, "pre_logits/kernel", "pre_logits/bias", "head/kernel"),
        "Google fine-tuned": google(arrays, heads, "head/kernel", "head/bias"),
        "HF classifier": _prefixed(disk, "vit.") | classifier,
        "HF encoder": disk | pooler,
        "HF 5 classifier": _prefixed(memory, "vit.") | classifier,
        "HF 5 encoder": memory | pooler,
        "DINO teacher": _prefixed(timm, "backbone.") | _extra("head.mlp.0.weight"),
        "DINO student": _prefixed(timm, "module.backbone.")
        | _extra("module.head.mlp.0.weight", "module.head.last_layer.weight_g"),
        "DINO backbone": timm,
    }
