"""DINOv2, DINOv3 and CLIP's image tower against their publishers' code.

Weights follow a rule from the names of the publisher's tensors, and the name of an array says what
it is of: size of the image, stride, rule of the position resize, periods of the rotary positions,
and the quantity. Nothing is known here of a seed, a width, a depth or an image size.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facenet_jax.config import default_config
from facenet_jax.models import backbones, rope
from facenet_jax.models.backbones import Backbone
from facenet_jax.models.layers import LayerNorm
from facenet_jax.parity.releases import FLOAT32, filled, norm_rows, pictures
from facenet_jax.parity.rows import Golden, Row, compared
from facenet_jax.weights import positions
from facenet_jax.weights.merge import flatten, nest, trunk_parameters
from facenet_jax.weights.names import tables
from facenet_jax.weights.names.vit import FORMATS, Recognised, recognised

NORMS = (1e-4, 1e-7)  # of gradients: relative, and of the largest norm besides
RULES = {"bicubic_antialias": "size_antialias", "native": "size_antialias"}
"""Names of the directories for rules that have another one here, or that change nothing."""
CELL = 8  # pixels of a grid cell

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """What a network is built for."""

    size: tuple[int, int]
    stride: int = 0
    rule: str = ""  # as the directory names it
    rounded: bool = False  # periods of the rotary positions


def parsed(name: str, rules: tuple[str, ...]) -> tuple[Case, str]:
    """(case, quantity) of the name of an array."""
    match = re.fullmatch(r"(\d+)x(\d+)(?:_stride(\d+))?_(.+)", name)
    height, width, stride, rest = match.groups()
    words, rule = f"_{rest}_", ""
    for known in sorted(rules, key=len, reverse=True):
        if f"_{known}_" in words:
            words, rule = words.replace(f"_{known}_", "_", 1), known
            break
    rounded = "_bf16_periods_" in words
    words = words.replace("_bf16_periods_", "_")
    return Case((int(height), int(width)), int(stride or 0), rule, rounded), words.strip("_")


class Twin:
    """Our backbones with the directory's weights, and its images."""

    def __init__(self, golden: Golden):
        self.meta, self.reference = golden.needed("meta.json"), golden.needed("arrays.npz")
        self.system = self.meta["system"]
        shapes = golden.needed("state_dict_shapes.json")
        self.state = filled(shapes, self.meta["seed"])
        self.names = {name: f"visual.{name}" for name in shapes}  # as CLIP's files have it
        if self.system != "clip":
            self.names = {name: name for name in shapes}
        flat = {self.names[name]: tensor for name, tensor in self.state.items()}
        if self.system == "dinov3":
            flat |= buffers(self.meta)
        self.source = str(golden.folder)
        self.file = recognised(flat, self.source, self.system)
        self.rules = (*positions.RULES, *RULES) if self.system != "dinov3" else ()

    def backbone(self, case: Case) -> Backbone:
        """The backbone as a recipe would have it, without drop path."""
        meta, model = self.meta, default_config("three_stream", backbone=self.system).model
        model.variant, model.drop_path, model.patch = "", 0.0, meta["patch"]
        model.width, model.depth, model.heads = meta["width"], meta["depth"], meta["heads"]
        model.stride = case.stride
        if self.system == "clip":
            model.activation, model.feature = meta["activation"], "projected"
            model.projection = meta["projection"]
        else:
            model.registers = meta["registers"]
        if self.system == "dinov3":
            model.rope_periods = "bfloat16" if case.rounded else "exact"
        return backbones.find(self.system).backbone(model, case.size)

    def rule(self, case: Case) -> str:
        """The rule of the position resize by our name."""
        if case.rule == "meta":  # Meta's own, which depends on whether there are registers
            return positions.publishers_rule(self.file)
        return RULES.get(case.rule, case.rule)

    def images(self, case: Case) -> jax.Array:
        """Images [B, H, W, 3] of this size."""
        meta = {"image": case.size, "block": CELL, "normalise": self.meta["normalise"]}
        return jnp.asarray(pictures(self.reference["images"][:, None], meta)[0])

    def position(self, case: Case, canonical: Mapping[str, np.ndarray]) -> np.ndarray:
        """The position embedding for this case."""
        grid = self.backbone(case).grid
        return positions.fit_position(canonical["position"], grid, self.source, self.rule(case))[0]

    def params(self, case: Case, found: Recognised | None = None) -> Params:
        """{"trunk": all blocks, "norm", "projection", "head": the last block} of our modules."""
        canonical = dict((found or self.file).canonical)
        if "position" in canonical:
            canonical["position"] = self.position(case, canonical)
        last = self.meta["depth"] - 1
        ends = {n: x for n, x in canonical.items() if n.startswith(("norm/", "projection/"))}
        head = {
            f"block/{name.removeprefix(f'blocks/{last}/')}": array
            for name, array in canonical.items()
            if name.startswith(f"blocks/{last}/")
        }
        tree = {
            "trunk": trunk_parameters(canonical, last + 1),
            **nest(ends),
            "head": nest({**head, **ends}),
        }
        return jax.tree.map(jnp.asarray, tree)


