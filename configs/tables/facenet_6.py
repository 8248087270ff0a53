"""Table 6 of FACENet: the MC loss on features or on logits."""

from facenet_jax.lab import Row, Table


def get_table() -> Table:
    """Without MC, on features, on logits; the published values on features are not known to us."""
    return Table(
        "FACENet, Table 6: MC on features or logits",
        "configs/wmveid863.py",
        (
            Row("none", {"losses.mc.weight": 0.0}, published=(69.2, 76.3, 81.3, 83.6)),
            Row("features", {"losses.mc.of": "features"}),
            Row("logits", published=(69.8, 77.0, 81.0, 84.2)),
        ),
        data="WMVeID863",
    )
