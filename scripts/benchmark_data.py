"""Measures the data side: preparing a data set, ranking, and the memory of ranking a large one.

python scripts/benchmark_data.py --what prepare|rank|msmt17 [--rounds N] [--small] [--json FILE]

What is compared alternates within one run; the ratios are those of medians.
"""

import argparse
import concurrent.futures
import importlib
import io
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import _checkout  # noqa: F401
import numpy as np
from PIL import Image

from configs import common
from data_tfds.builder import cores
from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE
from facenet_jax.inputs import dataset as data
from facenet_jax.retrieval import Embeddings, distances, metrics
from facenet_jax.runtime import script

SIZES = {
    "prepare": ((4667, 300, 200), (24, 30, 20)),  # samples, width, height
    "rank": ((3368, 15913, 2304), (40, 200, 24)),  # queries, gallery, floats
    "msmt17": ((11659, 82161, 768), (40, 200, 24)),
}
"""The size that is measured, and that of --small, which only shows that it works."""
TARGET = (256, 128)  # height, width of the array


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; the figures go to stdout and to the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", required=True, choices=sorted(SIZES))
    parser.add_argument("--rounds", type=int, default=3, help="times that each side is measured")
    parser.add_argument("--small", action="store_true", help="a size that measures nothing")
    parser.add_argument("--json", default="", help="file for the figures")
    options = parser.parse_args(arguments)
    size = SIZES[options.what][options.small]
    measure = {"prepare": measure_prepare, "rank": measure_rank, "msmt17": measure_memory}
    figures = {"what": options.what, "size": size, "cores": cores(), "load": [os.getloadavg()[0]]}
    with tempfile.TemporaryDirectory() as scratch:
        figures |= measure[options.what](pathlib.Path(scratch), size, options.rounds)
    figures["load"].append(os.getloadavg()[0])
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def apart(function: Callable[..., float], *arguments) -> tuple[float, int]:
    """(seconds that `function` returns, peak memory in bytes) of a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_with_peak, function, *arguments).result()


def _with_peak(function, *arguments):
    seconds = function(*arguments)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(seconds, 2), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_prepare(scratch: pathlib.Path, size: tuple[int, int, int], rounds: int) -> dict:
    """A tree of JPEG files to a resident array, against decoding and resizing them alone."""
    tree = scratch / "tree"
    write_tree(tree, *size)
    prepared, sides = scratch / "prepared", []
    for _ in range(rounds):
        alone = apart(decode_alone, tree)
        sides.append((alone, apart(load, tree, prepared), apart(load, tree, prepared)))
        shutil.rmtree(prepared)
    bare, ours, following = ([run[0] for run in side] for side in zip(*sides, strict=True))
    peak = max(side[1][1] for side in sides)
    array = size[0] * len((VISIBLE, NEAR_INFRARED, THERMAL)) * TARGET[0] * TARGET[1] * 3
    return {
        "bare_seconds": bare,
        "ours_seconds": ours,
        "ratio (goal 3)": round(statistics.median(ours) / statistics.median(bare), 2),
        "next_start_seconds (goal 3)": following,
        "array_bytes": array,
        "peak_bytes": peak,
        "peak / array (goal 2)": round(peak / array, 2),
    }


def write_tree(root: pathlib.Path, samples: int, width: int, height: int) -> None:
    """A WMVeID863 tree, a twelfth of it in test, of 100 different JPEG images."""
    rng = np.random.default_rng(0)
    pool = []
    for _ in range(100):
        rough = Image.fromarray(rng.integers(0, 256, (10, 15, 3), dtype=np.uint8))
        smooth = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC), float)
        noisy = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        pool.append(file.getvalue())
    for number in range(samples):
        split, first = ("test", 900) if number % 12 == 0 else ("train", 1)
        identity = f"{first + number // 24 % 90:04d}"
        name = f"{identity}_v{number // 12 % 2}_n0_s001_{number:05d}.jpg"
        for row, folder in enumerate(("vis", "ni", "th")):
            path = root / split / identity / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pool[(3 * number + row) % len(pool)])


def decode_alone(root: pathlib.Path) -> float:
    """Seconds that Pillow takes, on all cores, from the files to an array in memory."""
    paths = sorted(root.rglob("*.jpg"))
    array = np.empty((len(paths), *TARGET, 3), np.uint8)

    def decode(row: int) -> None:
        with Image.open(paths[row]) as image:
            array[row] = image.convert("RGB").resize(TARGET[::-1], Image.Resampling.BICUBIC)

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        list(pool.map(decode, range(len(paths))))
    return time.perf_counter() - start


def load(root: pathlib.Path, prepared: pathlib.Path) -> float:
    """Seconds that our loader takes until every pixel of every split has been read once."""
    section = common.get_config().data
    section.update({"root": str(root), "prepared": str(prepared), "image_size": TARGET})
    start = time.perf_counter()
    dataset = data.load(section)
    for name in ("train", "gallery"):
        for images in dataset.split(name).images.values():
            images.max()
    return time.perf_counter() - start


def measure_rank(scratch: pathlib.Path, size: tuple[int, int, int], rounds: int) -> dict:
    """Time of ranking without the distance product over the time of that product."""
    arrays = embeddings(size)
    product, whole = [], []
    for _ in range(rounds):
        product.append(round(multiply(*arrays[:2]), 3))
        start = time.perf_counter()
        metrics.per_query(*arrays)
        whole.append(round(time.perf_counter() - start, 3))
    rest = statistics.median(whole) / max(statistics.median(product), 1e-3) - 1
    sides = {"product_seconds": product, "whole_seconds": whole}
    return sides | {"rest / product (goal 0.6)": round(rest, 2)}


def embeddings(size: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """Query and gallery of 751 identities, their identities, their cameras."""
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal((rows, size[2]), np.float32) for rows in size[:2]]
    return *vectors, *(rng.integers(top, size=rows) for top in (751, 6) for rows in size[:2])


def multiply(query: np.ndarray, gallery: np.ndarray) -> float:
    """Seconds of the product alone, in the blocks that ranking takes."""
    rows = min(len(query), max(1, distances.DISTANCE_BYTES // (4 * len(gallery))))
    out = np.empty((rows, len(gallery)), np.float32)
    start = time.perf_counter()
    for first in range(0, len(query), rows):
        np.matmul(query[first : first + rows], gallery.T, out=out[: len(query) - first])
    return time.perf_counter() - start


def measure_memory(scratch: pathlib.Path, size: tuple[int, int, int], rounds: int) -> dict:
    """Peak memory of a whole process that scores two files of embeddings, inputs included."""
    query, gallery, *labels = embeddings(size)
    names, width = (VISIBLE, NEAR_INFRARED, THERMAL), size[2] // 3
    parts = {name: (i * width, (i + 1) * width) for i, name in enumerate(names)}
    for number, (name, vectors) in enumerate((("query", query), ("gallery", gallery))):
        rows = [f"{row:08d}.jpg" for row in range(len(vectors))]
        flare = np.zeros((len(vectors), len(names)), bool)
        of_rows = {"camera": labels[2 + number], "flare": flare}
        side = Embeddings(vectors, parts, labels[number], np.array(rows), of_rows)
        side.write(scratch / f"{name}.npz")
    runs = [apart(score, scratch) for _ in range(rounds)]
    return {"seconds": [run[0] for run in runs], "peak_bytes (goal 2e9)": max(r[1] for r in runs)}


def score(folder: pathlib.Path) -> float:
    """Seconds of `facenet score` on the files in `folder`."""
    scorer = importlib.import_module("facenet_jax.commands.score")
    files = [f"--{name}={folder / name}.npz" for name in ("query", "gallery")]
    start = time.perf_counter()
    if scorer.main([*files, "--protocol=camera"]):
        raise RuntimeError("facenet score failed")
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(script.run(main))
