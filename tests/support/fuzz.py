"""A mutation fuzzer over every file format that is read, with a fixed seed.

A case ends well where its reader gives what is right or raises one UserError of bounded length,
within `SECONDS`. Case number n of a reader depends on (seed, reader, n) alone.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import random
import resource
import shutil
import signal
import time
import traceback
import types
from collections.abc import Callable, Iterator

import jax
import numpy as np
import safetensors.numpy
from PIL import Image

from data_tfds import images
from data_tfds.errors import UserError
from data_tfds.sets.folder import Folder
from data_tfds.sets.wmveid863 import WMVeID863
from data_tfds.source import Stamp, Tree, open_source
from facenet_jax import api, stored
from facenet_jax import config as configs
from facenet_jax.export import card
from facenet_jax.lab import scores, summary
from facenet_jax.report import curves, finished, sections
from facenet_jax.retrieval import Embeddings
from facenet_jax.runtime import data_record, form
from facenet_jax.runtime.checkpoint import Checkpoints
from facenet_jax.runtime.workdir import read_json
from facenet_jax.runtime.writers import drop_after
from facenet_jax.weights.files import as_float32, read_checkpoint
from tests.support import corruptions, mutations, torch_files
from tests.support import small_datasets as trees
from tests.support import tiny_run as tiny

SECONDS = 20  # of a case, on a busy machine
LONGEST = 3000  # characters of a sentence


RESULTS = (
    *("result.json", "environment.json", "threshold.json", "modalities.json", "per_modality.json"),
    *("scores.json", "scores.npz"),
)
NAMES = (
    *("jpeg", "png", "bmp", "tiff", "webp", "names", "csv", "zip"),
    *("pth", "pth_legacy", "safetensors", "npz"),
    *("config.json", "spec.json", "data.json", "metrics.jsonl", "embeddings"),
    *RESULTS,
    "checkpoint",
)
"""Of the readers."""


class Hang(BaseException):
    """A case that took too long."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A format: right files, how they are spoiled, and what reads one."""

    seeds: list[bytes]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], None]


@dataclasses.dataclass
class Count:
    """The outcomes of a reader's cases."""

    right: int = 0
    sentences: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    slowest: float = 0.0
    seconds: float = 0.0
    grown: int = 0  # bytes that the process grew by, at most

    def __str__(self) -> str:
        cases = self.right + self.sentences + len(self.failures)
        return (
            f"{cases} cases: {self.right} read, {self.sentences} one sentence, "
            f"{len(self.failures)} failures; {self.seconds:.1f} s, slowest {self.slowest:.2f} s, "
            f"memory +{self.grown / 1e6:.0f} MB"
        )


def cases(name: str, reader: Reader, seed: int, numbers: range) -> Count:
    """Run cases of a reader."""
    count, before = Count(), peak()
    start = time.monotonic()
    for number in numbers:
        draw = random.Random(f"{seed}/{name}/{number}")
        spoiled = reader.mutate(draw.choice(reader.seeds), draw)
        began = time.monotonic()
        try:
            with limited(SECONDS):
                reader.read(spoiled)
            count.right += 1
        except UserError as error:
            text = str(error)
            if len(text) > LONGEST or "\n" in text or "\x1b" in text:
                count.failures.append(f"{name} {number}: no sentence: {text[:300]!r}")
            else:
                count.sentences += 1
        except (Exception, Hang):
            count.failures.append(f"{name} {number}: {traceback.format_exc()}")
        count.slowest = max(count.slowest, time.monotonic() - began)
    count.seconds, count.grown = time.monotonic() - start, peak() - before
    return count


def peak() -> int:
    """The most bytes that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises Hang within the block after some seconds."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def readers(scratch: pathlib.Path) -> dict[str, Reader]:
    """Every format, with files below `scratch`."""
    return {
        **of_images(),
        **of_data_sets(scratch),
        **of_weights(scratch),
        **of_workdirs(scratch),
        **of_results(scratch),
        "checkpoint": of_checkpoints(scratch),
    }


def encoded(kind: str, **options) -> bytes:
    """A picture of noise as a file."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def of_images() -> dict[str, Reader]:
    """Pictures of each format."""

    def read(data: bytes) -> None:
        images.is_cut_off(data, images.decode(data, "x", grey=True))

    seeds = {kind.lower(): [encoded(kind)] for kind in images.FORMATS}
    seeds["jpeg"].append(encoded("JPEG", progressive=True))
    return {name: Reader(files, mutations.of_bytes, read) for name, files in seeds.items()}


class Names(Tree):
    """A tree of which there are only the names."""

    def __init__(self, names: list[str]):
        self.root, self.files = pathlib.Path("/x"), dict.fromkeys(names, Stamp(10, 0))


