"""DINOv3 as a backbone: rotary positions, four registers, LayerScale and no bias of the keys.

Simeoni et al. 2025. Its weights have a licence of their own: docs/weights.md.
"""

import ml_collections

from facenet_jax.models import vit
from facenet_jax.models.backbones import Backbone
from facenet_jax.models.layers import Kind
from facenet_jax.models.patches import grid
from facenet_jax.models.rope import Rope
from facenet_jax.options import Option, Options, one_of, text, whole

OPTIONS: Options = {
    **{name: option for name, option in vit.OPTIONS.items() if name != "position_resize"},
    "variant": Option("B", "the size, or '' as for a ViT", one_of("mini", "S", "B", "")),
    "registers": Option(4, "tokens beside the class token", whole(0, 64)),
    "pretrained": Option("", "a DINOv3 file: Meta, timm, Hugging Face; 'none': none", text()),
    "rope_periods": Option(
        "exact",
        "of the rotary positions; bfloat16: rounded, as Meta's own code reads them from its files",
        one_of("exact", "bfloat16"),
    ),
    "pixels": vit.PIXELS,
}
"""What the backbone "dinov3" adds to config.model."""

NO_WEIGHTS = (
    "config.model.pretrained is not set, and this recipe starts from DINOv3: get "
    "dinov3_vits16_pretrain_lvd1689m-08c60483.pth or dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth "
    "as docs/weights.md says (its licence is not ours) and give --config.model.pretrained=FILE, or "
    "say --config.model.pretrained=none to start from random weights"
)

LICENCE = (
    "licence: DINOv3. This network starts from weights under the DINOv3 License of Meta: it may "
    "only be passed on under the same agreement and with a copy of it, and publications must say "
    "so."
)
"""What the card of a network says that starts from a file of weights."""

EPSILON = 1e-5  # of its LayerNorms


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together among the options of a config, a clause each."""
    found = vit.problems(config) + vit.undivided(config)
    width, _, heads = vit.size(config.model).values()
    if not found and width // heads % 4:
        found.append(
            f"config.model has width {width} and {heads} heads, each of {width // heads}; rotary "
            "positions need a head width that 4 divides"
        )
    return found


def backbone(config: ml_collections.ConfigDict, image_size: tuple[int, int]) -> Backbone:
    """The DINOv3 that the section `model` describes."""
    places = grid(image_size, config.patch, config.stride or config.patch)
    rope = Rope(places, rounded=config.rope_periods == "bfloat16")
    family = vit.Family(
        name="dinov3",
        kind=Kind(layer_scale=True, epsilon=EPSILON, key_bias=False, rope=rope),
        registers=config.registers,
        **vit.pixels(config, vit.IMAGENET_MEAN, vit.IMAGENET_STD),
    )
    return vit.of_family(config, image_size, family)
