"""Table 6 of CCNet: norms and centre losses."""

from configs.ccnet.ablations import ROWS
from facenet_jax.lab import Row, Table

NAMES = ("baseline", "instance_norm", "layer_norm", "alnu", "center", "hc", "cdc")


def get_table() -> Table:
    """The rows as in configs/ccnet/ablations.py."""
    rows = tuple(Row(name, argument=name, published=ROWS[name][1]) for name in NAMES)
    return Table(
        "CCNet, Table 6: norms and centre losses",
        "configs/ccnet/ablations.py",
        rows,
        data="MSVR310",
    )
