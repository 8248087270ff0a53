"""Infrared finds visible, as in SYSU-MM01 (all search, single shot)."""

import numpy as np

from data_tfds.samples import INFRARED, VISIBLE, Protocol, Side

TRIALS = 10


def single_shot(gallery) -> list[np.ndarray]:
    """Ten galleries with one image of each identity and camera."""
    identity, camera = gallery["identity"], gallery["camera"]
    places = np.unique(np.stack([identity, camera]), axis=1).T
    trials = []
    for trial in range(TRIALS):
        generator = np.random.default_rng(trial)
        own = [np.flatnonzero((identity == i) & (camera == c)) for i, c in places]
        trials.append(np.array([generator.choice(rows) for rows in own]))
    return trials


def all_search(query: str, gallery: str) -> Protocol:
    """Queries of camera 3 ignore all images of camera 2, which stands in the same room."""
    return Protocol(
        "vi/all_search",
        query=Side(query, (INFRARED,)),
        gallery=Side(gallery, (VISIBLE,)),
        ignore=(("camera", 3, 2),),
        trials=single_shot,
        collapse=True,
        select="R1",
    )


ALL_SEARCH = all_search("test", "test")
"""Where one split holds both sides."""

OF_FILES = all_search("query", "gallery")
