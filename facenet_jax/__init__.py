"""Flare-aware multi-spectral object re-identification (FACENet) in JAX."""

from typing import Any


def __getattr__(name: str) -> Any:
    # On demand: the parts that only handle files must not wait for Flax and Orbax to load.
    if name in ("Network", "load"):
        from facenet_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'facenet_jax' has no attribute '{name}'")