def of_data_sets(scratch: pathlib.Path) -> dict[str, Reader]:
    """File names, a table, and an archive."""
    folder = scratch / "data"
    root = trees.wmveid863(folder / "set")
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))
    archive = corruptions.archive(lambda data: data)(root)
    own = trees.folder(folder / "own")
    table = corruptions.table(lambda lines: lines)(own)
    sound = table.read_bytes()

    def builder(cls, config: str, **given):
        return cls(data_dir=folder / "unused", config=config, **given)

    def read_names(data: bytes) -> None:
        found = os.fsdecode(data).split("\n")
        made = builder(WMVeID863, "official", source=Names([x for x in found if x]))
        made.samples(made.listing(made.source))

    def read_table(data: bytes) -> None:
        table.write_bytes(data)
        made = builder(Folder, "camera", root=str(table))
        made.samples(made.listing(made.source))

    def read_archive(data: bytes) -> None:
        path = folder / "spoiled.zip"
        path.write_bytes(data)
        source = open_source(str(path), WMVeID863.FOLDERS)
        for each in source.files if source else ():
            images.decode(source.read(each), source.where(each))

    spoil = mutations.of_text
    return {
        "names": Reader(["\n".join(names).encode()], slashes(spoil), read_names),
        "csv": Reader([sound], spoil, read_table),
        "zip": Reader([archive.read_bytes()], mutations.of_zip, read_archive),
    }


def slashes(spoil):
    """`spoil` on parts of paths instead of cells."""

    def changed(data: bytes, draw: random.Random) -> bytes:
        return spoil(data.replace(b"/", b","), draw).replace(b",", b"/")

    return changed


def of_weights(scratch: pathlib.Path) -> dict[str, Reader]:
    """PyTorch's two formats, safetensors and .npz."""
    arrays = {"a.weight": np.ones((3, 4), np.float32), "b": np.arange(5, dtype=np.float16)}
    npz = io.BytesIO()
    np.savez(npz, **arrays)
    value = {"state_dict": arrays}
    path = scratch / "weights"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        as_float32(read_checkpoint(path), "x")

    seeds = {
        "pth": (torch_files.zip_bytes(value), mutations.of_zip),
        "pth_legacy": (torch_files.legacy_bytes(value), mutations.of_bytes),
        "safetensors": (safetensors.numpy.save(arrays), mutations.of_bytes),
        "npz": (npz.getvalue(), mutations.of_zip),
    }
    return {name: Reader([data], mutate, read) for name, (data, mutate) in seeds.items()}


def of_workdirs(scratch: pathlib.Path) -> dict[str, Reader]:
    """What a run writes, but for checkpoints."""
    folder = scratch / "workdir"
    folder.mkdir()
    config = tiny.config("three_stream")
    stored.claim(folder, config, tiny.SPEC)
    data_record.write(folder, config, {"train": "a" * 32, "gallery": "b" * 32}, afresh=True)
    lines = [json.dumps({"step": step, "train/loss": 1.0 / step}) for step in range(1, 9)]
    side = Embeddings(
        np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32),
        {"visible": (0, 2), "thermal": (2, 4)},
        np.arange(6),
        np.array(list("abcdef")),
        {"camera": np.zeros(6, np.int32), "flare": np.zeros((6, 2), bool)},
    )
    side.write(folder / "side.npz")

    def at(name: str, read: Callable[[], object]) -> Callable[[bytes], None]:
        path = folder / name
        return changed(path, path.read_bytes() if path.exists() else b"", read)

    def seed(name: str) -> list[bytes]:
        return [(folder / name).read_bytes()]

    def read_lines() -> None:
        drop_after(folder / "metrics.jsonl", 5)
        kept = (folder / "metrics.jsonl").read_text().splitlines()
        assert all(json.loads(line)["step"] <= 5 for line in kept)

    in_json = mutations.of_json
    config_of = at("config.json", lambda: configs.check(stored.read_config(folder)))
    return {
        "config.json": Reader(seed("config.json"), in_json, config_of),
        "spec.json": Reader(
            seed("spec.json"), in_json, at("spec.json", lambda: stored.read_spec(folder))
        ),
        "data.json": Reader(
            seed("data.json"), in_json, at("data.json", lambda: data_record.read(folder))
        ),
        "metrics.jsonl": Reader(
            ["\n".join(lines).encode() + b"\n"], mutations.of_text, at("metrics.jsonl", read_lines)
        ),
        "embeddings": Reader(
            seed("side.npz"),
            mutations.of_zip,
            at("side.npz", lambda: Embeddings.read(folder / "side.npz")),
        ),
    }


