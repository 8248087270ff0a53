"""Table 2 of CCNet: features by modality, with --subsets every; published of all together."""

from configs.ccnet.ablations import ROWS
from facenet_jax.lab import Row, Table

NAMES = ("baseline", "ccnet")


def get_table() -> Table:
    """The rows as in configs/ccnet/ablations.py."""
    rows = tuple(Row(name, argument=name, published=ROWS[name][1]) for name in NAMES)
    return Table(
        "CCNet, Table 2: features by modality", "configs/ccnet/ablations.py", rows, data="MSVR310"
    )
