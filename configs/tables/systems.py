"""Other backbones, other methods and heads against the plain three streams, on the rendered set.

Matched by what each network gives, nothing completed: not every one of them can be.
"""

from facenet_jax.lab import Row, Table

ROWS = {
    "DINOv2": "backbones/demo.py:dinov2",
    "DINOv3": "backbones/demo.py:dinov3",
    "CLIP": "backbones/demo.py:clip",
    "FACENet on DINOv3": "backbones/demo.py:facenet_dinov3",
    "experts": "joined/demo.py:experts",
    "proxies": "joined/demo.py:proxies",
    "experts and proxies": "joined/demo.py:both",
    "HAMNet": "hosts/demo.py:hamnet",
    "PFNet": "hosts/demo.py:pfnet",
    "IEEE": "hosts/demo.py:ieee",
    "TOP-ReID": "hosts/demo.py:topreid",
    "EDITOR": "hosts/demo.py:editor",
}
"""{row: config of configs/}; the networks are small and start from random weights."""


def get_table() -> Table:
    """Each against the three streams of the demo's small ViT."""
    plain = {"evaluate.complete": ()}
    rows = [Row("three streams", scored=plain)]
    rows += [Row(name, config=f"configs/{path}", scored=plain) for name, path in ROWS.items()]
    return Table("Systems against three streams", "configs/demo_baseline.py", tuple(rows))
