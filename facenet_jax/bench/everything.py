"""All that is worth measuring on a new device, within minutes: facenet benchmark --everything.

Each measurement has a process of its own, which gives its figures as JSON: the memory of one does
not disturb the next, and one that fails is written down and ends nothing. This process never
touches the device. What is finished is in benchmark.json and is not done again; to repeat a
measurement, remove its entry there.
"""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from data_tfds.errors import UserError
from facenet_jax.bench.everything_points import Point, left_out, points
from facenet_jax.bench.everything_table import table
from facenet_jax.runtime import script
from facenet_jax.runtime.writers import write_json, write_text

CHILD = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from facenet_jax.bench import everything_child; everything_child.main()"
)
"""The program of a measurement's process; its argument is where this package lies."""

TWICE = ("first", "peer")
"""What measures two processes, so that the first of its kind takes about twice as long as others.
"""

PEER = script.ROOT / "scripts" / "benchmark_torch.py"

LATER = "not within the minutes; the same command goes on with it"
"""Why a measurement is not there that another call will make."""

OUT_OF_TIME = "stopped"
"""The key of an answer of a process that was ended with the minutes; its value is a sentence."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config: ml_collections.ConfigDict
    file: str  # the config file
    overrides: tuple[str, ...]  # --config.section.option=value, as given
    minutes: float
    out: pathlib.Path
    command: tuple[str, ...] = ()


Runner = Callable[[Point, Request, Mapping[str, Any], float], dict[str, Any]]
"""(a point, the request, the entry of the device or {}, seconds left) to {"result": figures},
{"failed": a sentence} or {"stopped": a sentence}."""


def everything(
    request: Request, run: Runner | None = None, now: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Measure what is not there yet and fits into the minutes; what benchmark.json then holds.

    `run` makes one measurement and `now` gives seconds. Raises UserError for a folder that has the
    figures of another config or device, and where no device can be used.
    """
    run, end = run or in_own_process, now() + 60 * request.minutes
    content = opened(request)
    finished, missing = content["measurements"], {}
    for point in points(request.config):
        if point.name in finished:
            continue
        if "matrix product" not in finished and point.what != "device":
            missing[point.name] = LATER
            continue
        missing[point.name] = left_out(point, request.config, finished)
        left = end - now()
        if missing[point.name]:
            continue
        if left <= 0 or estimate(point, finished) > left:
            missing[point.name] = LATER
            continue
        logging.info("%s: about %.0f s, %.0f s left", point.name, estimate(point, finished), left)
        start = now()
        answer = run(point, request, finished.get("matrix product", {}).get("result", {}), left)
        if OUT_OF_TIME in answer:
            missing[point.name] = f"{LATER} ({answer[OUT_OF_TIME]})"
            continue
        check(point, answer, finished)
        del missing[point.name]
        finished[point.name] = entry(point, answer, now() - start)
        written(content, missing, request)
    written(content, missing, request)
    return content


