"""Table 8 of FACENet: backbones with and without it."""

from facenet_jax.lab import Row, Table

TRANSREID = "configs/transreid/wmveid863.py"
BACKBONES = "configs/backbones/wmveid863.py"


def get_table() -> Table:
    """ViT, ResNet-50 and TransReID, each against itself."""
    return Table(
        "FACENet, Table 8: backbones",
        "configs/wmveid863.py",
        (
            Row("ViT", argument="three_stream", published=(66.5, 73.7, 80.6, 82.6)),
            Row("ViT and FACENet", published=(69.8, 77.0, 81.0, 84.2)),
            Row(
                "ResNet-50",
                config=f"{BACKBONES}:resnet50",
                published=(53.7, 60.3, 69.1, 74.4),
            ),
            Row(
                "ResNet-50 and FACENet",
                config=f"{BACKBONES}:facenet_resnet50",
                against="ResNet-50",
                published=(62.1, 67.3, 76.7, 80.1),
            ),
            Row("TransReID", config=f"{TRANSREID}:transreid", published=(67.0, 74.7, 79.5, 82.4)),
            Row(
                "TransReID and FACENet",
                config=f"{TRANSREID}:facenet",
                against="TransReID",
                published=(69.2, 76.0, 80.2, 83.5),
            ),
        ),
        data="WMVeID863",
    )
