"""The vision transformer as a backbone: all but its last block, and that block as a head.

`Family` says in what the published ones differ; the backbones dinov2, dinov3 and clip are options
and a family each, over what is here.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from facenet_jax.models.backbones import Backbone
from facenet_jax.models.layers import PLAIN, Kind
from facenet_jax.models.patches import grid
from facenet_jax.models.trunk import REMAT, LastBlock, Trunk
from facenet_jax.options import Option, Options, between, one_of, text, whole
from facenet_jax.weights import merge, positions
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.names.vit import FAMILIES, recognised
from facenet_jax.weights.published import checked

VARIANTS = {
    "mini": {"width": 96, "depth": 3, "heads": 4},  # the demo and the tests
    "Ti": {"width": 192, "depth": 12, "heads": 3},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
}

OPTIONS: Options = {
    "variant": Option(
        "B", "the size, or '' for width, depth and heads below", one_of(*VARIANTS, "")
    ),
    "width": Option(0, "with variant '' only", whole(0, 16384)),
    "depth": Option(0, "blocks, with variant '' only", whole(0, 999)),
    "heads": Option(0, "with variant '' only", whole(0, 1024)),
    "patch": Option(16, "pixels", whole(1, 4096)),
    "stride": Option(
        0, "pixels between patches, below patch they overlap; 0: patch", whole(0, 4096)
    ),
    "drop_path": Option(
        0.1, "rate of the last block, falling linearly to 0 at the first", between(0, 0.999)
    ),
    "pretrained": Option(
        "", "a ViT file, also gs://: timm, Google .npz, Hugging Face, DINO; 'none': none", text()
    ),
    "dtype": Option("float32", "of matrix products", one_of("float32", "bfloat16")),
    "attention": Option(
        "xla",
        "cudnn: on a GPU, in bfloat16; training on an even number of tokens only",
        one_of("xla", "cudnn"),
    ),
    "remat": Option(
        "auto",
        "what a block computes again in the backward pass, to save memory: dots, or full where the "
        "memory of the devices asks for it | nothing | all but the results of its dense layers and "
        "the row maxima and sums of its softmax | everything",
        one_of(*REMAT),
    ),
    "position_resize": Option(
        "bilinear", "how the position embedding of a file is resized", one_of(*positions.RULES)
    ),
    "unroll": Option(
        -1,
        "layers in one iteration of the loop over layers; 0: all; -1: all on a TPU, 1 elsewhere",
        whole(-1, 999),
    ),
}
"""What the backbone "vit" adds to config.model."""

NO_WEIGHTS = (
    "config.model.pretrained is not set, and this recipe starts from an ImageNet-21k ViT: get "
    "jx_vit_base_p16_224-80ecf9dd.pth (release v0.1-vitjx of "
    "github.com/rwightman/pytorch-image-models) or a ViT of gs://vit_models/augreg/ and give "
    "--config.model.pretrained=FILE, or say --config.model.pretrained=none to start from random "
    "weights"
)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PIXELS = Option(
    "publisher",
    "mean and standard deviation of the pixels: those of the pretraining, or 0.5",
    one_of("publisher", "half"),
)
"""The option `pixels` of families with statistics of their own."""


@dataclasses.dataclass(frozen=True)
class Family:
    """In what a published ViT differs from the first one, whose facts the defaults are."""

    name: str = "vit"  # of its files, one of weights.names.vit.FAMILIES
    kind: Kind = PLAIN
    registers: int = 0  # learned tokens without a position, between class token and patches
    patch_bias: bool = True
    norm_before: bool = False  # a LayerNorm of all tokens before the first block
    projection: int = 0  # columns of a matrix behind the last LayerNorm; 0: none
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def prefix(self) -> int:
        """How many tokens stand in front of the patches."""
        return 1 + self.registers


def size(config: ml_collections.ConfigDict | Mapping[str, Any]) -> dict[str, int]:
    """The {"width", "depth", "heads"} of the section `model`."""
    if config["variant"]:
        return VARIANTS[config["variant"]]
    return {name: config[name] for name in ("width", "depth", "heads")}


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together among the options of a config, a clause each."""
    model, found = config.model, []
    width, depth, heads = size(model).values()
    if min(width, depth, heads) < 1 or width % heads:
        found.append(
            f"config.model has width {width}, depth {depth} and {heads} heads; it needs a depth of "
            "at least 1 and a width that the heads divide"
        )
    if model.stride > model.patch:
        found.append(
            f"config.model.stride {model.stride} is above config.model.patch {model.patch}, so "
            "that pixels between the patches would never be seen"
        )
    if min(grid(config.data.image_size, model.patch, model.stride or model.patch)) < 1:
        found.append(
            f"config.data.image_size {tuple(config.data.image_size)} holds no patch of "
            f"config.model.patch {model.patch} pixels"
        )
    if model.attention == "xla":  # asking for the backend would take the memory of a GPU
        return found
    refused = refuses_attention(model, 0, jax.default_backend(), train=False)
    return [*found, refused.removesuffix(".")] if refused else found


def pixels(
    config: ml_collections.ConfigDict, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, tuple[float, ...]]:
    """The fields `pixel_mean` and `pixel_std` of a family whose publisher has these."""
    if config.pixels == "half":
        return {}
    return {"pixel_mean": mean, "pixel_std": std}


