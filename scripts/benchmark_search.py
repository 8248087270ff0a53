"""Times the database of `facenet search` on drawn vectors: filling, indexing, asking, recall.

python scripts/benchmark_search.py [--rows 1000000] [--width 768] [--folder DIR]

Vectors: 20 samples of each identity; an identity is a normal vector in 128 dimensions of variances
1, 1/2, 1/3, ..., a sample adds 0.6 of the same, and a matrix takes both to `width`. Queries are
samples that are not in the database.
"""

import argparse
import pathlib
import resource
import shutil
import sys
import time

import _checkout  # noqa: F401  finds the packages of this checkout
import numpy as np

from facenet_jax.runtime import script
from facenet_jax.runtime.arguments import Parser
from facenet_jax.search import engine

LATENT, WITHIN, SAMPLES, WRITTEN = 128, 0.6, 20, 20_000


def main() -> None:
    """Do what the command line says."""
    parser = Parser("benchmark_search", __doc__.splitlines()[0], __doc__.partition("\n\n")[2])
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors in the database")
    parser.add_argument("--width", type=int, default=768, help="numbers in a vector")
    parser.add_argument("--queries", type=int, default=100, help="of the approximate index")
    parser.add_argument("--exact", type=int, default=20, help="queries compared with every row")
    parser.add_argument("--folder", default="runs/benchmark_search", help="made, and removed")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    if folder.exists():
        parser.error(f"{folder} is there already; name a folder to make")
    try:
        measure(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: pathlib.Path, options: argparse.Namespace) -> None:
    """Print a line for each figure."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, LATENT + 1)[:, None] ** -0.5
    matrix = (rng.normal(size=(LATENT, options.width)) * scale).astype(np.float32)
    identities = rng.normal(size=(max(1, options.rows // SAMPLES), LATENT)).astype(np.float32)

    def draw(count: int) -> np.ndarray:
        chosen = identities[rng.integers(0, len(identities), count)]
        return (chosen + WITHIN * rng.normal(size=chosen.shape).astype(np.float32)) @ matrix

    table = engine.Table.create(str(folder), [], ["camera"], {"joint": options.width}, {})
    seconds = 0.0
    for start in range(0, options.rows, WRITTEN):
        vectors = draw(min(WRITTEN, options.rows - start))
        number = np.arange(start, start + len(vectors))
        began = time.perf_counter()
        table.put({"name": [f"{i:09}" for i in number], "camera": number % 5, "joint": vectors})
        seconds += time.perf_counter() - began
    said("filled", seconds, folder)
    timed("small files joined, names indexed", folder, table.tidy)
    queries = draw(options.queries)
    truth = asked("exact", table, queries[: options.exact], "", True)
    asked("exact, camera != 2", table, queries[: options.exact], "camera != 2", True)
    timed("approximate index made", folder, lambda: table.build_index("joint"))
    for probed in (0.02, 0.05, 0.1, 0.2, 0.4):
        engine.PROBED = probed
        found = asked(f"approximate, probed {probed}", table, queries, "", False)
        same = [len(set(a) & set(b)) / len(a) for a, b in zip(truth, found, strict=False)]
        print(f"  recall of the best 10: {np.mean(same):.3f} over {len(same)} queries", flush=True)
    asked("approximate, camera != 2", table, queries, "camera != 2", False)
    replaced = {"name": [f"{i:09}" for i in range(256)], "camera": [9] * 256, "joint": draw(256)}
    timed("256 rows replaced", folder, lambda: table.put(replaced))


def asked(words: str, table, queries: np.ndarray, where: str, exact: bool) -> list[list[str]]:
    """The names of the best 10 of each query; prints the median time, after one to begin with."""
    table.nearest("joint", queries[0], 10, ["name"], where, exact)
    times, found = [], []
    for query in queries:
        began = time.perf_counter()
        rows = table.nearest("joint", query, 10, ["name"], where, exact)
        times.append(time.perf_counter() - began)
        found.append([row["name"] for row in rows])
    middle, late = (1e3 * np.quantile(times, each) for each in (0.5, 0.95))
    print(f"{words}: median {middle:.1f} ms, 95 % within {late:.1f} ms", flush=True)
    return found


def timed(words: str, folder: pathlib.Path, do) -> None:
    """Do something and print the figures."""
    began = time.perf_counter()
    do()
    said(words, time.perf_counter() - began, folder)


def said(words: str, seconds: float, folder: pathlib.Path) -> None:
    """Print time, memory and disk."""
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) / 1e9
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{words}: {seconds:.1f} s; at most {memory:.2f} GB of memory; {size:.2f} GB of disk",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(script.run(main))
