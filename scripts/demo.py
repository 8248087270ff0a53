"""The main job on a set rendered here: what `make demo` runs. No GPU, no data set, no download.

Renders vehicles in three modalities as a WMVeID863 tree, then calls main.py, which prepares it as
the data set `rendered`, trains FACENet, evaluates it, exports embeddings and writes a page with
pictures of the result, report.html. Below its scores stand those recorded of the baseline without
FACENet's own parts.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import time

HOME = pathlib.Path(__file__).resolve().parent.parent


TABLE = "docs/benchmarks.md"
"""Has the measured rows of the demo and of its baseline."""


def recorded(page: str) -> str:
    """What FACENet and its baseline scored on the demo's queries, as a table of means over seeds.

    `page` is TABLE's text, with rows | model | seed | all / clean / flared for each of R + N + T,
    R, N, T, R + N | R-1 |. Nothing is run for it.
    """
    lines = [
        f"Recorded, not run now ({TABLE}): means over seeds, mAP of all / clean / flared queries",
        f"{'':20}{'R + N + T':>20}{'R + N':>20}{'T':>20}",
    ]
    for model, name in (("FACENet", "FACENet"), ("baseline", "three-stream baseline")):
        rows = re.findall(rf"^\| {model} \| \d+ \|(.*)\| [\d.]+ \|$", page, re.MULTILINE)
        seeds = [[[float(x) for x in cell.split("/")] for cell in row.split("|")] for row in rows]
        means = [
            " / ".join(f"{statistics.mean(values):.1f}" for values in zip(*cells, strict=True))
            for cells in zip(*seeds, strict=True)
        ]
        lines.append(f"{name:21}" + "".join(f"{means[column]:>20}" for column in (0, 4, 3)))
    lines += [
        "What this means: trained from scratch, FACENet is behind its baseline on flared queries;",
        "with pretrained weights they are level, and both gain by what is matched (docs/flare.md).",
        "python main.py train --config configs/demo_baseline.py trains the baseline here.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Render and train; the exit code of what failed first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--config", default="configs/demo.py", help="the experiment")
    parser.add_argument("--workdir", help="folder of the run; runs/<name of the config>")
    arguments, rest = parser.parse_known_args()

    train = [sys.executable, "main.py", "--config", arguments.config, "--report"]
    train += ["--workdir", arguments.workdir] if arguments.workdir else []
    seconds = []
    for command in ([sys.executable, "scripts/render.py", "data/rendered"], train + rest):
        print(f"\n$ {' '.join(['python', *command[1:]])}", flush=True)
        start = time.time()
        code = subprocess.run(command, cwd=HOME, check=False).returncode
        if code:
            return code
        seconds.append(time.time() - start)
    if arguments.config == "configs/demo.py":
        print(f"\n{recorded((HOME / TABLE).read_text())}")
    print(f"\nRendering took {seconds[0]:.0f} s, all of main.py {seconds[1]:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