def buffers(meta: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What Meta's DINOv3 keeps beside its parameters."""
    mask = np.repeat(np.float32([1, 0, 1]), meta["width"])
    quarter = meta["width"] // meta["heads"] // 4
    return {
        "rope_embed.periods": meta["rope_base"] ** (np.arange(quarter) / quarter),
        **{f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(meta["depth"])},
    }


def all_tokens(backbone: Backbone, params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """What a backbone computes, with all tokens of its last block."""
    fields, kind = backbone.tokens.keywords, backbone.tokens.keywords["kind"]
    depth = fields["depth"] + 1

    def trunk(blocks: int) -> jax.Array:
        changed = {**fields, "depth": blocks, "drop_rates": (0.0,) * blocks}
        own = dict(params["trunk"])
        own["blocks"] = jax.tree.map(lambda leaf: leaf[:blocks], own["blocks"])
        return backbone.tokens.func(**changed).apply({"params": own}, images, False)

    tokens = LayerNorm(kind.epsilon).apply({"params": params["norm"]}, trunk(depth))
    class_token = backbone.head().apply({"params": params["head"]}, trunk(depth - 1), False)
    found = {"embedded": trunk(0), "block0": trunk(1), "tokens": tokens, "last": class_token}
    if "projection" in params:
        found["projected"] = tokens @ params["projection"]["kernel"]
    return found


def values(twin: Twin, case: Case) -> dict[str, Any]:
    """Every quantity of a case by its name."""
    backbone = twin.backbone(case)
    compute = jax.jit(functools.partial(all_tokens, backbone))
    found = compute(twin.params(case), twin.images(case))
    step, prefix = twin.meta.get("patch_step", 1), backbone.prefix
    tokens = found["tokens"]
    found |= {
        "class": tokens[:, 0],
        "registers": tokens[:, 1:prefix],
        "patches": tokens[:, prefix::step],
        "patch_mean": tokens[:, prefix:].mean(axis=1),
    }
    if "projected" in found:
        found["projected_class"] = found["projected"][:, 0]
        found["projected_patches"] = found["projected"][:, prefix::step]
    if twin.system == "dinov3":
        kind = backbone.tokens.keywords["kind"]
        sines = rope.tables(kind.rope, twin.meta["width"] // twin.meta["heads"])
        found["rope_sin"], found["rope_cos"] = sines
    else:
        position = twin.position(case, twin.file.canonical)
        found["position"] = position if twin.system == "clip" else position[None]
    return found


def rows(golden: Golden) -> Iterator[Row]:
    """Rows of everything that the publisher's code computed in this directory."""
    twin, errors = Twin(golden), golden.needed("float32_error.json")
    cases: dict[Case, dict[str, str]] = {}
    for name in twin.reference:
        if name != "images":
            case, quantity = parsed(name, twin.rules)
            cases.setdefault(case, {})[name] = quantity
    for case, wanted in cases.items():
        found = values(twin, case)
        for name, quantity in wanted.items():
            tolerance = max(FLOAT32[0], FLOAT32[1] * errors.get(name, 0.0))
            reference = twin.reference[name]
            yield compared(name, found.get(quantity, np.nan), reference, tolerance)
            if quantity == "tokens" and twin.system != "clip":
                yield compared(f"{name} last block", found["last"], reference[:, 0], tolerance)
            if quantity in ("projected", "projected_class"):
                one = reference if reference.ndim == 2 else reference[:, 0]
                yield compared(f"{name} last block", found["last"], one, tolerance)
    norms = golden.json("grad_norms.json")
    if norms is not None:
        norms = norms.get("norms", norms)
        yield from norm_rows("gradient norm", gradient_norms(twin), norms, *NORMS)
    yield from name_rows(twin, golden.json("names.json") or {}, next(iter(cases)))


def gradient_case(twin: Twin) -> Case:
    """The case whose gradients the directory has."""
    if "gradient_case" in twin.meta:
        height, width, stride, rule = twin.meta["gradient_case"]
        return Case((height, width), stride, rule)
    return Case(tuple(twin.meta["gradient_size"]), rule="" if twin.system == "dinov3" else "meta")


def gradient_norms(twin: Twin) -> dict[str, float]:
    """{the publisher's name: norm of the gradient of the probe} of every tensor that has one."""
    case = gradient_case(twin)
    backbone, images = twin.backbone(case), twin.images(case)
    quantity = "projected" if twin.system == "clip" else "tokens"

    @jax.jit
    def gradient(params: Params) -> Params:
        def probe(params: Params) -> jax.Array:
            x = all_tokens(backbone, params, images)[quantity]
            b, t, d = jnp.meshgrid(*map(jnp.arange, x.shape), indexing="ij")
            return jnp.mean(jnp.sin(1 + b + 0.3 * t + 0.7 * d) * x)

        return jax.grad(probe)(params)

    tree = gradient(twin.params(case))
    found = flatten({**tree["trunk"], **{k: tree[k] for k in ("norm", "projection") if k in tree}})
    if "position" in found:
        found["position"] = of_source(twin, case, backbone.grid, found["position"])
    norms = dict.fromkeys(twin.names, 0.0)  # of what our network has no use for
    for name, theirs in twin.names.items():
        path, index = place(canonical_name(twin, theirs))
        if path in found:
            array = found[path] if index is None else found[path][index]
            norms[name] = float(np.linalg.norm(np.asarray(array, np.float64)))
    return norms


def of_source(twin: Twin, case: Case, grid: tuple[int, int], gradient: jax.Array) -> jax.Array:
    """The gradient of the position embedding as it is in the file, before it was resized."""
    source = jnp.asarray(twin.file.canonical["position"])
    side = round((len(source) - 1) ** 0.5)
    if grid == (side, side):
        return gradient

    def resize(position: jax.Array) -> jax.Array:
        patches = positions.resized(position[1:].reshape(side, side, -1), grid, twin.rule(case))
        return jnp.concatenate([position[:1], patches.reshape(-1, patches.shape[-1])])

    return jax.vjp(resize, source)[1](gradient)[0]


def canonical_name(twin: Twin, name: str) -> str:
    """The canonical name of a tensor of the file, "" for one that is not needed."""
    known = next(known for known in FORMATS if known.meets(list(twin.names.values())))
    for pattern, ours, _ in known.rows:
        match = re.fullmatch(pattern, name)
        if match and ours != tables.IGNORED:
            return match.expand(ours)
    return ""


def place(canonical: str) -> tuple[str, int | None]:
    """(path in the tree of a trunk, row of a stacked block or None) of a canonical name."""
    match = re.fullmatch(r"blocks/(\d+)/(.+)", canonical)
    return (f"blocks/{match[2]}", int(match[1])) if match else (canonical, None)


def name_rows(twin: Twin, formats: Mapping[str, Any], case: Case) -> Iterator[Row]:
    """A row for each other publisher: its file, made from the weights, gives the same outputs."""
    compute = jax.jit(functools.partial(all_tokens, twin.backbone(case)))
    images = twin.images(case)
    quantity = "projected" if twin.system == "clip" else "tokens"
    for name, table in formats.items():
        flat = {theirs: written(twin, *entry) for theirs, entry in table.items()}
        found, ours = recognised(flat, f"{name} of {twin.source}", twin.system), twin.file
        if found.note.startswith("no bias"):  # which this file has
            without = {
                key: np.zeros_like(array) if key.endswith("qkv/bias") else array
                for key, array in ours.canonical.items()
            }
            ours = dataclasses.replace(ours, canonical=without)
        expected, got = (compute(twin.params(case, one), images)[quantity] for one in (ours, found))
        yield compared(f"from {name} names", got, expected, FLOAT32[0])


def written(twin: Twin, source: str | None, operation: str) -> np.ndarray:
    """A tensor as another publisher has it: an operation on one of the directory's tensors."""
    if source is None:
        return np.zeros(twin.meta["projection"], np.float32)
    array = twin.state[source]
    if operation == "same":
        return array
    if operation == "transpose":
        return array.T
    if operation.startswith("rows "):
        return array[slice(*map(int, operation.removeprefix("rows ").split(":")))]
    if operation == "[:, 1:]":
        return array[:, 1:]
    if operation == "add pos_embed[:, 0]":
        return array + twin.state["pos_embed"][:, :1]
    if operation.startswith("shape "):
        return array.reshape(1, -1, array.shape[-1])
    raise ValueError(f"names.json has the operation {operation!r}, which is not known")
