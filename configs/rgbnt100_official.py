"""The release's recipe for RGBNT100, with the release's defects (named in official.py)."""

from configs import rgbnt100
from configs.official import official


def get_config():
    """The recipe."""
    return official(rgbnt100.get_config())