def changed(
    path: pathlib.Path, whole: bytes, read: Callable[[], object]
) -> Callable[[bytes], None]:
    """A reader of a file's content: puts it at `path`, reads, and puts back what was there."""

    def change_and_read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read()
        finally:
            path.write_bytes(whole)

    return change_and_read


def of_results(scratch: pathlib.Path) -> dict[str, Reader]:
    """What is written about a finished run, read as a report, a card, a table or `same` does."""
    folder = scratch / "results"
    row = {"mAP": 0.5, "mINP": 0.25, "cmc": {"1": 0.5, "5": 0.75, "10": 1.0}}
    row |= {"step": 3, "queries": 8, "valid_queries": 7, "gallery": 9}
    thresholds = {"eer": {"cosine": 0.5, "tpr": 0.75, "fpr": 0.25}, "0.001": None}
    pairs = {"pairs": "within the gallery", "genuine_pairs": 5, "impostor_pairs": 9}
    values = {
        "result.json": {"protocol": "x", "last": row, "best_on_test": row},
        "environment.json": {"command": ["x"], "devices": ["cpu 0"], "packages": {"jax": "0.10"}},
        "embeddings/threshold.json": {
            "step": 3,
            "modalities": ["visible", "thermal"],
            **pairs,
            "thresholds": thresholds,
        },
        "modalities.json": {"subsets": {"shared": {"visible": {"visible": {"mAP": 0.5}}}}},
        "per_modality.json": {"visible": {"all": 0.5, "clean": 0.75, "flared": None}},
        str(scores.listed(folder, {}, "last").relative_to(folder)): ["all"],
    }
    queries = io.BytesIO()
    np.savez(
        queries,
        average_precision=np.ones(4),
        first=np.ones(4),
        identity=np.arange(4),
        flare=np.eye(4, 2, dtype=bool),
        modalities=np.array(["visible", "thermal"]),
    )
    files = {folder / name: json.dumps(value).encode() for name, value in values.items()}
    files[scores.path(folder, {}, "all")] = queries.getvalue()
    readers = dict(zip(RESULTS, files.items(), strict=True))
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run = finished.Finished(
        folder, tiny.config("three_stream"), *({}, {}, None, None, 3, None, "no data set")
    )
    job = types.SimpleNamespace(folder=folder, which="last", row=types.SimpleNamespace(scored={}))
    network = api.Network(run.config, None, None, 3, folder)

    def in_environment() -> None:
        known = read_json(folder / "environment.json", folder, form.ENVIRONMENT)
        sections.environment(dataclasses.replace(run, environment=known))

    def in_thresholds() -> None:
        known = dataclasses.replace(network).thresholds["thresholds"]
        assert all(point is None or math.isfinite(point["cosine"]) for point in known.values())

    def in_table() -> None:
        for arrays in summary.read(job).values():
            scores.groups(arrays)

    def in_report() -> None:
        curves.modality_tables(run)

    reads = [lambda: card.scores(network), in_environment, in_thresholds]
    reads += [in_report, in_report, in_table, in_table]

    return {
        name: Reader(
            [content],
            mutations.of_zip if name.endswith(".npz") else mutations.of_json,
            changed(path, content, read),
        )
        for (name, (path, content)), read in zip(readers.items(), reads, strict=True)
    }


def of_checkpoints(scratch: pathlib.Path) -> Reader:
    """One file of a checkpoint spoiled: the same arrays and scores, or one sentence."""
    folder, scores = scratch / "checkpoints", {"mAP": 0.5, "cmc": {"1": 0.25}}
    device = jax.devices()[0]
    arrays = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    state = {"kernel": jax.device_put(arrays, device), "step": jax.device_put(np.int32(3), device)}
    made = Checkpoints(folder)
    made.save(3, state, scores)
    made.close()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    names = [str(path.relative_to(folder)).encode() for path in files]

    def mutate(name: bytes, draw: random.Random) -> bytes:
        content = mutations.of_bytes((folder / name.decode()).read_bytes(), draw)
        return name + b"\0" + content

    def read(case: bytes) -> None:
        name, _, content = case.partition(b"\0")
        spoiled = scratch / "spoiled"
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(folder, spoiled)
        (spoiled / name.decode()).write_bytes(content)
        opened = Checkpoints(spoiled)
        try:
            found = opened.restore(3, state)
            np.testing.assert_array_equal(found["kernel"], arrays)
            assert int(found["step"]) == 3
            assert opened.metrics(3) == scores
            assert opened.best() == 3
        finally:
            opened.manager.close()

    return Reader(names, mutate, read)
