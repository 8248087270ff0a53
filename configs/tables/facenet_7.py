"""Table 7 of FACENet: its MC loss added to other methods."""

from configs.hosts.wmveid863 import ROWS
from facenet_jax.lab import Row, Table

NAMES = {
    "hamnet": "HAMNet",
    "pfnet": "PFNet",
    "ieee": "IEEE",
    "ccnet": "CCNet",
    "editor": "EDITOR",
    "topreid": "TOP-ReID",
}


def get_table() -> Table:
    """Each host alone and with MC; --config configs/hosts/demo.py is for the rendered set."""
    rows = []
    for host, name in NAMES.items():
        alone, with_mc = ROWS[host]
        rows += [
            Row(name, argument=host, published=alone, against=name),
            Row(f"{name} and MC", argument=f"{host}_mc", published=with_mc, against=name),
        ]
    return Table(
        "FACENet, Table 7: MC in other methods",
        "configs/hosts/wmveid863.py",
        tuple(rows),
        data="WMVeID863",
    )
