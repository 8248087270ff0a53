"""Scores where samples lack modalities: each subset against each, and ever more at random.

Both start from the embeddings of every subset of the modalities, made by the network from just
those images. The mean of parts needs an embedding with a part for each modality.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax.retrieval.embeddings import Embeddings
from facenet_jax.retrieval.scoring import evaluate

Subset = tuple[str, ...]
BySubset = Mapping[Subset, Embeddings]
"""The embeddings of one side by the modalities that the network saw."""

MATCHINGS = ("shared", "mean")
"""How samples of different modalities are compared.

shared: by the parts that both have, mostly one for each modality. Where samples lack modalities at
random a part that is missing is 0, so that the length of a gallery row counts its other parts too.
mean: by the mean of the parts that a sample has (CCNet Eq. 17), which needs branches with a common
space, such as the CdC loss makes.
"""

RATIOS = tuple(tenth / 10 for tenth in range(11))
"""Of CCNet's Fig. 10."""


def subsets(modalities: Sequence[str]) -> list[Subset]:
    """All subsets but the empty one, small ones first."""
    sizes = range(1, len(modalities) + 1)
    return [each for size in sizes for each in itertools.combinations(modalities, size)]


def joined(by_subset: BySubset, present: np.ndarray, matching: str) -> Embeddings:
    """The embeddings of a side whose samples have the modalities `present` bool [N, M].

    M in the order of the largest subset. Row i is what the network makes of just the images that
    sample i has, as `MATCHINGS` describes. Raises UserError for the mean of parts that are not one
    for each modality, or of different widths.
    """
    modalities = max(by_subset, key=len)
    whole = by_subset[modalities]
    widths = {stop - start for start, stop in whole.parts.values()}
    alike = tuple(whole.parts) == modalities and len(widths) == 1
    if matching == "mean" and not alike:
        raise UserError(
            f"The parts of the embedding are {', '.join(whole.parts)}, {sorted(widths)} columns "
            f"wide; a mean needs one for each of {', '.join(modalities)}, all alike."
        )
    flat = np.zeros(whole.embedding.shape, np.float32)
    for subset, side in by_subset.items():
        rows = (present == [name in subset for name in modalities]).all(axis=1)
        for name, (start, stop) in side.parts.items():
            flat[rows, slice(*whole.parts[name])] = side.embedding[rows, start:stop]
    if matching != "mean":
        return Embeddings(flat, dict(whole.parts), whole.identity, whole.name, whole.labels)
    total = sum(flat[:, slice(*span)] for span in whole.parts.values())
    mean = total / np.maximum(present.sum(axis=1), 1)[:, None]
    spans = {"mean": (0, mean.shape[1])}
    return Embeddings(mean, spans, whole.identity, whole.name, whole.labels)


def each_against_each(
    query: BySubset, gallery: BySubset, protocol: Protocol, matching: str, centre: bool = False
) -> dict[str, dict[str, dict[str, Any] | None]]:
    """{modalities of the queries: {those of the gallery: scores}}, joined by +.

    None where nothing is shared and `matching` is "shared". `centre` as of `evaluate`.
    """
    sides = [
        {subset: joined(side, _all_have(side, subset), matching) for subset in side}
        for side in (query, gallery)
    ]
    table: dict[str, dict[str, dict[str, Any] | None]] = {}
    for of_query, left in sides[0].items():
        row = table["+".join(of_query)] = {}
        for of_gallery, right in sides[1].items():
            pair = left, right
            if matching == "shared":
                both = query[of_query].parts.keys() & gallery[of_gallery].parts.keys()
                common = [part for part in left.parts if part in both]
                pair = [side.select(common) for side in pair] if common else None
            scores = evaluate(*pair, protocol, centre=centre).metrics() if pair else None
            row["+".join(of_gallery)] = scores
    return table