def undivided(config: ml_collections.ConfigDict) -> list[str]:
    """A clause where patches side by side do not fill the image: nothing is cut off or padded."""
    image, patch = tuple(config.data.image_size), config.model.patch
    if config.model.stride not in (0, patch) or not any(side % patch for side in image):
        return []
    smaller = tuple(max(side // patch, 1) * patch for side in image)
    larger = tuple(-(-side // patch) * patch for side in image)
    return [
        f"config.data.image_size {image} does not divide into patches of {patch} x {patch} pixels "
        f"(config.model.patch), and nothing is cut off or padded here; the nearest sizes are "
        f"{smaller} and {larger}"
    ]


def layers_at_once(unroll: int, backend: str) -> int:
    """What `model.unroll` is on devices of this kind; 0: all layers.

    In a loop a TPU copies what layers take from stacks and leave in them, and fills the stacks with
    zeros first: a fifth to a third of a step by its compiler's estimate. On a CPU only the time to
    compile differs, five times as long; on a GPU nothing was measured.
    """
    if unroll != -1:
        return unroll
    return 0 if backend == "tpu" else 1


def modalities_in_turn(unroll: int, backend: str) -> str:
    """`Backbone.in_turn` where `model.unroll`, once chosen, and the devices are these.

    What a layer holds of one modality fits the fast memory of a TPU, and on a CPU the parameters of
    layers need no other order: a fifth to a quarter of the time of an embedding. On a GPU nothing
    was measured.
    """
    if unroll == 0:
        return "unrolled"
    return "" if backend == "gpu" else "loop"


def backbone(config: ml_collections.ConfigDict, image_size: tuple[int, int]) -> Backbone:
    """The ViT that the section `model` describes."""
    return of_family(config, image_size, Family())


def of_family(
    config: ml_collections.ConfigDict, image_size: tuple[int, int], family: Family
) -> Backbone:
    """A ViT of this family, of the size that the section `model` describes."""
    width, depth, heads = size(config).values()
    stride = config.stride or config.patch
    rates = [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]
    block = {
        "heads": heads,
        "dtype": jnp.dtype(config.dtype),
        "attention": config.attention,
        "kind": family.kind,
    }
    backend = jax.default_backend()
    unroll = layers_at_once(config.unroll, backend)
    tokens = functools.partial(
        Trunk,
        **block,
        width=width,
        depth=depth - 1,
        patch=config.patch,
        stride=stride,
        drop_rates=tuple(rates[:-1]),
        remat=config.remat,
        unroll=unroll,
        registers=family.registers,
        patch_bias=family.patch_bias,
        norm_before=family.norm_before,
    )
    rows_columns = grid(image_size, config.patch, stride)
    head = functools.partial(
        LastBlock,
        **block,
        drop_rate=rates[-1],
        prefix=family.prefix,
        projection=family.projection,
    )
    sizes = {"depth": depth, "width": width, "patch": config.patch}
    return Backbone(
        tokens=tokens,
        head=head,
        token_width=width,
        width=family.projection or width,
        grid=rows_columns,
        stacked=True,
        in_turn=modalities_in_turn(unroll, backend),
        prefix=family.prefix,
        dtype=block["dtype"],
        pixel_mean=family.pixel_mean,
        pixel_std=family.pixel_std,
        read=functools.partial(
            read,
            family=family,
            grid=rows_columns,
            resize=config.get("position_resize", ""),  # rotary positions have none
            sizes=sizes,
        ),
        refuses=functools.partial(
            refuses_attention, config, family.prefix + math.prod(rows_columns)
        ),
    )


def read(
    path: str,
    *,
    family: Family,
    grid: tuple[int, int],
    resize: str,
    sizes: Mapping[str, int],
) -> tuple[Mapping[str, Any], Sequence[str], str]:
    """({"params": {"tokens", "head"}} of the ViT in a file, names not needed, a note)."""
    found = recognised(read_checkpoint(path), path, family.name)
    rule = positions.publishers_rule(found) if resize == "publisher" else resize
    parts, note = merge.vit_parts(
        found.canonical,
        grid,
        path,
        **sizes,
        registers=family.registers,
        projection=family.projection,
        rule=rule,
    )
    ignored = list(found.ignored)
    if not family.projection and "projection/kernel" in found.canonical:
        ignored.append("projection")
    kind = f"{FAMILIES[family.name]} in {found.publisher}'s names"
    notes = [kind, note, found.note, checked(path)]
    return {"params": parts}, ignored, "; ".join(filter(None, notes))


def refuses_attention(
    config: ml_collections.ConfigDict, tokens: int, backend: str, train: bool
) -> str:
    """Why `model.attention` cannot run on `backend`, or in training on so many tokens; or ""."""
    if config.attention == "xla":
        return ""
    if backend != "gpu" or config.dtype != "bfloat16":
        return (
            f"config.model.attention is 'cudnn', which computes bfloat16 on a GPU, but the devices "
            f"are of the kind '{backend}' and config.model.dtype is {config.dtype}; set "
            "--config.model.attention=xla."
        )
    if train and tokens % 2:
        return (
            f"config.model.attention is 'cudnn', whose gradient JAX gives for an even number of "
            f"tokens only, and an image has {tokens}; set --config.model.attention=xla to train."
        )
    return ""
