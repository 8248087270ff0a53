"""The rendered set on disk: JPEG files in WMVeID863's tree and name pattern.

    root/rendered.json                     what was rendered, and by which version of the renderer
    root/{train,query,test}/0001/{vis,ni,th}/0001_v1_n1_s012_003.jpg

A name holds identity, view, night, scene and number. `query` repeats a third of `test`; test
identities are numbered after the training identities.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import shutil
import tempfile

import tqdm

from data_tfds.errors import UserError
from data_tfds.rendered import glare, renderer

RECORD = "rendered.json"
FOLDERS = ("vis", "ni", "th")
QUALITY = 92  # of the JPEG files
LATER = {
    "infrared_follows_paint": 0.0,
    "flare_share": glare.SHARE,
    "flare_saturated": list(glare.SATURATED),
}
"""Defaults of options that came later: trees that were drawn before have no record of them."""


def write_tree(
    root: str | os.PathLike,
    *,
    train_identities: int = 176,
    test_identities: int = 50,
    train_samples: int = 20,
    test_samples: int = 16,
    size: tuple[int, int] = (256, 128),
    seed: int = 0,
    infrared_follows_paint: float = 0.0,
    flare_share: float = glare.SHARE,
    flare_saturated: tuple[float, float] = glare.SATURATED,
    workers: int | None = None,
) -> None:
    """Leaves the whole rendered set in `root`; returns at once where it already lies there.

    The tree is built in a folder beside `root` and renamed at the end, so `root` is never half
    written. The same arguments give the same bytes, whatever the number of workers.

    Args:
        root: folder to make; it may exist if it is empty or holds the same set.
        train_identities, test_identities: vehicles in `train` and in `test`.
        train_samples, test_samples: samples of each vehicle.
        size: width and height of the pictures in pixels.
        seed: of everything drawn.
        infrared_follows_paint: 0..1, how much the near-infrared shows the lightness of the paint.
        flare_share, flare_saturated: see `renderer.render`.
        workers: processes; None uses every core, 1 stays in this process.

    Raises:
        UserError: impossible numbers, a `root` that holds anything else, or a disk that refuses.
    """
    root = pathlib.Path(root).absolute()
    record = {
        "renderer": renderer.VERSION,
        "train_identities": train_identities,
        "test_identities": test_identities,
        "train_samples": train_samples,
        "test_samples": test_samples,
        "size": list(size),
        "seed": seed,
    }
    later = {
        "infrared_follows_paint": infrared_follows_paint,
        "flare_share": flare_share,
        "flare_saturated": list(flare_saturated),
    }
    record |= {name: value for name, value in later.items() if value != LATER[name]}
    if workers is None:
        workers = os.cpu_count() or 1
    _check(record | {"workers": workers})
    if _already_there(root, record):
        return
    _build(root, record, workers)


def _build(root: pathlib.Path, record: dict, workers: int) -> None:
    """Renders the set of a record beside `root` and moves it there when it is whole."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        building = pathlib.Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            building.chmod(0o755)  # mkdtemp makes folders that only their owner may read
            _render_all(building, record, workers)
            (building / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            _move_into_place(building, root, record)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"Cannot write the rendered set to {root} ({error.strerror or error}); "
            "free some space or choose another folder."
        ) from error


def query_samples(samples: int) -> list[int]:
    """The samples of a test identity that are queries too: every third, but at least two."""
    return list(range(0, samples, 3)) if samples > 3 else list(range(min(samples, 2)))


def write_identity(
    root: str,
    splits: dict[str, list[int]],
    seed: int,
    identity: int,
    size: tuple[int, int],
    options: dict,
) -> int:
    """Renders one identity (counted from 0) into its splits; returns the number of samples.

    splits: the samples that each split holds, for example {"test": [0, 1, 2], "query": [0]}.
    options: further keywords of `renderer.render`.
    """
    samples = sorted({sample for chosen in splits.values() for sample in chosen})
    label = f"{identity + 1:04d}"
    homes = {
        (split, folder): os.path.join(root, split, label, folder)
        for split in splits
        for folder in FOLDERS
    }
    for home in homes.values():
        os.makedirs(home)
    for sample in samples:
        shot = renderer.render(seed, identity, sample, size, **options)
        name = f"{label}_v{shot.view}_n{int(shot.night)}_s{shot.scene:03d}_{sample + 1:03d}.jpg"
        for folder, image in zip(FOLDERS, shot.images, strict=True):
            first, *others = [
                os.path.join(homes[split, folder], name)
                for split, chosen in splits.items()
                if sample in chosen
            ]
            image.save(first, "JPEG", quality=QUALITY)
            for other in others:
                shutil.copyfile(first, other)
    return len(samples)


