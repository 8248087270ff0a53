"""DINOv2, DINOv3, CLIP or ResNet-50 on WMVeID863: --config configs/backbones/wmveid863.py:NAME.

NAME is one of `BACKBONES`; with `facenet_` before it, FACENet's MFMP, FCE and losses are on top,
which nobody has published but for ResNet-50. Set --config.data.root and --config.model.pretrained;
docs/weights.md says where the files are and what their licences ask. The recipes are those of
docs/fidelity.md.

Published: plain DINOv3 B 70.1 mAP, 80.8 R-1, as quoted by the authors of CoT-ReID, of the best
epoch on the test set; FACENet on its own ViT 69.8 and 77.0; ResNet-50 53.7 and 60.3, under FACENet
62.1 and 67.3 (its Table 8, which does not say how: FACENet's own recipe here). The others have no
published figure on this set.
"""

import ml_collections

from configs import common
from data_tfds.errors import UserError

BACKBONES = {
    "dinov2_s": ("dinov2", {"variant": "S"}),
    "dinov2_b": ("dinov2", {"variant": "B"}),
    "dinov2_reg_s": ("dinov2", {"variant": "S", "registers": 4}),
    "dinov2_reg_b": ("dinov2", {"variant": "B", "registers": 4}),
    "dinov3_s": ("dinov3", {"variant": "S"}),
    "dinov3_b": ("dinov3", {"variant": "B"}),
    "clip_b": ("clip", {"variant": "B"}),
    # The stem of the authors' code, see docs/fidelity.md.
    "resnet50": ("resnet", {"variant": "50", "stem_pool": "2x2"}),
}
"""{name: (config.model.backbone, its options)}."""


def get_config(name: str = "dinov3_b") -> ml_collections.ConfigDict:
    """The recipe of a backbone, alone or, as facenet_NAME, under FACENet."""
    model = "facenet" if name.startswith("facenet_") else "three_stream"
    backbone, options = choice(name, BACKBONES)
    c = common.get_config(model, backbone=backbone)
    c.model.update(options)
    c.model.dtype = "bfloat16"
    if backbone == "resnet":
        return c
    c.optim.name = "adam"
    c.optim.weight_decay = 1e-4
    c.optim.warmup = 10.0
    c.optim.warmup_start = 0.1
    c.augment.per_modality = True
    c.losses.id.label_smoothing = 0.1
    clip(c) if backbone == "clip" else dino(c)
    return c


def choice(name: str, known: dict) -> tuple:
    """The entry of `known` that `name` names, alone or with facenet_ before it.

    Raises UserError for another name.
    """
    plain = name.removeprefix("facenet_")
    if plain not in known:
        raise UserError(
            f"The backbone is '{name}'; it must be one of {', '.join(known)}, or one of them with "
            "facenet_ before it.",
            2,
        )
    return known[plain]


def dino(c: ml_collections.ConfigDict) -> None:
    """What CoT-ReID's release sets for DINOv3, also for DINOv2, for which nobody has said it."""
    # Patches of 14 pixels do not fill 256 x 128 or 128 x 256.
    c.data.image_size = (126, 252) if c.model.patch == 14 else (128, 256)
    c.optim.learning_rate = 5e-5
    c.optim.floor = 0.32  # 1.6e-5
    c.train.epochs = 60
    c.train.identities_per_batch, c.train.samples_per_identity = 16, 2
    c.losses.triplet.margin = 0.5


def clip(c: ml_collections.ConfigDict) -> None:
    """What DeMo's release sets for CLIP, without the noise on its learning rates."""
    c.data.image_size = (256, 128)
    c.model.pixels = "half"
    c.model.feature = "projected"
    c.model.shared_trunk = True  # its last block is each branch's own here, and shared there
    c.optim.learning_rate = 3.5e-4
    c.model.backbone_lr_factor = 5e-6 / 3.5e-4
    c.optim.floor = 0.001
    c.train.epochs = 50
    c.train.identities_per_batch, c.train.samples_per_identity = 8, 8
    c.losses.id.weight = 0.25
    c.augment.erase = 0.5
    c.augment.erase_with = "random_pixel"
