"""FACENet on WMVeID863: 603 identities, 256 x 128, ViT-B/16 of ImageNet-21k, 120 epochs of 8 x 4.

Published: mAP 69.8, R-1 77.0. Set --config.data.root and --config.model.pretrained.
"""

from configs import common


def get_config(model: str = "facenet"):
    """The recipe, which the defaults are, with FACENet or another model on a ViT."""
    c = common.get_config(model)
    c.model.dtype = "bfloat16"  # the release trains under fp16 autocast
    return c
