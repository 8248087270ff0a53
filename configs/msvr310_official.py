"""The release's recipe for MSVR310, with the release's defects (named in official.py)."""

from configs import msvr310
from configs.official import official


def get_config():
    """The recipe."""
    return official(msvr310.get_config())
