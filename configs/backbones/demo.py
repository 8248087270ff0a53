"""Small DINOv2, DINOv3, CLIP and ResNet networks on the rendered set, on two CPU cores.

--config configs/backbones/demo.py:NAME, NAME being one of `BACKBONES`, or one of them with
facenet_ before it. The schedule of the demo (configs/demo.py). From scratch these say nothing
about the pretrained ones; they show that all of it works.
"""

import ml_collections

from configs import demo
from configs.backbones.wmveid863 import choice

BACKBONES = {
    "dinov2": ("dinov2", {}),
    "dinov2_reg": ("dinov2", {"registers": 4}),
    "dinov3": ("dinov3", {}),
    "clip": ("clip", {}),
    "resnet": ("resnet", {}),
}
"""{name: (config.model.backbone, its options)}."""


def get_config(name: str = "dinov3") -> ml_collections.ConfigDict:
    """The demo on this backbone, three streams or, as facenet_NAME, FACENet."""
    model = "facenet" if name.startswith("facenet_") else "three_stream"
    backbone, options = choice(name, BACKBONES)
    c = demo.get_config(model, backbone=backbone)
    c.model.update(options)
    return c
