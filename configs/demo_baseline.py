"""The demo's three-stream baseline, at equal steps."""

from configs import demo


def get_config():
    """The demo without MFMP, FCE, MC and KL."""
    return demo.get_config("three_stream")
