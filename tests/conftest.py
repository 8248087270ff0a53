"""Strict numerics for the suite: eight virtual devices, no silent promotion of ranks or types."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the suite's time, so it optimises little: in the environment, for child
# processes and for both of two programs whose bits are compared. Elsewhere only on a CPU.
os.environ.setdefault(
    "JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(os.environ["JAX_PLATFORMS"] == "cpu"))
)
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import pytest
from absl import flags, logging

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
flags.FLAGS.mark_as_parsed()


HEAVY = ("train", "devices", "step", "door", "models", "parity", "paths", "benchmark", "evaluate")
"""The files of most seconds, by name. They come first, so that two workers end together."""


def pytest_collection_modifyitems(items):
    """Put the tests of the heavy files first."""
    order = {f"{name}_test.py": i for i, name in enumerate(HEAVY)}
    items.sort(key=lambda item: order.get(item.path.name, len(HEAVY)))


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data that lies beside a developer's checkout."""
    if not SHARED.is_dir():
        pytest.skip("no folder ../shared with the reference data beside this checkout")
    return SHARED


@pytest.fixture
def log_lines(monkeypatch):
    """The information lines that the log has got since the test began."""
    lines = []

    def info(text, *values):
        lines.append(text % values if values else str(text))

    monkeypatch.setattr(logging, "info", info)
    return lines


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> pathlib.Path:
    """A folder with the tiny tree in it, of which a worker makes one."""
    from tests.support import tiny_run

    root = tmp_path_factory.mktemp("place")
    tiny_run.tree(root / "tree")
    return root
