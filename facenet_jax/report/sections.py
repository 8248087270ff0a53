"""The sections of the page, in their order."""

import shlex
from collections.abc import Callable, Sequence

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax.report import curves, inside, ranked
from facenet_jax.report.blocks import Block, Section, Table, Text, percent, span
from facenet_jax.report.finished import Finished
from facenet_jax.runtime import form

FEW_SAMPLES = 3000
"""Of query and gallery: up to these "auto" asks the doctor."""

PARTS: Sequence[tuple[str, str, Callable[[Finished], list[Block]]]] = (
    (
        "Ranked lists",
        "A query and the nearest gallery entries, all modalities below each other. Green: the same "
        "identity; red: another; grey: junk, which the protocol leaves out.",
        ranked.lists,
    ),
    ("Ranks and pairs", "How far down matches are, and how well pairs can be told.", curves.ranks),
    ("Identities", "Some are hard.", curves.identities),
    ("Modalities", "What each modality gives.", curves.modality_tables),
    ("Map of the gallery", "Near points have near embeddings.", curves.gallery_map),
    (
        "Flare masks",
        "How much of each patch would be thermal, before and after mutual prediction (MFMP).",
        inside.masks,
    ),
    (
        "Attention",
        "Which patches reach the class token over all layers, and in the last one.",
        inside.attention,
    ),
    ("Training", "Each line is a mean over neighbouring steps.", curves.training),
)


def of_all(runs: Sequence[Finished], doctor: str) -> list[Section]:
    """All sections, those of two runs side by side."""
    found = [
        Section(
            "Scores",
            "In per cent, with intervals of 95 % over query identities, which say nothing of other "
            "seeds.",
            [scores(run) for run in runs],
        )
    ]
    if len(runs) == 2:
        found.append(Section("Compared", "The same queries.", [compared(*runs)]))
    found += [Section(title, about, [make(run) for run in runs]) for title, about, make in PARTS]
    found.append(Section("Data", "What was scored.", [data(run, doctor) for run in runs]))
    found.append(
        Section(
            "Config and environment",
            "What it takes to do it again.",
            [environment(run) for run in runs],
        )
    )
    return found


def compared(first: Finished, second: Finished) -> list[Block]:
    """Both runs query by query, or why they cannot be compared."""
    try:
        return curves.scatter(first, second)
    except UserError as error:
        return [Text(str(error))]


def scores(run: Finished) -> list[Block]:
    """What result.json says, the intervals of what is exported, and the scores by label."""
    names = ("mAP", "mINP", "R1", "R5", "R10")
    rows, ends = [], run.details["intervals"]
    for name, row in run.result.items():
        if name == "protocol":
            continue
        cells = [percent(row["mAP"]), percent(row["mINP"])]
        cells += [percent(row["cmc"][rank]) for rank in ("1", "5", "10")]
        counts = f"{row['valid_queries']} of {row['queries']}"
        rows.append([name.replace("_", " "), *cells, counts, str(row["gallery"]), str(row["step"])])
    here = run.ranking.metrics()
    interval = [span(ends["mAP"]), span(ends["mINP"])]
    interval += [span(ends["cmc"][rank]) for rank in ("1", "5", "10")]
    counts = f"{here['valid_queries']} of {here['queries']}"
    rows.append(
        [f"interval at step {run.step}", *interval, counts, str(here["gallery"]), str(run.step)]
    )
    head = ["", *names, "valid queries", "gallery", "step"]
    return [
        Table(head, rows, f"Protocol {run.protocol.name}", marked=frozenset({0, len(rows) - 1})),
        pairs(run),
        by_label(run),
    ]


