"""Table 5 of FACENet: other losses across modalities in the place of MC."""

from facenet_jax.lab import Row, Table


def instead(loss: str, weight: float) -> dict[str, float]:
    """FACENet with another loss than MC."""
    return {"losses.mc.weight": 0.0, f"losses.{loss}.weight": weight}


def get_table() -> Table:
    """None, 3M, HC, CdC and MC. The paper gives no weights: 1, and CCNet's for CdC."""
    return Table(
        "FACENet, Table 5: losses across modalities",
        "configs/wmveid863.py",
        (
            Row("none", {"losses.mc.weight": 0.0}, published=(69.2, 76.3, 81.3, 83.6)),
            Row("3M", instead("mmm", 1.0), published=(68.1, 75.8, 80.1, 81.7)),
            Row("HC", instead("hc", 1.0), published=(68.4, 75.3, 80.8, 82.7)),
            Row("CdC", instead("cdc", 0.3), published=(68.5, 75.4, 80.8, 83.5)),
            Row("MC", published=(69.8, 77.0, 81.0, 84.2)),
        ),
        data="WMVeID863",
    )
