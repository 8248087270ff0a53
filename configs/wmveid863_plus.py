"""Three streams on WMVeID863, matched by what can be relied on: our variant, in no paper.

Matched after the neck's BatchNorm, each modality's part of unit length, and a modality that is
flared in the query or in the gallery sample counts half. Measured on rendered vehicles only
(docs/flare.md); the training is that of the baseline.
"""

from configs import wmveid863


def get_config():
    """The recipe of the baseline with another matching."""
    c = wmveid863.get_config("three_stream")
    c.model.neck_feature = "after"
    c.evaluate.flare_weight = 0.5
    return c
