"""The release's recipe for WMVeID863, with the release's defects (named in official.py)."""

from configs import wmveid863
from configs.official import official


def get_config():
    """The recipe."""
    return official(wmveid863.get_config())
