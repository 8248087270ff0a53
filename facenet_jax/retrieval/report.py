"""Scores as text, in per cent: one line for the log, and tables."""

from collections.abc import Mapping
from typing import Any

Scores = Mapping[str, Any]
"""What `Result.metrics` gives, and whatever the caller added."""


MOST_VALUES = 12
"""Of a label, in a table of scores."""


def line(scores: Scores, protocol_name: str) -> str:
    """Scores as one line for the log; +- is the standard deviation over trials, if several."""
    spread = scores.get("deviation")

    def cell(name, value, deviation):
        shown = f"{name} {100 * value:.1f}"
        return shown if deviation is None else f"{shown} +- {100 * deviation:.1f}"

    cells = [cell(name, scores[name], spread and spread[name]) for name in ("mAP", "mINP")]
    cells += [cell(f"R{k}", x, spread and spread["cmc"][k]) for k, x in scores["cmc"].items()]
    valid = scores["valid_queries"]
    trials = f"{scores['trials']} trials, " if spread else ""
    return (
        f"{' '.join(cells)} ({protocol_name}: {trials}{valid} queries valid, "
        f"{scores['queries'] - valid} skipped, gallery {scores['gallery']})"
    )


def table(scores: Scores) -> str:
    """The scores of files: a line for all queries, and for clean and flared ones if told apart.

    Beside the scores, `protocol` (its name), `modalities`, `rerank` {name: value} or None, and
    where the files say what is flared `clean` and `flared`: scores, or None without valid queries.
    """
    title = f"protocol {scores['protocol']}"
    if scores["modalities"]:
        title += f", modalities {' + '.join(scores['modalities'])}"
    if scores["rerank"]:
        title += ", re-ranked with " + ", ".join(f"{k} {v}" for k, v in scores["rerank"].items())
    averaged = {
        "complete": "blinded parts from",
        "expand": "queries averaged with",
        "augment_gallery": "gallery averaged with",
    }
    for name, words in averaged.items():
        if name in scores:
            title += f", {words} {scores[name]['neighbours']} neighbours"
            title += f" (alpha {scores[name]['alpha']:g})"
    if "trials" in scores:
        title += f", {scores['trials']} trials"
    lines = [
        f"{title}, gallery {scores['gallery']}",
        "queries   mAP  mINP    R1    R5   R10   R20    valid  skipped",
    ]
    subsets = [(name, scores[name]) for name in ("clean", "flared") if name in scores]
    for name, row in (("all", scores), *subsets):
        if row is None:
            lines.append(f"{name:7}   no query with a match")
            continue
        skipped = row["queries"] - row["valid_queries"]
        lines.append(f"{name:7}{_cells(row)}{row['valid_queries']:9}{skipped:9}")
        if "deviation" in row:
            lines.append(f"{'  +-':7}{_cells(row['deviation'])}")
    return "\n".join(lines)


def report(result: Mapping[str, Any], per_modality: Mapping[str, Scores] | None) -> str:
    """What result.json holds, and mAP by modalities where it was asked for, as tables.

    `result` has the protocol's name under "protocol" and scores with their `step` under any other
    name. `per_modality` is {modalities joined by "+": {"all", "clean", "flared": mAP or None}}.
    """
    lines = [f"{result['protocol']:28} mAP  mINP    R1    R5   R10  valid skipped   step"]
    for name, scores in result.items():
        if name != "protocol":
            valid = scores["valid_queries"]
            cells = _cells(scores, ("1", "5", "10"))
            cells += f"{valid:7}{scores['queries'] - valid:8}{scores['step']:7}"
            lines.append(f"{name.replace('_', ' '):26}{cells}")
            if "deviation" in scores:
                deviation = _cells(scores["deviation"], ("1", "5", "10"))
                lines.append(f"{'  +- over trials':26}{deviation}{scores['trials']:7} trials")
    if per_modality:
        head = f"{'mAP by modalities present':26}{'all':>6}{'clean':>7}{'flared':>8}  (queries)"
        lines += ["", head]
        for modalities, row in per_modality.items():
            values = ("-" if x is None else f"{100 * x:.1f}" for x in row.values())
            cells = "{:>6}{:>7}{:>8}".format(*values)
            lines.append(f"{modalities.replace('near_infrared', 'near-infrared'):26}{cells}")
    return "\n".join(lines)


def _cells(scores: Scores, ranks: tuple[str, ...] = ("1", "5", "10", "20")) -> str:
    """MAP, mINP and the CMC at these ranks in per cent, six columns each."""
    values = (scores["mAP"], scores["mINP"], *(scores["cmc"][rank] for rank in ranks))
    return "".join(f"{100 * value:6.1f}" for value in values)


def details(found: Mapping[str, Any]) -> str:
    """What `breakdown.details` gives, as tables in per cent.

    Labels of more than MOST_VALUES values are not shown, identities neither.
    """
    ends, pairs = found["intervals"], found["verification"]

    def span(pair: Any, value: float | None = None) -> str:
        head = "" if value is None else f"{100 * value:.1f} "
        return head + (f"[{100 * pair[0]:.1f}, {100 * pair[1]:.1f}]" if pair else "")

    rows = {"mAP": ends["mAP"], "mINP": ends["mINP"]} | {
        f"R{rank}": pair for rank, pair in ends["cmc"].items()
    }
    lines = ["95 % over query identities: " + "  ".join(f"{k} {span(x)}" for k, x in rows.items())]
    counts = f"{pairs['genuine_pairs']} genuine pairs, {pairs['impostor_pairs']} impostors"
    if pairs["eer"] is None:
        lines.append(f"pairs: {counts}; rates need both")
    else:
        cells = [f"EER {span(pairs['intervals']['eer'], pairs['eer'])}"]
        for limit, rate in pairs["tpr_at_fpr"].items():
            known = span(pairs["intervals"]["tpr_at_fpr"][limit], rate) if rate is not None else "-"
            cells.append(f"TPR at FPR {limit} {known}")
        lines.append(f"pairs: {'  '.join(cells)}  ({counts})")
    lines += ["", f"{'queries by':24}   mAP  mINP    R1    R5    valid  mAP within"]
    for label, values in found["by_label"].items():
        if len(values) > MOST_VALUES or label == "identity":
            lines.append(f"{label + ': ' + str(len(values)) + ' values':24}   not shown")
            continue
        for value, scores in values.items():
            cells = "   no query with a match"
            if scores:
                cells = f"{_cells(scores, ('1', '5'))}{scores['valid_queries']:9}"
                cells += f"  {span(scores['intervals']['mAP'])}"
            lines.append(
                f"{label + ' ' + value.replace('near_infrared', 'near-infrared'):24}{cells}"
            )
    return "\n".join(lines)
