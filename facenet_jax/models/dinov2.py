"""DINOv2 as a backbone: LayerScale, positions of a 37 x 37 grid resized, and registers or none.

Oquab et al. 2023; registers: Darcet et al. 2023. docs/weights.md says where its files are and what
may be done with them.
"""

import ml_collections

from facenet_jax.models import vit
from facenet_jax.models.backbones import Backbone
from facenet_jax.models.layers import Kind
from facenet_jax.options import Option, Options, one_of, text, whole
from facenet_jax.weights import positions

OPTIONS: Options = {
    **vit.OPTIONS,
    "variant": Option("B", "the size, or '' as for a ViT", one_of("mini", "S", "B", "")),
    "patch": Option(14, "pixels", whole(1, 4096)),
    "registers": Option(
        0, "tokens beside the class token; 4 in the files that have some", whole(0, 64)
    ),
    "pretrained": Option("", "a DINOv2 file: Meta, timm, Hugging Face; 'none': none", text()),
    "position_resize": Option(
        "publisher",
        "how the position embedding of a file is resized; publisher: as whoever named the file's "
        "tensors does it",
        one_of("publisher", *positions.RULES),
    ),
    "pixels": vit.PIXELS,
}
"""What the backbone "dinov2" adds to config.model."""

NO_WEIGHTS = (
    "config.model.pretrained is not set, and this recipe starts from DINOv2: get "
    "dinov2_vits14_pretrain.pth, dinov2_vitb14_pretrain.pth (or ..._reg4_pretrain.pth with "
    "--config.model.registers=4) as docs/weights.md says and give --config.model.pretrained=FILE, "
    "or say --config.model.pretrained=none to start from random weights"
)


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together among the options of a config, a clause each."""
    return vit.problems(config) + vit.undivided(config)


def backbone(config: ml_collections.ConfigDict, image_size: tuple[int, int]) -> Backbone:
    """The DINOv2 that the section `model` describes."""
    family = vit.Family(
        name="dinov2",
        kind=Kind(layer_scale=True),
        registers=config.registers,
        **vit.pixels(config, vit.IMAGENET_MEAN, vit.IMAGENET_STD),
    )
    return vit.of_family(config, image_size, family)
