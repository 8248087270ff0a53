"""FACENet's switches on equal terms: masks, gate, heads and the release's form (docs/flare.md)."""

from configs import common
from configs.official import official
from configs.tables.facenet_3 import NO_FCE, NO_HEADS, NO_MC, NO_MFMP
from configs.tables.flare import AFTER, BEFORE
from facenet_jax.lab import Row, Table
from facenet_jax.stored import flat


def release() -> dict[str, object]:
    """{option: value} in which the preset `official` differs: of the network and the losses.

    And how many samples are embedded at once, which the release's gate looks at.
    """
    ours, theirs = (
        flat(c.to_dict())
        for c in (common.get_config("facenet"), official(common.get_config("facenet")))
    )
    kept = [name for name in theirs if name.startswith(("model.", "losses.", "evaluate.batch"))]
    return {name: theirs[name] for name in kept if ours[name] != theirs[name]}


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
    "release's form": release(),
}
"""{row: what differs from FACENet's recipe}."""


def get_table() -> Table:
    """Each before and after the neck, against the baseline matched in the same way."""
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
