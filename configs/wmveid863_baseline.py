"""Three-stream ViT-B/16 on WMVeID863, the baseline of Table 3: ID and triplet losses alone.

Published: mAP 66.5, R-1 73.7.
"""

from configs import wmveid863


def get_config():
    """The recipe of the baseline: three ViTs that only meet in the concatenation."""
    return wmveid863.get_config("three_stream")
