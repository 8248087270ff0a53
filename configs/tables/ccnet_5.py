"""Table 5 of CCNet: parts."""

from configs.ccnet.ablations import ROWS
from facenet_jax.lab import Row, Table

NAMES = ("baseline", "alnu", "samples", "modalities", "cdc", "ccnet")


def get_table() -> Table:
    """The rows as in configs/ccnet/ablations.py."""
    rows = tuple(Row(name, argument=name, published=ROWS[name][1]) for name in NAMES)
    return Table("CCNet, Table 5: parts", "configs/ccnet/ablations.py", rows, data="MSVR310")