def _render_all(building: pathlib.Path, record: dict, workers: int) -> None:
    train = {"train": list(range(record["train_samples"]))}
    test = {
        "test": list(range(record["test_samples"])),
        "query": query_samples(record["test_samples"]),
    }
    trained = record["train_identities"]
    total = trained + record["test_identities"]
    for split in ("train", "test", "query"):
        (building / split).mkdir()
    drawn = (tuple(record["size"]), {name: record[name] for name in LATER if name in record})
    jobs = [
        (str(building), train if i < trained else test, record["seed"], i, *drawn)
        for i in range(total)
    ]
    samples = trained * record["train_samples"] + (total - trained) * record["test_samples"]
    with tqdm.tqdm(total=samples, desc="rendering", unit=" samples") as progress:
        if workers == 1:
            for job in jobs:
                progress.update(write_identity(*job))
            return
        # A fork of a process in which JAX runs threads may hang; these start from scratch.
        context = multiprocessing.get_context("forkserver")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            pending = [pool.submit(write_identity, *job) for job in jobs]
            try:
                for done in concurrent.futures.as_completed(pending):
                    progress.update(done.result())
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _check(record: dict) -> None:
    least = {"train_identities": 0, "test_identities": 0, "train_samples": 1, "test_samples": 2}
    least |= {"seed": 0, "workers": 1}
    for name, minimum in least.items():
        if record[name] < minimum:
            raise UserError(
                f"The rendered set needs {name} >= {minimum}, got {record[name]}; raise it."
            )
    for name in ("infrared_follows_paint", "flare_share"):
        share = record.get(name, 0.0)
        if not 0 <= share <= 1:
            raise UserError(f"The rendered set needs {name} in 0..1, got {share}; change it.")
    low, high = record.get("flare_saturated", glare.SATURATED)
    if not 0 < low <= high < 1:
        raise UserError(
            f"The rendered set needs flare_saturated between 0 and 1 and its least first, got "
            f"{low},{high}; change it."
        )
    total = record["train_identities"] + record["test_identities"]
    if not 1 <= total <= 9999:
        raise UserError(
            f"The rendered set numbers its identities with four digits, so train_identities + "
            f"test_identities must lie in 1..9999, got {total}; change one of them."
        )
    if max(record["train_samples"], record["test_samples"]) > 999:
        raise UserError(
            "The rendered set numbers samples with three digits, so train_samples and test_samples "
            f"must not exceed 999, got {record['train_samples']} and {record['test_samples']}; "
            "lower them."
        )
    width, height = record["size"]
    if min(width, height) < 128 or max(width, height) < 256 or width % 4 or height % 4:
        raise UserError(
            f"The rendered set needs a size of at least 256 x 128 or 128 x 256 in multiples of 4, "
            f"got {width} x {height}; choose a larger size."
        )


def _already_there(root: pathlib.Path, record: dict) -> bool:
    """Whether `root` holds this very set; False if it is missing or empty, else a UserError."""
    if not root.exists() and not root.is_symlink():
        return False
    if not root.is_dir():
        raise UserError(
            f"The rendered set cannot go to {root}, which is a file; choose another folder."
        )
    if not any(root.iterdir()):
        return False
    try:
        found = json.loads((root / RECORD).read_text())
    except (OSError, ValueError):
        raise UserError(
            f"The rendered set cannot go to {root}, which holds other files and no readable "
            f"{RECORD}; choose another folder or empty this one."
        ) from None
    if found != record:
        known = found if isinstance(found, dict) else {}
        clash = ", ".join(
            f"{name} = {known[name]} instead of {value}" if name in known else f"no {name}"
            for name, value in record.items()
            if name not in known or known[name] != value
        )
        raise UserError(
            f"{root} holds another rendered set ({clash or 'unknown entries in ' + RECORD}); "
            "choose another folder or remove this one."
        )
    return True


def _move_into_place(building: pathlib.Path, root: pathlib.Path, record: dict) -> None:
    try:
        building.rename(root)  # replaces an empty folder, refuses any other
    except OSError:
        if not _already_there(root, record):  # somebody else may have finished the same set first
            raise
