"""Three streams on WMVeID863 that look up what flare hides: our variant, in no paper.

Matched after the neck's BatchNorm; where a modality is flared, in a query or in a gallery sample,
its part of the embedding is that of the most similar gallery samples whose image of this modality
is not (facenet_jax/retrieval/completion.py). So a score needs the whole gallery, as re-ranking
does. Measured on rendered vehicles only (docs/flare.md); the training is that of the baseline.
"""

from configs import wmveid863


def get_config():
    """The recipe of the baseline with another matching."""
    c = wmveid863.get_config("three_stream")
    c.model.neck_feature = "after"
    c.evaluate.complete = (3, 3.0)
    return c
