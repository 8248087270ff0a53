"""Three streams of CLIP or DINOv3 with DeMo's experts, ProxyTTT's proxies, or both, on WMVeID863.

--config configs/joined/wmveid863.py:NAME, NAME of `ROWS`. The recipe of the plain streams is
configs/backbones/wmveid863.py; experts and proxies change it as their releases do. Scores are mAP
and R-1 that others report, of the best epoch on the test set; nobody published both together.
"""

import ml_collections

from configs import common
from configs.backbones import wmveid863 as plain

# name: (backbone, experts, proxies, reported mAP and R-1)
ROWS = {
    "demo_clip": ("clip_b", True, False, (69.6, 77.2)),
    "proxies_clip": ("clip_b", False, True, (71.5, 78.8)),
    "both_clip": ("clip_b", True, True, ()),
    "demo_dinov3": ("dinov3_b", True, False, (72.5,)),
    "proxies_dinov3": ("dinov3_b", False, True, ()),
    "both_dinov3": ("dinov3_b", True, True, ()),
}


def get_config(name: str = "demo_clip") -> ml_collections.ConfigDict:
    """A row. Raises UserError for another name."""
    backbone, with_experts, with_proxies, _ = common.row_of(ROWS, name, "system")
    base = plain.get_config(backbone)
    c = common.get_config("joined_streams", backbone=base.model.backbone)
    for section in ("data", "augment", "train", "optim", "evaluate"):
        c[section].update(base[section])
    c.model.update({name: value for name, value in base.model.items() if name != "name"})
    c.losses.id.label_smoothing = 0.1
    c.train.identities_per_batch = c.train.samples_per_identity = 8
    of_proxies(c) if with_proxies and not with_experts else of_experts(c)
    return joined(c, with_experts, with_proxies)


def of_experts(c: ml_collections.ConfigDict) -> None:
    """What DeMo's release sets; for DINOv3 the rate of its backbone is CoT-ReID's."""
    is_clip = c.model.backbone == "clip"
    c.optim.learning_rate = 3.5e-4
    c.model.backbone_lr_factor = (5e-6 if is_clip else 5e-5) / 3.5e-4
    c.model.shared_trunk = c.model.shared_last = True
    c.losses.id.weight = 0.25
    c.augment.erase = 0.5
    c.augment.erase_with = "random_pixel"


def of_proxies(c: ml_collections.ConfigDict) -> None:
    """What ProxyTTT's release sets, the training on test images left out."""
    c.data.image_size = (128, 256)
    c.optim.learning_rate = 3.5e-5
    c.optim.warmup_start = 0.01
    c.model.backbone_lr_factor = 1.0
    c.model.shared_trunk = c.model.shared_last = True
    if c.model.backbone == "clip":
        c.model.feature = "normed"
    c.train.epochs = 70
    c.losses.id.weight = 1.0
    c.losses.triplet.margin = 0.5
    c.augment.erase = 0.0


def joined(
    c: ml_collections.ConfigDict, with_experts: bool, with_proxies: bool
) -> ml_collections.ConfigDict:
    """`c`, a config of joined_streams, with experts, proxies or both."""
    c.model.experts.enabled, c.model.proxies.enabled = with_experts, with_proxies
    if with_proxies:
        c.model.classified = "both"
        c.losses.proxies.weight = c.losses.recovery.weight = 1.0
    return c
