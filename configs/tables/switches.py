"""FACENet's switches on equal terms: masks, gate, heads and the release's form (docs/flare.md)."""

from facenet_jax.lab import Row, Table

NO_MC = {"losses.mc.weight": 0.0}
NO_FCE = {"model.fce.enabled": False}
NO_MFMP = {"model.mfmp.enabled": False}
NO_HEADS = {"model.flare_heads": False, "losses.mask_kl.weight": 0.0}
ROWS = {
    "MC": {**NO_FCE, **NO_MFMP, **NO_HEADS},
    "FCE": {**NO_MC, **NO_MFMP, **NO_HEADS},
    "MFMP and FCE": NO_MC,
    "FACENet": {},
    "bias 0": {"model.fce.mask_bias": 0.0},
    "bias -2": {"model.fce.mask_bias": -2.0},
    "hard and bias 0": {"model.fce.mask": "hard", "model.fce.mask_bias": 0.0},
    "straight-through and bias 0": {
        "model.fce.mask": "straight_through",
        "model.fce.mask_bias": 0.0,
    },
    "always": {"model.fce.gate": "always"},
    "supervised heads": {"losses.flare.weight": 0.5},
    "release's form": {
        "model.mfmp.split": "windows",
        "model.mfmp.heads": 16,
        "model.mfmp.norms": 2,
        "model.mfmp.norm_epsilon": 1e-5,
        "model.mfmp.dropout": 0.5,
        "model.mfmp.initializer": "torch",
        "model.fce.mask": "hard",
        "model.fce.mask_bias": 0.0,
        "model.fce.keep": "near_infrared",
        "model.fce.gate": "batch",
        "losses.mask_kl.weight": 0.8,
        "losses.mask_kl.reduction": "batch",
        "losses.mc.reduction": "batch",
    },
}
"""{row: what differs from FACENet's recipe}."""

BEFORE = {"model.neck_feature": "before", "evaluate.complete": ()}
AFTER = {"model.neck_feature": "after", "evaluate.complete": ()}


def get_table() -> Table:
    """Each before and behind the neck, against the baseline matched in the same way."""
    plain, best = "baseline", "baseline after"
    rows = [
        Row(plain, argument="three_stream", scored=BEFORE),
        Row(best, argument="three_stream", scored=AFTER),
    ]
    for name, changes in ROWS.items():
        rows += [
            Row(name, changes, scored=BEFORE, against=plain),
            Row(f"{name} after", changes, scored=AFTER, against=best),
        ]
    return Table("FACENet's switches", "configs/demo.py", tuple(rows))
