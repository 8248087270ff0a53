"""What helps on flared queries: FACENet flare, and what is matched (docs/flare.md)."""

from facenet_jax.lab import Row, Table

BEFORE = {"model.neck_feature": "before", "evaluate.complete": ()}
AFTER = {"model.neck_feature": "after", "evaluate.complete": ()}
CENTRED = {"evaluate.centre": True}
WEIGHED = {**AFTER, "evaluate.flare_weight": 0.5}
COMPLETED = {**AFTER, "evaluate.complete": (3, 3.0)}
EXPANDED = {"evaluate.expand": (5, 3.0)}
BOTH = {**EXPANDED, "evaluate.augment_gallery": (5, 3.0)}
FLARE = {"augment.flare": 0.5}
UNIT = {"losses.triplet.normalise": True, "losses.triplet.margin": 0.3}
NO_METRIC = {"losses.triplet.weight": 0.0}
STREAMS = "three_stream"


def get_table() -> Table:
    """The baseline matched in several ways, and each method under the paper's way and the best."""
    plain, best = "baseline", "baseline after"
    return Table(
        "Flare awareness",
        "configs/demo.py",
        (
            Row(plain, argument=STREAMS, scored=BEFORE),
            Row("baseline centred", argument=STREAMS, scored={**BEFORE, **CENTRED}),
            Row(best, argument=STREAMS, scored=AFTER),
            Row("baseline after centred", argument=STREAMS, scored={**AFTER, **CENTRED}),
            Row("weighed", argument=STREAMS, scored=WEIGHED),
            Row("weighed against after", argument=STREAMS, scored=WEIGHED, against=best),
            Row("completed", argument=STREAMS, scored=COMPLETED, against=best),
            Row("expanded", argument=STREAMS, scored={**AFTER, **EXPANDED}, against=best),
            Row(
                "completed and expanded",
                argument=STREAMS,
                scored={**COMPLETED, **EXPANDED},
                against="expanded",
            ),
            Row("all expanded", argument=STREAMS, scored={**AFTER, **BOTH}, against=best),
            Row(
                "completed and all expanded",
                argument=STREAMS,
                scored={**COMPLETED, **BOTH},
                against="all expanded",
            ),
            Row("FACENet", scored=BEFORE),
            Row("FACENet after", scored=AFTER, against=best),
            Row("FACENet completed", scored=COMPLETED, against="completed"),
            Row("flare", FLARE, STREAMS, scored=BEFORE),
            Row("flare after", FLARE, STREAMS, scored=AFTER, against=best),
            Row("unit triplet loss", UNIT, STREAMS, scored=BEFORE),
            Row("unit triplet loss after", UNIT, STREAMS, scored=AFTER, against=best),
            Row("no metric loss", NO_METRIC, STREAMS, scored=BEFORE),
            Row("no metric loss after", NO_METRIC, STREAMS, scored=AFTER, against=best),
            Row("FACENet flare", FLARE, scored=BEFORE),
            Row("FACENet flare after", FLARE, scored=AFTER, against=best),
        ),
    )
