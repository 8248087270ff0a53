"""Which samples of a listing are prepared, and the refusal of a data set that is not sound."""

import collections
from collections.abc import Iterable, Mapping, Sequence

from absl import logging

from data_tfds.errors import UserError, printable
from data_tfds.listing import Listing, Problem
from data_tfds.samples import Protocol, Sample, Side

SHOWN = 20
"""How many file names one message lists before it only counts."""

INCOMPLETE_RULES = ("error", "skip", "keep")
"""What may become of a sample that lacks an image: the option data.incomplete."""


def accept(listing: Listing, incomplete: str, dataset: str) -> dict[str, list[Sample]]:
    """The samples of a settled listing, where it is sound.

    Files that belong to no sample are left out with one warning. Samples that lack an image are an
    error, are left out with one warning or kept, as `incomplete` says. Every other problem is a
    UserError that tells the first one and counts the rest.
    """
    by_kind = collections.defaultdict(list)
    for problem in listing.problems:
        by_kind[problem.kind].append(problem)
    _leave_out(by_kind["stray"], "files that belong to no sample", dataset)
    for kind in ("identity", "name"):
        _refuse(by_kind[kind], "; mend or remove it")
    lacking = by_kind["incomplete"]
    if incomplete == "error":
        _refuse(
            lacking,
            "; add the file, or leave such samples out with --config.data.incomplete=skip, or keep "
            "them with --config.data.incomplete=keep",
        )
    if incomplete == "keep":
        kept = [problem for problem in lacking if problem.usable]
        if kept:
            logging.info("%s: %d samples lack a modality and are kept.", dataset, len(kept))
        lacking = [problem for problem in lacking if not problem.usable]
    _leave_out(lacking, "incomplete samples", dataset)
    _refuse(by_kind["empty"], "; check that the archive was unpacked whole")
    return listing.splits


def check_incomplete(incomplete: str) -> None:
    """UserError unless `incomplete` is one of the rules."""
    if incomplete not in INCOMPLETE_RULES:
        raise UserError(f'data.incomplete is "{incomplete}" and must be "error", "skip" or "keep".')


def sides(
    splits: Mapping[str, list[Sample]], protocol: Protocol, modalities: tuple[str, ...]
) -> tuple[list[Sample], list[Sample]]:
    """The queries and the gallery of a protocol; without a split query the gallery queries."""

    def of(side: Side) -> list[Sample]:
        found = splits.get(side.split, [])
        if side.split == "query" and "query" not in splits:
            found = splits.get("gallery", [])
        if not side.modalities or not modalities:
            return found
        columns = [modalities.index(m) for m in side.modalities if m in modalities]
        return [each for each in found if any(each.files[c] for c in columns)]

    return of(protocol.query), of(protocol.gallery)


def unmatched(queries: list[Sample], gallery: list[Sample], protocol: Protocol) -> list[Sample]:
    """The queries whose identity the gallery lacks, or has only where the protocol leaves it out.

    `protocol.trials` are not looked at.
    """
    labels = [*({protocol.junk} - {"none"}), *(label for label, _, _ in protocol.ignore)]
    held = collections.defaultdict(set)  # identity -> the labels of its gallery entries
    for each in gallery:
        held[each.identity].add(tuple(getattr(each, label) for label in labels))

    def counts(query: Sample, entry: tuple[int, ...]) -> bool:
        values = list(zip(labels, entry, strict=True))
        if protocol.junk != "none":
            label, value = values.pop(0)
            if value == getattr(query, label):
                return False
        return not any(
            getattr(query, label) == own and value == other
            for (label, value), (_, own, other) in zip(values, protocol.ignore, strict=True)
        )

    return [q for q in queries if not any(counts(q, entry) for entry in held[q.identity])]


def _refuse(problems: Sequence[Problem], advice: str) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0].text}{more}{advice}.")


def _leave_out(problems: Sequence[Problem], what: str, dataset: str) -> None:
    if problems:
        names = some(printable(problem.name) for problem in problems)
        logging.warning("%s: %d %s are left out: %s", dataset, len(problems), what, names)


def some(names: Iterable) -> str:
    """The first names of a sorted list, and how many more there are."""
    names = sorted(map(str, names))
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