def pairs(run: Finished) -> Table:
    """The rates of pairs and the stored threshold."""
    found = run.details["verification"]
    ends = found["intervals"]
    rows = [["EER", percent(found["eer"]), span(ends["eer"])]]
    for limit, rate in found["tpr_at_fpr"].items():
        rows.append([f"TPR at FPR {limit}", percent(rate), span(ends["tpr_at_fpr"][limit])])
    rows.append(["area under the ROC", percent(found["auc"]), ""])
    stored = run.optional("embeddings/threshold.json", form.THRESHOLDS)
    point = stored and stored["thresholds"]["eer"]
    if point:
        words = f"pairs {stored['pairs']}, less the gallery's mean"
        rows.append(["cosine threshold at the EER", f"{point['cosine']:.3f}", words])
    return Table(["pairs: same or not", "", "interval"], rows)


def by_label(run: Finished) -> Table:
    """The scores of queries by camera, view, scene, day or night, and flare."""
    rows = []
    for label, values in run.details["by_label"].items():
        for value, row in values.items() if label != "identity" else ():
            cells = ["-", "", "-", "0"]
            if row:
                cells = [percent(row["mAP"]), span(row["intervals"]["mAP"])]
                cells += [percent(row["cmc"]["1"]), str(row["valid_queries"])]
            rows.append([label, value.replace("_", "-"), *cells])
    head = ["queries by", "", "mAP", "interval", "R1", "queries"]
    return Table(head, rows, "Scores by label", folded=len(rows) > 30)


def data(run: Finished, doctor: str) -> list[Block]:
    """The numbers of each side, and what the doctor found."""
    rows = []
    for name, side in (("query", run.query), ("gallery", run.gallery)):
        flare = side.labels.get("flare")
        shares = [percent(x) for x in flare.mean(axis=0)] if flare is not None else []
        cameras = side.labels.get("camera")
        known = str(len({*cameras[cameras >= 0].tolist()})) if cameras is not None else "-"
        identities = str(len({*side.identity.tolist()}))
        rows.append([name, str(len(side)), identities, known, " / ".join(shares) or "-"])
    of = " / ".join(part.replace("_", "-") for part in run.query.parts)
    head = ["", "samples", "identities", "cameras", f"flared, % ({of})"]
    blocks: list[Block] = [Table(head, rows, f"{run.config.data.name} at {run.config.data.root}")]
    if isinstance(run.dataset, str):
        return [*blocks, Text(run.dataset)]
    few = len(run.query) + len(run.gallery) <= FEW_SAMPLES
    if doctor == "never" or (doctor == "auto" and not few):
        words = "The doctor was not asked; facenet report --doctor always asks it."
        return [*blocks, Text(words)]
    return [*blocks, *findings(run)]


def findings(run: Finished) -> list[Block]:
    """What `facenet doctor` says of the files."""
    from data_tfds.doctor import examine

    options = run.config.data
    try:
        report = examine(options.name, options.root, options.incomplete)
    except (UserError, KeyError, ImportError, ValueError) as error:
        return [Text(f"The doctor cannot examine this data set: {error}")]
    if not report.findings:
        return [Text("The doctor found nothing wrong.")]
    rows = [
        [each.severity, each.what, str(len(each.files)), ", ".join(map(str, each.files[:3]))]
        for each in report.findings
    ]
    return [Table(["doctor", "what", "files", "such as"], rows)]


def environment(run: Finished) -> list[Block]:
    """The command, the versions, and every option."""
    known = run.environment
    command = shlex.join(known["command"]) if known.get("command") else "not known"
    commit = f"git checkout {known['commit']}\n" if known.get("commit") else ""
    rows = [
        [name, str(known[name])]
        for name in ("python", "platform", "cores", "backend", "processes")
        if name in known
    ]
    rows.append(["devices", ", ".join(known.get("devices", ()))])
    rows += [[name, version] for name, version in known.get("packages", {}).items()]
    options = configs.describe(run.config)
    command = f"python {command}" if command.startswith("main.py") else command
    changed = [[name, str(value)] for name, value, option in options if value != option.default]
    return [
        Text(commit + command, plain=True),
        Table(["option", "value"], changed, "Options beside their defaults"),
        Table(
            ["option", "value", "meaning"],
            [[name, str(value), option.about] for name, value, option in options],
            "All options",
            folded=True,
        ),
        Table(["", ""], rows, "Environment of the training", folded=True),
    ]
