"""The image tower of CLIP ViT-B/16 as a backbone: a LayerNorm before the blocks, QuickGELU.

Radford et al. 2021. Its model card puts surveillance out of scope: docs/weights.md.
"""

import ml_collections

from facenet_jax.models import vit
from facenet_jax.models.backbones import Backbone
from facenet_jax.models.layers import ACTIVATIONS, Kind
from facenet_jax.options import Option, Options, one_of, text, whole
from facenet_jax.weights import positions

OPTIONS: Options = {
    **vit.OPTIONS,
    "variant": Option("B", "the size, or '' as for a ViT", one_of("mini", "B", "")),
    "pretrained": Option(
        "", "a CLIP file: OpenAI, open_clip, timm, Hugging Face; 'none': none", text()
    ),
    "activation": Option(
        "quick_gelu", "gelu for weights of LAION's ViT-B/16", one_of(*ACTIVATIONS)
    ),
    "feature": Option(
        "normed",
        "of an image: behind the last LayerNorm, or projected by the matrix that CLIP has there",
        one_of("normed", "projected"),
    ),
    "projection": Option(512, "columns of that matrix", whole(1, 65536)),
    "position_resize": Option(
        "bilinear",
        "how the position embedding of a file is resized; bilinear: as all re-ID releases do it",
        one_of("publisher", *positions.RULES),
    ),
    "pixels": vit.PIXELS,
}
"""What the backbone "clip" adds to config.model."""

NO_WEIGHTS = (
    "config.model.pretrained is not set, and this recipe starts from CLIP: get ViT-B-16.pt or a "
    "safetensors file of openai/clip-vit-base-patch16 as docs/weights.md says and give "
    "--config.model.pretrained=FILE, or say --config.model.pretrained=none to start from random "
    "weights"
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LICENCE = (
    "This network starts from weights of CLIP (MIT). Its model card says that surveillance and "
    "facial recognition are always out of scope."
)
"""What the card of a network says that starts from a file of weights."""

EPSILON = 1e-5  # of its LayerNorms


def problems(config: ml_collections.ConfigDict) -> list[str]:
    """What does not fit together among the options of a config, a clause each."""
    return vit.problems(config) + vit.undivided(config)


def backbone(config: ml_collections.ConfigDict, image_size: tuple[int, int]) -> Backbone:
    """The image tower that the section `model` describes."""
    family = vit.Family(
        name="clip",
        kind=Kind(activation=config.activation, epsilon=EPSILON),
        patch_bias=False,
        norm_before=True,
        projection=config.projection if config.feature == "projected" else 0,
        **vit.pixels(config, MEAN, STD),
    )
    return vit.of_family(config, image_size, family)
