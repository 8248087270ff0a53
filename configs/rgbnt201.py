"""FACENet on RGBNT201 (persons): 171 identities, 256 x 128, ViT-B/16 of ImageNet-21k, 120 epochs.

The authors publish no figure for this set. Set --config.data.root and --config.model.pretrained.
"""

from configs import wmveid863


def get_config():
    """The recipe of WMVeID863 on another data set."""
    c = wmveid863.get_config()
    c.data.name = "rgbnt201"
    return c
