"""Small data sets with generated pixels in the real trees, for the tests of the data side."""

import pathlib

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

FOLDERS = ("vis", "ni", "th")
"""The folders of the modalities of an aligned set."""


def section(name: str, root, prepared, **changes) -> ConfigDict:
    """The config section `data` of a small data set."""
    values = {
        "name": name,
        "root": str(root),
        "prepared": str(prepared),
        "image_size": (8, 6),
        "train_resize": "bicubic",
        "test_resize": "bicubic",
        "validation_identities": 0,
        "incomplete": "error",
        "flare_statistic": "luma",
        "flare_threshold": 0.05,
        "flare_rule": "per_modality",
    }
    return ConfigDict({**values, **changes})


def picture(seed: int, size=(12, 16)) -> Image.Image:
    """A smooth random RGB image of (height, width), so that JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    return corners.resize(size[::-1], Image.Resampling.BILINEAR)


def write_sample(root: pathlib.Path, split: str, name: str, seed: int, folder=None) -> None:
    """Three different images under one name; the identity folder is the name's unless given."""
    for number, label in enumerate(FOLDERS):
        path = root / split / (folder or name[:4]) / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(3 * seed + number).save(path, quality=90)


def wmveid863(root: pathlib.Path, query: bool = True) -> pathlib.Path:
    """Four training identities of two views, two test identities of two views."""
    splits = {"train": (1, 2, 7, 10), "test": (3, 5)}
    if query:
        splits["query"] = (3, 5)
    for split, identities in splits.items():
        for identity in identities:
            for view in (1,) if split == "query" else (1, 4):
                name = f"{identity:04d}_v{view}_n{view % 2}_s0{identity:02d}_00{view}.jpg"
                write_sample(root, split, name, identity * 10 + view)
    return root


def msvr310(root: pathlib.Path) -> pathlib.Path:
    """Two training and two test identities in two scenes each, and the unused folder query."""
    splits = {"bounding_box_train": (1, 4), "bounding_box_test": (2, 3), "query3": (3,)}
    for split, identities in {**splits, "query": (2, 3)}.items():
        for identity in identities:
            for scene in (5, 6):
                name = f"{identity:04d}_s{scene:03d}_v{scene - 3}_000.jpg"
                write_sample(root, split, name, identity * 10 + scene)
    return root


def rgbnt100(root: pathlib.Path) -> pathlib.Path:
    """Two training and two test identities under two cameras each, as strips."""
    splits = {"bounding_box_train": (501, 7), "query": (502,), "bounding_box_test": (502, 600)}
    for split, identities in splits.items():
        for identity in identities:
            for camera in (1, 8):
                path = root / "rgbir" / split / f"{identity:04d}_c{camera:04d}_000.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(identity + camera, (128, 768)).save(path, quality=90)
    return root


def rgbnt201(root: pathlib.Path) -> pathlib.Path:
    """Two training and two test identities under two cameras each."""
    for split, identities in {"train_171": (9, 11), "test": (258, 40)}.items():
        for identity in identities:
            for camera in (1, 4):
                for number, label in enumerate(("RGB", "NI", "TI")):
                    path = root / split / label / f"{identity:06d}_cam{camera}_0_00.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture(10 * identity + camera + number).save(path, quality=90)
    return root


def folder(root: pathlib.Path) -> pathlib.Path:
    """Grey PNG samples of the user's own: two identities a split, two cameras and scenes."""
    for split, identities in {"train": (1, 2), "query": (30,), "gallery": (30, 40)}.items():
        for identity in identities:
            for camera in (1, 2):
                name = f"shot_c{camera}_s{camera + 6}.png"
                for number, label in enumerate(FOLDERS):
                    path = root / split / str(identity) / label / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture(identity * 10 + camera + number).convert("L").save(path)
    return root


SYSU_FOLDERS = {
    (1, 26): 3,
    (2, 26): 1,
    (3, 26): 2,
    (4, 26): 2,
    (6, 26): 1,  # a test identity
    (4, 155): 2,
    (5, 155): 1,
    (6, 155): 2,  # one that was never indoors
    (1, 7): 2,
    (3, 7): 1,
    (2, 333): 1,
    (6, 333): 3,  # train and val
    (1, 500): 1,  # in no experiment
}
"""Images by (camera, identity)."""


def sysu_mm01(root: pathlib.Path) -> pathlib.Path:
    """Two training and two test identities, as many images as `SYSU_FOLDERS` says."""
    for (camera, identity), count in SYSU_FOLDERS.items():
        for number in range(1, count + 1):
            path = root / f"cam{camera}" / f"{identity:04d}" / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(1000 * identity + 10 * camera + number).save(path, quality=90)
    (root / "exp").mkdir()
    for name, identities in {"train": "7", "val": "333", "test": "155,26"}.items():
        (root / "exp" / f"{name}_id.txt").write_text(f"{identities}\n")
    return root


def regdb(root: pathlib.Path, trials: int = 2) -> pathlib.Path:
    """Four persons with two visible and two thermal images each; a trial trains on two of them."""
    for modality in ("Visible", "Thermal"):
        for person in (3, 8, 21, 117):
            for number in (1, 2):
                name = f"male_front_{modality[0].lower()}_{number:05d}_{person}.bmp"
                path = root / modality / str(person) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                grey = picture(100 * person + number + 10 * (modality == "Thermal")).convert("L")
                (grey if modality == "Thermal" else grey.convert("RGB")).save(path)
    (root / "idx").mkdir()
    for trial in range(1, trials + 1):
        persons = {"train": (117, 8), "test": (21, 3)} if trial == 1 else {"train": (3, 21)}
        persons.setdefault("test", (8, 117))
        for part, chosen in persons.items():
            for modality in ("Visible", "Thermal"):
                lines = [
                    f"{path.relative_to(root)} {label}"
                    for label, person in enumerate(chosen)
                    for path in sorted((root / modality / str(person)).iterdir())
                ]
                file = root / "idx" / f"{part}_{modality.lower()}_{trial}.txt"
                file.write_text("\n".join(lines) + "\n")
    return root


LLCM_TEST = {("vis", 1, 5): 2, ("vis", 3, 5): 1, ("nir", 1, 5): 2, ("vis", 2, 6): 3}
LLCM_TEST |= {("nir", 2, 6): 1, ("nir", 4, 6): 2, ("vis", 1, 99): 1}
"""Images by (folder, camera, identity); identity 99 belongs to no experiment."""


def llcm(root: pathlib.Path) -> pathlib.Path:
    """Two training identities, and two test identities with `LLCM_TEST`'s images."""
    (root / "idx").mkdir(parents=True)
    for folder in ("vis", "nir"):
        lines = []
        for label, identity in enumerate((1, 12)):
            for number in (1, 2):
                name = f"{identity:04d}_c{number:02d}_s100_f{number}_{folder}.jpg"
                path = root / folder / f"{identity:04d}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(100 * identity + number + 7 * (folder == "nir")).save(path, quality=90)
                lines.append(f"{path.relative_to(root)} {label}")
        (root / "idx" / f"train_{folder}.txt").write_text("\n".join(lines) + "\n")
    for (folder, camera, identity), count in LLCM_TEST.items():
        for number in range(count):
            name = f"{identity:04d}_c{camera:02d}_s1_f{number}_{folder}.jpg"
            path = root / f"test_{folder}" / f"cam{camera}" / f"{identity:04d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(1000 * identity + 10 * camera + number).save(path, quality=90)
    (root / "idx" / "test_id.txt").write_text("6,5\n")
    return root
