"""Table 11 of FACENet: its losses, one left out at a time.

Only rows that Table 3 has too carry published values; the others are not known to us.
"""

from facenet_jax.lab import Row, Table


def without(loss: str) -> dict[str, float]:
    """FACENet with a loss left out."""
    return {f"losses.{loss}.weight": 0.0}


def get_table() -> Table:
    """All losses, and each left out."""
    return Table(
        "FACENet, Table 11: losses",
        "configs/wmveid863.py",
        (
            Row("all", published=(69.8, 77.0, 81.0, 84.2)),
            Row("without triplet loss", without("triplet")),
            Row("without mask KL", without("mask_kl")),
            Row("without MC", without("mc"), published=(69.2, 76.3, 81.3, 83.6)),
            Row("identity alone", without("triplet") | without("mask_kl") | without("mc")),
        ),
        data="WMVeID863",
    )
