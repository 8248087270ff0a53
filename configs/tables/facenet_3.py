"""Table 3 of FACENet: its parts. Published values are given where they are known to us."""

from facenet_jax.lab import Row, Table

NO_MC = {"losses.mc.weight": 0.0}
NO_FCE = {"model.fce.enabled": False}
NO_MFMP = {"model.mfmp.enabled": False}
NO_HEADS = {"model.flare_heads": False, "losses.mask_kl.weight": 0.0}


def get_table() -> Table:
    """The baseline, each part, all of them."""
    return Table(
        "FACENet, Table 3: parts",
        "configs/wmveid863.py",
        (
            Row("baseline", argument="three_stream", published=(66.5, 73.7, 80.6, 82.6)),
            Row("MC alone", {**NO_FCE, **NO_MFMP, **NO_HEADS}),
            Row("FCE alone", {**NO_MC, **NO_MFMP, **NO_HEADS}),
            Row("MFMP and FCE", NO_MC, published=(69.2, 76.3, 81.3, 83.6)),
            Row("FACENet", published=(69.8, 77.0, 81.0, 84.2)),
        ),
        data="WMVeID863",
    )
