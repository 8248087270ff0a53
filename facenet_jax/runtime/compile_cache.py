"""The folder of compiled programs, so that what was compiled once is not compiled again."""

import pathlib

import jax

from facenet_jax.runtime.script import ROOT

WORTH = 0.5
"""Seconds of compiling from which a program is kept."""


def default() -> pathlib.Path:
    """`.cache/jax` of the checkout; for an installed wheel, one folder below the user's home."""
    if (ROOT / "pyproject.toml").is_file():
        return ROOT / ".cache" / "jax"
    return pathlib.Path.home() / ".cache" / "facenet_jax" / "jax"


def use(folder: str | pathlib.Path) -> None:
    """Keep compiled programs in `folder`; "" leaves JAX as it is."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH)
