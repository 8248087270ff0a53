"""One row for each quantity that is compared, and the files of a golden directory."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.files import read_checkpoint

ARRAYS = 2e-5
"""The tolerance of arrays and losses, of the largest reference value."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity: errors, tolerance of the relative one, and what to think of it."""

    name: str
    absolute: float  # largest |difference|
    relative: float  # that over the largest |reference|, or as the quantity's tolerance has it
    tolerance: float
    status: str  # "ok" | "FAIL" | "absent"


def compared(name: str, ours: Any, reference: Any, tolerance: float) -> Row:
    """The row of an array or a number."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if ours.shape != reference.shape:
        return Row(f"{name} {ours.shape} {reference.shape}", np.inf, np.inf, tolerance, "FAIL")
    absolute = float(np.abs(ours - reference).max(initial=0.0))
    largest = float(np.abs(reference).max(initial=0.0))
    relative = absolute / largest if largest else absolute
    return Row(name, absolute, relative, tolerance, verdict(relative, tolerance))


def verdict(error: float, tolerance: float) -> str:
    """ "ok" or "FAIL"; a NaN fails."""
    return "ok" if error <= tolerance else "FAIL"


def absent(name: str) -> Row:
    """The row of something that the directory does not have."""
    return Row(name, np.nan, np.nan, np.nan, "absent")


class Golden:
    """The directory's files."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def arrays(self, name: str) -> Mapping[str, np.ndarray] | None:
        """An .npz as a mapping, None where there is none."""
        path = self.folder / name
        return read_checkpoint(path) if path.exists() else None

    def json(self, name: str) -> Any:
        """The content of a .json file, None where there is none."""
        path = self.folder / name
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); fetch it again") from error

    def needed(self, name: str) -> Any:
        """The content of a file without which there is nothing to compare."""
        content = self.json(name) if name.endswith(".json") else self.arrays(name)
        if content is None:
            raise UserError(f"{self.folder} has no {name}; give a golden directory with --golden")
        return content
