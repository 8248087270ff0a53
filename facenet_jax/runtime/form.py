"""What a JSON file of a workdir must hold, as a pattern, so that a damaged file is one sentence."""

import math
from types import NoneType
from typing import Any

NUMBER = (int, float)
EACH = ...
"""The key of a pattern that stands for every key of a dict that is not named."""

SCORES = {
    "mAP": NUMBER,
    "mINP": NUMBER,
    "cmc": {EACH: NUMBER, "1": NUMBER, "5": NUMBER, "10": NUMBER},
    **dict.fromkeys(("step", "queries", "valid_queries", "gallery"), int),
}
RESULT = {"protocol": str, EACH: SCORES}
"""result.json: the protocol, and one row for each checkpoint that was scored."""

ENVIRONMENT = {"command": [str], "devices": [str], "packages?": {EACH: str}}
"""environment.json, as far as a report shows it."""

OF_STEP = {"step": int}
"""embeddings/checkpoint.json."""

THRESHOLDS = {
    "step": int,
    "pairs": str,
    "genuine_pairs": int,
    "impostor_pairs": int,
    "modalities": [str],
    "thresholds": dict.fromkeys(("eer", EACH), ({"cosine": NUMBER}, NoneType)),
}
"""embeddings/threshold.json."""

MODALITIES = {"subsets": {"shared": {EACH: {EACH: ({"mAP": NUMBER}, NoneType)}}}}
"""modalities.json, as far as a report shows it."""

PER_MODALITY = {EACH: dict.fromkeys(("all", "clean", "flared"), (*NUMBER, NoneType))}
"""per_modality.json: mAP of each subset of the modalities."""


def fits(value: Any, pattern: Any) -> bool:
    """Whether a value from JSON has the form of a pattern.

    A type: a value of it, numbers finite. A tuple: one of these. [pattern]: a list of such values.
    A dict: these keys at least, each of its form, and the others as `EACH` says, if it is there;
    a key may be missing if a "?" follows its name.
    """
    if isinstance(pattern, tuple):
        return any(fits(value, each) for each in pattern)
    if isinstance(pattern, list):
        return isinstance(value, list) and all(fits(x, pattern[0]) for x in value)
    if isinstance(pattern, dict):
        needed = {name for name in pattern if name is not EACH and not name.endswith("?")}
        if not isinstance(value, dict) or not needed <= value.keys():
            return False
        named = {name.removesuffix("?"): x for name, x in pattern.items() if name is not EACH}
        other = pattern.get(EACH, object)
        return all(fits(x, named.get(name, other)) for name, x in value.items())
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, pattern) and not (isinstance(value, bool) and pattern is int)
