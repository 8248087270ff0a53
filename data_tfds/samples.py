"""What a data set consists of: samples in splits, and the rules of its retrieval score."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

VISIBLE, NEAR_INFRARED, THERMAL = "visible", "near_infrared", "thermal"
INFRARED = "infrared"
"""The infrared images of visible-infrared sets, which do not say of what wavelength they are."""

MODALITIES = (VISIBLE, NEAR_INFRARED, THERMAL, INFRARED)
"""Every modality that has a name here, in the order in which a data set lists its own."""

LABELS = {"camera": np.int32, "scene": np.int32, "view": np.int32, "night": np.int32}
"""Labels that every data set has; -1 where it does not say."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a retrieval score."""

    split: str  # a key of Dataset.splits
    modalities: tuple[str, ...] = ()  # (): all that the split has


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The rules of one retrieval score; they belong to a data set and are printed with it."""

    name: str  # "wmveid863/official", "rendered/camera", ...
    junk: str = "none"
    """A label: gallery entries of the query's identity and the query's value of it are left out."""
    query: Side = Side("query")
    gallery: Side = Side("gallery")
    ignore: tuple[tuple[str, int, int], ...] = ()
    """(label, query's value, gallery's value): such entries of any identity are left out."""
    trials: Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]] | None = None
    """From the gallery's labels (identity, name, camera, ... each `[G]`) to the gallery rows of
    each trial; None: one trial of all rows."""
    collapse: bool = False
    """CMC counts identities at their first occurrence (SYSU-MM01); mAP and mINP never do."""
    select: str = "mAP"  # the metric that names the best checkpoint


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample as a data set lists it: its labels (-1: not known) and the paths of its images.

    `files` has one path per modality of the data set, "" where the sample lacks that modality; or a
    single path where one file holds the images of all modalities side by side.
    """

    name: str
    identity_name: str  # as the data set writes it
    files: tuple[str, ...]
    camera: int = -1
    scene: int = -1
    view: int = -1
    night: int = -1
    identity: int = -1  # set once the identities of all splits are known

    @property
    def complete(self) -> bool:
        """Whether no image is missing."""
        return all(self.files)


@dataclasses.dataclass(frozen=True)
class Split:
    """The samples of one split, decoded, sorted by identity and name. N samples, M modalities."""

    images: Mapping[str, np.ndarray]
    """{modality: uint8 `[N_m, H, W, 3]`}, the images that exist; read-only, maybe memory maps."""
    rows: np.ndarray
    """int32 `[M, N]`, the row of a sample in the images of a modality; -1: it lacks that image."""
    identity: np.ndarray  # int32 [N]
    identity_name: np.ndarray  # str [N], as the data set writes it: "0042", a number plate
    name: np.ndarray  # str [N]
    labels: Mapping[str, np.ndarray]
    """{label: `[N]` or, where each modality has its own value, `[N, M]`}. Of every data set:
    camera, scene, view, night (int32, -1: not known), flare_fraction and histogram_ratio (float32
    `[N, M]`, 0 for images that are missing and modalities that know no flare)."""

    def __len__(self) -> int:
        return len(self.identity)

    def __getitem__(self, samples: slice) -> "Split":
        """The split of these samples; the images are views, or all of them where order forbids."""
        return self.take(samples)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities, in the order of every modality axis."""
        return tuple(self.images)

    @property
    def present(self) -> np.ndarray:
        """Which images exist: bool `[M, N]`."""
        return self.rows >= 0

    @property
    def complete(self) -> bool:
        """Whether every sample has every modality."""
        return bool(self.present.all())

    def take(self, samples: slice | np.ndarray) -> "Split":
        """The split of these samples (a slice, numbers or a mask), without a copy of images."""
        rows, images = self.rows[:, samples].copy(), dict(self.images)
        for number, modality in enumerate(images):
            used = rows[number][rows[number] >= 0]
            first = int(used[0]) if len(used) else 0
            if np.array_equal(used, np.arange(first, first + len(used))):
                images[modality] = images[modality][first : first + len(used)]
                rows[number] = np.where(rows[number] >= 0, rows[number] - first, -1)
        return Split(
            images=images,
            rows=rows,
            identity=self.identity[samples],
            identity_name=self.identity_name[samples],
            name=self.name[samples],
            labels={label: values[samples] for label, values in self.labels.items()},
        )

    def subset(self, modalities: Sequence[str]) -> "Split":
        """All samples with these modalities only, in this order; labels `[N, M]` follow."""
        chosen = [self.modalities.index(modality) for modality in modalities]
        return dataclasses.replace(
            self,
            images={modality: self.images[modality] for modality in modalities},
            rows=self.rows[chosen],
            labels={
                label: values[:, chosen] if values.ndim == 2 else values
                for label, values in self.labels.items()
            },
        )
