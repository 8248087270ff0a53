"""Multi-spectral object re-identification in JAX: FACENet and the systems around it."""

from typing import Any


def __getattr__(name: str) -> Any:
    # On demand: the parts that only handle files must not wait for Flax and Orbax to load.
    if name in ("Network", "load"):
        from facenet_jax import api

        return getattr(api, name)
    if name == "__version__":
        import importlib.metadata

        return importlib.metadata.version("facenet_jax")
    raise AttributeError(f"module 'facenet_jax' has no attribute '{name}'")