def at_random(
    query: BySubset,
    gallery: BySubset,
    protocol: Protocol,
    matching: str,
    *,
    centre: bool = False,
    ratios: Iterable[float] = RATIOS,
    seeds: Sequence[int] = tuple(range(1, 11)),
) -> list[dict[str, Any]]:
    """Scores where a share of all samples, queries and gallery together, lacks modalities.

    For each ratio {"ratio", "mAP", "R-1", "deviation": {"mAP", "R-1"}} over the seeds, as in
    CCNet's Fig. 10; see `draw`. `centre` as of `evaluate`.
    """
    whole = [side[max(side, key=len)] for side in (query, gallery)]
    had = np.concatenate([_present(side) for side in (query, gallery)])
    found = []
    for ratio in ratios:
        scores = []
        for seed in seeds:
            kept = had & draw(*had.shape, ratio, np.random.default_rng(seed))
            kept = np.where(kept.any(axis=1, keepdims=True), kept, had)
            halves = kept[: len(whole[0])], kept[len(whole[0]) :]
            sides = [
                joined(side, present, matching)
                for side, present in zip((query, gallery), halves, strict=True)
            ]
            metrics = evaluate(*sides, protocol, centre=centre).metrics()
            scores.append((metrics["mAP"], metrics["cmc"]["1"]))
        mean, spread = np.mean(scores, axis=0), np.std(scores, axis=0)
        named = [dict(zip(("mAP", "R-1"), map(float, x), strict=True)) for x in (mean, spread)]
        found.append({"ratio": ratio, **named[0], "deviation": named[1]})
    return found


def draw(count: int, modalities: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Which images are there: bool [count, modalities].

    int(count x ratio) samples lack some: of these as many keep one modality as keep two, and so on
    up to all but one. Which samples, and which modalities they keep, is uniform.
    """
    present = np.ones((count, modalities), bool)
    if modalities < 2:
        return present
    chosen = rng.permutation(count)[: int(count * ratio)]
    for keep, rows in enumerate(np.array_split(chosen, modalities - 1), start=1):
        order = rng.random((len(rows), modalities)).argsort(axis=1)
        present[rows] = order < keep
    return present


def text(
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """`each_against_each` and `at_random` of each matching, as tables of mAP in per cent."""
    lines = []
    for matching, table in tables.items():
        lines += [f"mAP, matched by {_MEANING[matching]}; rows: the queries have, columns: gallery"]
        letters = {name: short(name) for name in table}
        lines += [f"{'':8}" + "".join(f"{letters[name]:>8}" for name in table)]
        for name, row in table.items():
            cells = ("-" if cell is None else f"{100 * cell['mAP']:.1f}" for cell in row.values())
            lines += [f"{letters[name]:8}" + "".join(f"{cell:>8}" for cell in cells)]
        lines += [""]
    for matching, curve in curves.items():
        lines += [f"share of samples that lack modalities, matched by {_MEANING[matching]}"]
        lines += ["  share     mAP             R-1"]
        for point in curve:
            cells = (
                f"{100 * point[name]:5.1f} +- {100 * point['deviation'][name]:4.1f}"
                for name in ("mAP", "R-1")
            )
            lines += [f"{point['ratio']:7.1f}   {'   '.join(cells)}"]
        lines += [""]
    names = sorted({name for table in tables.values() for name in table if "+" not in name})
    lines += [", ".join(f"{short(name)}: {name}" for name in names)]
    return "\n".join(lines)


_MEANING = {"shared": "the parts that both have", "mean": "the mean of the parts"}

_LETTERS = {"visible": "R", "near_infrared": "N", "thermal": "T"}


def short(names: str) -> str:
    """R+N for visible+near_infrared; other modalities by their first three letters."""
    return "+".join(_LETTERS.get(name, name[:3]) for name in names.split("+"))


def _present(by_subset: BySubset) -> np.ndarray:
    """Which images there are, bool [N, M]."""
    modalities = max(by_subset, key=len)
    whole = by_subset[modalities]
    return whole.labels.get("present", np.ones((len(whole), len(modalities)), bool))


def _all_have(by_subset: BySubset, subset: Subset) -> np.ndarray:
    """Just the modalities of a subset, in every sample that has them: bool [N, M]."""
    return _present(by_subset) & [name in subset for name in max(by_subset, key=len)]
