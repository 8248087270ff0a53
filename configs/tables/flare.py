"""What helps on flared queries: FACENet, flare in training, and what is matched (docs/flare.md)."""

from facenet_jax.lab import Row, Table

BEFORE = {"model.neck_feature": "before", "evaluate.complete": ()}
AFTER = {"model.neck_feature": "after", "evaluate.complete": ()}
COMPLETED = {**AFTER, "evaluate.complete": (3, 3.0)}
CENTRED = {"evaluate.centre": True}
EXPANDED = {"evaluate.expand": (5, 3.0)}
ALL_EXPANDED = {**EXPANDED, "evaluate.augment_gallery": (5, 3.0)}
RERANKED = {"evaluate.rerank": (20, 6, 0.3)}

WAYS = {
    "before": (BEFORE, ""),
    "before centred": ({**BEFORE, **CENTRED}, "before"),
    "after": (AFTER, "before"),
    "after centred": ({**AFTER, **CENTRED}, "after"),
    "weighed": ({**AFTER, "evaluate.flare_weight": 0.5}, "after"),
    "completed": (COMPLETED, "after"),
    "expanded": ({**AFTER, **EXPANDED}, "after"),
    "completed and expanded": ({**COMPLETED, **EXPANDED}, "expanded"),
    "all expanded": ({**AFTER, **ALL_EXPANDED}, "after"),
    "completed and all expanded": ({**COMPLETED, **ALL_EXPANDED}, "all expanded"),
    "re-ranked": ({**AFTER, **RERANKED}, "after"),
    "completed and re-ranked": ({**COMPLETED, **RERANKED}, "re-ranked"),
}
"""{way of matching: (options, the way it is compared with)}; before and after the neck."""

FLARE = {"augment.flare": 0.5}
TRAININGS = {
    "flare": (FLARE, "three_stream"),
    "unit triplet loss": (
        {"losses.triplet.normalise": True, "losses.triplet.margin": 0.3},
        "three_stream",
    ),
    "no metric loss": ({"losses.triplet.weight": 0.0}, "three_stream"),
    "FACENet with flare": (FLARE, ""),
}
"""{training: (what differs from the recipe, the model as an argument of the config)}."""


def get_table() -> Table:
    """The baseline in every way of matching, FACENet in each against it, then other trainings."""
    rows = []
    for way, (options, other) in WAYS.items():
        name = f"baseline {way}"
        against = f"baseline {other}" if other else name
        rows.append(Row(name, argument="three_stream", scored=options, against=against))
    for way, (options, _) in WAYS.items():
        rows.append(Row(f"FACENet {way}", scored=options, against=f"baseline {way}"))
    for name, (changes, model) in TRAININGS.items():
        for way, options in (("before", BEFORE), ("after", AFTER)):
            row = Row(f"{name} {way}", changes, model, scored=options, against=f"baseline {way}")
            rows.append(row)
    return Table("Flare awareness", "configs/demo.py", tuple(rows))
