"""Tables of runs: rows (a config and its changes) times seeds, scored with intervals."""

from facenet_jax.lab.tables import Row, Table

__all__ = ["Row", "Table"]
