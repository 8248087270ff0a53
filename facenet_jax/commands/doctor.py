"""Examines a data set before any training and says what is wrong with it, all in one pass.

facenet doctor --dataset wmveid863 --root DIR [--incomplete skip] [--json FILE]

Exit code: 0 without errors (warnings may be there), 1 with errors, 2 where the data set is missing.
"""

import dataclasses
import json
import pathlib
import sys

from data_tfds.doctor import Report, examine
from data_tfds.errors import UserError
from facenet_jax.runtime.arguments import Parser, add_data_set

SHOWN = 5
"""Files shown of a finding; `--all` and `--json` give every one."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code, see above."""
    parser = Parser("doctor", __doc__.splitlines()[0])
    add_data_set(parser)
    parser.add_argument("--json", default="", help="file for the report as JSON")
    parser.add_argument("--all", action="store_true", help="show every file of every finding")
    options = parser.parse_args(arguments)
    try:
        report = examine(options.dataset, options.root, options.incomplete)
        if options.json:
            _write(report, pathlib.Path(options.json))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(text(report, sys.maxsize if options.all else SHOWN))
    return report.exit_code


def text(report: Report, shown: int) -> str:
    """The report for people, with up to `shown` files a finding."""
    lines = [f"{report.dataset} at {report.root}, protocol {report.protocol}"]
    lines.append(f"modalities: {', '.join(report.modalities)}")
    for split, numbers in report.splits.items():
        low, median, high = numbers["samples_per_identity"]
        views = ", ".join(f"{view}: {n}" for view, n in numbers["samples_per_camera"].items())
        flare = "; ".join(
            f"{rule} {', '.join(f'{each} {share:.1%}' for each, share in numbers[key].items())}"
            for rule, key in (("luma", "flare_luma"), ("release's rule", "flare_histogram"))
        )
        lacking = {m: n for m, n in numbers["images"].items() if n < numbers["samples"]}
        lines += [
            f"{split}: {numbers['samples']} samples of {numbers['identities']} identities, "
            f"{low} to {high} each (median {median:g})",
            f"    by camera or view: {views}",
            *([f"    flare: {flare}"] if numbers["flare_luma"] else []),
            *(f"    {modality}: {count} images" for modality, count in lacking.items()),
        ]
    for finding in report.findings:
        lines += [f"{finding.severity.upper()}: {finding.what}. Preparing {finding.builder}."]
        lines += [f"    {file}" for file in finding.files[:shown]]
        if len(finding.files) > shown:
            lines.append(f"    and {len(finding.files) - shown} more (--all shows them)")
    errors = sum(finding.severity == "error" for finding in report.findings)
    lines.append(f"errors: {errors}, warnings: {len(report.findings) - errors}")
    return "\n".join(lines)


def _write(report: Report, path: pathlib.Path) -> None:
    try:
        path.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}.") from error
