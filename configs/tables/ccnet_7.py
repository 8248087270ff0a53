"""Table 7 of CCNet: the weight and alpha of its centre loss, without ALNU."""

from configs.ccnet.ablations import ROWS
from facenet_jax.lab import Row, Table


def get_table() -> Table:
    """The baseline and both sweeps, as in configs/ccnet/ablations.py."""
    names = ["baseline", *(name for name in ROWS if name.startswith(("lambda_", "alpha_")))]
    rows = tuple(Row(name, argument=name, published=ROWS[name][1]) for name in names)
    return Table("CCNet, Table 7: centre loss", "configs/ccnet/ablations.py", rows, data="MSVR310")
