"""The tiny run with three_stream, which compiles in half the time: a config for main.py."""

from tests.support import tiny_run


def get_config():
    """A small baseline on small images."""
    return tiny_run.get_config("three_stream")