def entry(point: Point, answer: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """A measurement as benchmark.json has it; `seconds` is what it took with its process."""
    kept = {"kind": point.kind, "changes": dict(point.changes), "seconds": round(seconds, 3)}
    return {**kept, **answer}


def estimate(point: Point, finished: Mapping[str, Mapping[str, Any]]) -> float:
    """Seconds that a point will take: the most of its kind so far, or else by the most of all.

    Failures count only where nothing else is known; for the first ones it is 0.
    """
    good = [x for x in finished.values() if "result" in x]
    like = [x for x in good if x["kind"] == point.kind]
    longest = max((x["seconds"] for x in like or good or finished.values()), default=0.0)
    return longest * (2 if point.what in TWICE and not like else 1)


def check(
    point: Point, answer: Mapping[str, Any], finished: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises UserError for a device that cannot be used, and for another one than before."""
    if point.what == "device":
        if "failed" in answer:
            raise UserError(f"Nothing can be measured here: {answer['failed']}")
        return
    before = finished["matrix product"]["result"]["device"]
    found = answer.get("result", {}).get("device", before)
    if found != before:
        raise UserError(
            f"The measurements so far are of {before}, and this machine has {found}; choose "
            "another folder for --out."
        )


def opened(request: Request) -> dict[str, Any]:
    """The content of benchmark.json as it is, or that of a new one."""
    file = request.out / "benchmark.json"
    asked = {"file": request.file, "overrides": list(request.overrides)}
    if not file.exists():
        request.out.mkdir(parents=True, exist_ok=True)
        return {"command": list(request.command), **asked, "measurements": {}, "left_out": {}}
    try:
        content = json.loads(file.read_text())
        before = {name: content[name] for name in asked}
        content["measurements"].items()
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise UserError(
            f"{file} is not what this command wrote ({error}); move it away or choose another "
            "--out."
        ) from error
    if before != asked:
        raise UserError(
            f"{file} has the measurements of {' '.join([before['file'], *before['overrides']])}; "
            "choose another folder for --out."
        )
    return content


def written(content: dict[str, Any], missing: Mapping[str, str], request: Request) -> None:
    """Write both files; what has not been come to yet is missing as well."""
    reached = {*content["measurements"], *missing}
    later = {x.name: LATER for x in points(request.config) if x.name not in reached}
    content["left_out"] = {**missing, **later}
    write_json(request.out / "benchmark.json", content)
    write_text(request.out / "benchmark.md", table(content))


def in_own_process(
    point: Point, request: Request, device: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """One measurement in a new process, or two for a cold and a warm cache; see `Runner`."""
    end = time.monotonic() + seconds
    if point.what == "peer":
        return peer(point, request, end)
    if point.what != "first":
        return child(point, request, device, end)
    found = {}
    with tempfile.TemporaryDirectory(prefix="facenet_jax-") as cache:
        for name in ("cold", "warm"):
            answer = child(point, request, device, end, cache)
            if "result" not in answer:
                return answer
            found[f"{name}_seconds"] = answer["result"]["start_to_first_step_seconds"]
            found[f"{name}_compile_seconds"] = answer["result"]["compile_seconds"]
    return {"result": {**found, "device": answer["result"]["device"]}}


def child(
    point: Point, request: Request, device: Mapping[str, Any], end: float, cache: str = ""
) -> dict[str, Any]:
    """The answer of a process of everything_child.py; `end` is on the clock time.monotonic()."""
    with tempfile.TemporaryDirectory(prefix="facenet_jax-") as folder:
        file = pathlib.Path(folder) / "answer.json"
        sent = {
            "what": point.what,
            "changes": dict(point.changes),
            "config": base64.b64encode(pickle.dumps(request.config)).decode(),
            "peak": [device.get("peak_flops_per_second"), device.get("peak_how")],
            "compile_cache": cache,
            "file": str(file),
            "started": time.time(),
        }
        return ended(
            [sys.executable, "-c", CHILD, str(script.ROOT)],
            json.dumps(sent) + "\n",
            file,
            request.out,
            end,
        )


def peer(point: Point, request: Request, end: float) -> dict[str, Any]:
    """The answer of scripts/benchmark_torch.py: ours and PyTorch in turns."""
    if not PEER.is_file():
        return {"failed": f"{PEER.name} is in the checkout, not in the installed package"}
    with tempfile.TemporaryDirectory(prefix="facenet_jax-") as folder:
        file = pathlib.Path(folder) / "answer.json"
        command = [sys.executable, str(PEER), f"--config={request.file}", f"--json={file}"]
        command += [f"--what={point.options['what']}", "--seconds=0.5", *request.overrides]
        command += ["--compile" if point.options["compile"] else "--nocompile"]
        command += [f"--config.{name}={value}" for name, value in point.changes.items()]
        answer = ended(command, "", file, request.out, end)
    if "result" in answer:
        answer["result"].pop("config", None)
    return answer


def ended(
    command: Sequence[str], text: str, file: pathlib.Path, out: pathlib.Path, end: float
) -> dict[str, Any]:
    """Run a command to its end or until `end`; what it wrote to `file`, or why it did not.

    `text` goes to its stdin, which stays open. Its own output is added to benchmark.log in `out`.
    """
    log = out / "benchmark.log"
    with log.open("ab") as said:
        before = said.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the processes it starts end with it
        )
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(text.encode())
                process.stdin.flush()
            code = process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return {OUT_OF_TIME: "it was ended with them"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
    if file.exists():
        answer = json.loads(file.read_text())
        return answer if answer.keys() & {"result", "failed"} else {"result": answer}
    lines = log.read_bytes()[before:].decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
    return {"failed": f"the process ended with exit code {code}: {last[:300]}"}
