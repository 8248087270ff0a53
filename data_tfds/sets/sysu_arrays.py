"""SYSU-MM01's training images as the four arrays of AGW's preprocessing, read as if files."""

import io

import numpy as np
from PIL import Image

from data_tfds.errors import UserError
from data_tfds.samples import INFRARED, VISIBLE
from data_tfds.source import Tree

NAMES = {VISIBLE: "train_rgb_resized", INFRARED: "train_ir_resized"}
"""Beginnings of the names; NAME_img.npy has the images, NAME_label.npy their labels."""

FILES = tuple(f"{name}_{part}.npy" for name in NAMES.values() for part in ("img", "label"))


class TreeWithArrays(Tree):
    """A tree to whose files each image of the arrays is added, as `train_rgb_resized_img.npy/7`.

    `arrays` are uint8 `[n, H, W, 3]` memory maps and `labels` whole numbers `[n]`, by modality.
    """

    def __init__(self, tree: Tree):
        missing = [name for name in FILES if name not in tree.files]
        if missing:
            raise UserError(
                f"{tree.root} has {', '.join(sorted(set(FILES) - set(missing)))} without "
                f"{', '.join(missing)}; put the four arrays of the training images together."
            )
        self.root, self.files = tree.root, dict(tree.files)
        self.arrays, self.labels = {}, {}
        for modality, name in NAMES.items():
            images, labels = (self._load(f"{name}_{part}.npy") for part in ("img", "label"))
            sound = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
            if not sound or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
                raise UserError(
                    f"{self.root / name}_img.npy is {images.dtype} {images.shape} with labels "
                    f"{labels.dtype} {labels.shape}; they must be uint8 [N, H, W, 3] and integers "
                    "[N]."
                )
            self.arrays[modality], self.labels[modality] = images, np.asarray(labels)
            stamp = self.files[f"{name}_img.npy"]
            for row in range(len(images)):
                self.files[self.path(modality, row)] = stamp

    def path(self, modality: str, row: int) -> str:
        """The path under which an image is found."""
        return f"{NAMES[modality]}_img.npy/{row:05d}"

    def read(self, path: str) -> bytes:
        """Content of one file; of an image of the arrays as PNG, which keeps every pixel."""
        folder, _, row = path.rpartition("/")
        for modality, name in NAMES.items():
            if folder == f"{name}_img.npy":
                file = io.BytesIO()
                image = Image.fromarray(np.asarray(self.arrays[modality][int(row)]))
                image.save(file, "PNG", compress_level=1)
                return file.getvalue()
        return super().read(path)

    def _load(self, name: str) -> np.ndarray:
        path = self.root / name
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is no whole .npy array ({error}); copy it again.") from error
