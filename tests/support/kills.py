"""Training that is killed at random instants, and what is left compared bit for bit."""

import dataclasses
import json
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import time

import numpy as np

from facenet_jax.runtime.checkpoint import Checkpoints
from tests.support import tiny_run as tiny

STEPS = 60
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CLOCK = ("time", "perf/samples_per_second")
CHAIN = 6  # kills of one run
SECONDS = 120  # that a start may take


@dataclasses.dataclass
class Outcome:
    """What was done and what was wrong."""

    kills: dict[str, int] = dataclasses.field(default_factory=dict)
    in_training: int = 0  # kills after the first step was written
    faults: dict[str, int] = dataclasses.field(default_factory=dict)
    equal: int = 0  # runs that ended as the undisturbed one
    failures: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {name}" for name, count in sorted(self.kills.items()))
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        return (
            f"{sum(self.kills.values())} kills ({kills}; {self.in_training} while training), "
            f"faults: {faults or 'none'}; {self.equal} runs ended with the bits of the "
            f"undisturbed one, {len(self.failures)} failures"
        )


class Kills:
    """Runs of main.py below `scratch`."""

    def __init__(self, scratch: pathlib.Path, seed: int):
        self.scratch, self.draw, self.outcome = scratch, random.Random(f"{seed}/kills"), Outcome()
        tiny.tree(scratch / "tree")
        assert self.start("whole").wait() == 0, (scratch / "whole.log").read_text()
        self.whole = facts(scratch / "whole")
        start = time.monotonic()  # now that all is prepared and compiled
        self.finish("again")
        self.seconds = time.monotonic() - start

    def start(self, name: str, **keywords) -> subprocess.Popen:
        """Start a run; its words go to NAME.log."""
        options = [
            f"--workdir={self.scratch / name}",
            f"--config.data.root={self.scratch / 'tree'}",
            f"--config.data.prepared={self.scratch / 'prepared'}",
            f"--config.train.steps={STEPS}",
            "--config.train.save_every_steps=5",
            "--config.train.evaluate_every=3",
        ]
        with (self.scratch / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                tiny.command(*options, config=tiny.BASELINE),
                env=tiny.environment(),
                cwd=tiny.ROOT,
                stdout=log,
                stderr=log,
                **keywords,
            )

    def chain(self, number: int, kills: int = CHAIN) -> None:
        """Kill one run some times, let it end, and compare."""
        name, ended = f"chain{number}", 0
        while kills and ended < 2:
            if self.kill(name):
                kills -= 1
            else:
                ended += 1
        self.finish(name)

    def kill(self, name: str) -> bool:
        """Start, and send a signal at a random instant; whether it was still running then."""
        process, began = self.start(name), time.monotonic()
        if self.draw.random() < 0.5:
            self.wait(process, began + self.draw.uniform(0.05, 1.1) * self.seconds, None)
        else:
            lines = self.scratch / name / "metrics.jsonl"
            more = lines_of(lines) + self.draw.randint(1, 25)
            self.wait(process, began + SECONDS, lambda: lines_of(lines) >= more)
        what = self.draw.choice(SIGNALS)
        trained = lines_of(self.scratch / name / "metrics.jsonl") > 0
        running = process.poll() is None
        if running:
            process.send_signal(what)
            self.outcome.kills[what.name] = self.outcome.kills.get(what.name, 0) + 1
            self.outcome.in_training += trained
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = f"hang after {what.name}"
        allowed = {0, -what} | ({130} if what == signal.SIGINT else set())
        if code not in allowed:
            self.failed(name, f"exit code {code} after {what.name}")
        return running

    def wait(self, process: subprocess.Popen, until: float, done) -> None:
        """Until a time, or `done()`, or the end of the process."""
        while time.monotonic() < until and process.poll() is None and not (done and done()):
            time.sleep(0.003)

    def disk_full(self, number: int) -> None:
        """No file may grow beyond some bytes, as on a full disk; then it goes on and ends equal."""
        name, limit = f"full{number}", self.draw.choice((2_000, 20_000, 60_000, 150_000))

        def limited() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        code = self.start(name, preexec_fn=limited).wait(SECONDS)
        self.fault("full disks")
        text = (self.scratch / f"{name}.log").read_text()
        if code not in (0, 1) or "Traceback" in text:
            self.failed(name, f"exit code {code} on a disk of {limit} bytes a file")
        self.finish(name)

    def read_only(self) -> None:
        """A place that takes no folder, for root either: one sentence."""
        self.fault("read-only places")
        done = tiny.main("--workdir=/proc/facenet", config=tiny.BASELINE)
        if done.returncode != 1 or not re.search(r"cannot be written .*another", done.stderr):
            self.outcome.failures.append(f"read-only: {done.returncode} {done.stderr[-500:]}")

    def finish(self, name: str) -> None:
        """Let a run go on to its end, compare it, and remove it."""
        code = self.start(name).wait(SECONDS)
        different = [] if code else differences(facts(self.scratch / name), self.whole)
        if code or different:
            self.failed(name, f"the last start: exit code {code}, different: {different}")
        else:
            self.outcome.equal += 1
            shutil.rmtree(self.scratch / name)

    def fault(self, name: str) -> None:
        """Count a fault."""
        self.outcome.faults[name] = self.outcome.faults.get(name, 0) + 1

    def failed(self, name: str, words: str) -> None:
        """Note a failure with the end of the log."""
        end = (self.scratch / f"{name}.log").read_text()[-1500:]
        self.outcome.failures.append(f"{name}: {words}\n{end}")


def lines_of(path: pathlib.Path) -> int:
    """Whole lines of a file, 0 where there is none."""
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def facts(folder: pathlib.Path) -> dict[str, object]:
    """All that a run leaves, without what depends on the clock."""
    lines = [{k: x for k, x in line.items() if k not in CLOCK} for line in tiny.metrics(folder)]
    found = {"metrics": lines, "result": json.loads((folder / "result.json").read_text())}
    for name in ("query", "gallery"):
        with np.load(folder / "embeddings" / f"{name}.npz") as file:
            found |= {f"{name}/{key}": file[key].tobytes() for key in file.files}
    opened = Checkpoints(folder / "checkpoints")
    found["checkpoints"] = {
        step: (opened.metrics(step), opened.record(step).digests) for step in opened.steps()
    }
    opened.close()
    return found


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """The names of the facts that are not the same."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
