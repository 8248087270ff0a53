"""What a data set says of its samples: the names of its modalities, and the rules of a score."""

import dataclasses

BANDS = ("visible", "near_infrared", "thermal")
"""The three spectra R, N, T in the order of every modality axis in this package."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The rules of one retrieval score; they belong to a data set and are printed with it."""

    name: str  # "wmveid863/official", "rendered/camera", ...
    junk: str  # gallery entries of the query's identity and same "camera" | "scene" | "none" go
