"""Table 3 of FACENet: its parts, on WMVeID863."""

from facenet_jax.lab import Row, Table

NO_MC = {"losses.mc.weight": 0.0}
NO_MASK_LOSS = {"losses.mask_kl.weight": 0.0, "model.flare_heads": False}


def get_table() -> Table:
    """The baseline, each part, all of them."""
    return Table(
        "FACENet, Table 3: parts",
        "configs/wmveid863.py",
        (
            Row("baseline", argument="three_stream", published=(66.5, 73.7, 80.6, 82.6)),
            Row("FACENet", published=(69.8, 77.0, 81.0, 84.2)),
        ),
        data="WMVeID863",
    )
