"""The galleries of SYSU-MM01's ten trials: which images are drawn from each camera's folder."""

import functools
import io
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_tfds.errors import UserError

TRIALS = 10

CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
"""The cameras whose visible images a gallery has, by search mode."""

SHOTS = {"single": 1, "multi": 10}
"""Images that are drawn from each folder; all of them where it has fewer."""

PERMUTATIONS = "exp/rand_perm_cam.mat"
"""Where the official order of the images of each folder lies in the data set."""

Trials = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
"""See `Protocol.trials`."""


def folders(
    gallery: Mapping[str, np.ndarray], cameras: Sequence[int]
) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """(camera, identity, rows, names) of every folder of the cameras, identity by identity.

    Rows [n] of the gallery, sorted by name. `gallery` has identity, camera and name, [G] each.
    """
    identity, camera, name = (np.asarray(gallery[each]) for each in ("identity", "camera", "name"))
    found = []
    for one in np.unique(identity):
        for view in cameras:
            rows = np.flatnonzero((identity == one) & (camera == view))
            if len(rows):
                rows = rows[np.argsort(name[rows])]
                found.append((view, int(one), rows, name[rows]))
    return found


def agw(gallery: Mapping[str, np.ndarray], cameras: Sequence[int], shots: int) -> list[np.ndarray]:
    """The draws of AGW (Ye et al. 2021) and of most published scores, from `gallery` as above.

    Trial t starts Python's generator with the seed t and takes one `random.choice` of each folder.
    For several shots the family calls NumPy's generator, which its code leaves without a seed; here
    it starts with t.
    """
    every = folders(gallery, cameras)
    trials = []
    for trial in range(TRIALS):
        if shots == 1:
            draw = random.Random(trial)
            chosen = [[draw.choice(rows.tolist())] for _, _, rows, _ in every]
        else:
            generator = np.random.RandomState(trial)
            chosen = [
                generator.choice(rows, min(shots, len(rows)), replace=False)
                for _, _, rows, _ in every
            ]
        trials.append(np.concatenate([np.array([], np.int64), *chosen]).astype(np.int64))
    return trials


def official(
    gallery: Mapping[str, np.ndarray],
    cameras: Sequence[int],
    shots: int,
    permutations: Mapping[tuple[int, int], np.ndarray] | None = None,
) -> list[np.ndarray]:
    """The draws of the data set's own evaluation: the first entries of fixed permutations.

    `permutations` {(camera, identity): [trials, n]} hold image numbers, from 1, as file names have
    them. Raises UserError without them, or where one names an image that is not there.
    """
    if permutations is None:
        raise UserError(
            f"The gallery rule official needs {PERMUTATIONS}, which lies with the data set: score "
            "with main.py --mode evaluate, or by a protocol without official in its name."
        )
    trials = [[] for _ in range(TRIALS)]
    for camera, identity, rows, names in folders(gallery, cameras):
        order = permutations.get((camera, identity))
        if order is None or len(order) < TRIALS:
            raise UserError(
                f"{PERMUTATIONS} has no {TRIALS} permutations for camera {camera}, identity "
                f"{identity}, of which the gallery has {len(rows)} images."
            )
        numbers = [int(name.rpartition("/")[2].partition(".")[0]) for name in names]
        row_of = dict(zip(numbers, rows, strict=True))
        for trial in range(TRIALS):
            for number in order[trial][:shots]:
                if int(number) not in row_of:
                    raise UserError(
                        f"{PERMUTATIONS} draws image {number} of camera {camera}, identity "
                        f"{identity}, which the gallery lacks."
                    )
                trials[trial].append(row_of[int(number)])
    return [np.array(rows, np.int64) for rows in trials]


def rule(name: str, mode: str, shots: int, **parts) -> Trials:
    """The function of a protocol for the rule "agw" or "official"."""
    draw = {"agw": agw, "official": official}[name]
    return functools.partial(draw, cameras=CAMERAS[mode], shots=shots, **parts)


def read_permutations(content: bytes, where: str) -> dict[tuple[int, int], np.ndarray]:
    """{(camera, identity): [trials, n]} of the file's cell array of cameras, each of identities.

    Raises UserError where it is not that file.
    """
    from scipy.io import loadmat  # slow to import, and seldom needed
    from scipy.io.matlab import MatReadError

    try:
        cameras = loadmat(io.BytesIO(content))["rand_perm_cam"]
        return {
            (camera, identity): np.atleast_2d(cell)
            for camera, cells in enumerate(cameras.ravel(), start=1)
            for identity, cell in enumerate(np.ravel(cells), start=1)
            if np.size(cell)
        }
    except (MatReadError, ValueError, KeyError, TypeError, NotImplementedError, OSError) as error:
        raise UserError(
            f"{where} is not SYSU-MM01's rand_perm_cam.mat ({error}); copy it again from the data "
            "set's repository, wuancong/SYSU-MM01, evaluation/data_split."
        ) from error
