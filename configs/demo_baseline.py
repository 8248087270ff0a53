"""The demo's three-stream baseline, at equal steps."""

from configs import demo
from configs.wmveid863_baseline import baseline


def get_config():
    """The demo without MFMP, FCE, MC and KL."""
    return baseline(demo.get_config())
