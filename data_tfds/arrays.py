"""A split of arrays that the user made, for data sets which a function loads."""

from collections.abc import Mapping, Sequence

import numpy as np

from data_tfds import flare
from data_tfds.errors import UserError
from data_tfds.samples import LABELS, Split


def split_of(
    images: Mapping[str, np.ndarray],
    identity: Sequence[int],
    *,
    rows: np.ndarray | None = None,
    name: Sequence[str] | None = None,
    identity_name: Sequence[str] | None = None,
    **labels: Sequence,
) -> Split:
    """The split of these samples, sorted by identity and name as every split is.

    Args:
        images: {modality: uint8 `[N_m, H, W, 3]`}, in the order of the data set's modalities.
        identity: int32 `[N]`; the same number means the same identity in every split.
        rows: int32 `[M, N]`, the row of a sample in the images of a modality, -1 without one; None:
            sample n has row n of all modalities.
        name, identity_name: str `[N]`; None: the number of the sample, of the identity.
        labels: camera, scene, view, night and any other, `[N]` or `[N, M]`. The first four are -1
            where they are not given; the flare statistics are measured where they are not given.

    Raises UserError for arrays whose lengths do not fit.
    """
    identity = np.asarray(identity, np.int32)
    count, lengths = len(identity), {modality: len(array) for modality, array in images.items()}
    if rows is None:
        if set(lengths.values()) != {count}:
            raise UserError(
                f"{count} identities do not fit the images, {lengths}; give one image of each "
                "modality for each sample, or say with rows= which samples have one."
            )
        rows = np.tile(np.arange(count), (len(images), 1))
    rows = np.array(rows, np.int32)
    columns = {
        "name": np.arange(count).astype(str) if name is None else np.array(name, str),
        "identity_name": identity.astype(str) if identity_name is None else np.array(identity_name),
        **{label: np.full(count, -1, dtype) for label, dtype in LABELS.items()},
        **{label: np.asarray(values) for label, values in labels.items()},
    }
    measures = {"flare_fraction": flare.luma_fraction, "histogram_ratio": flare.histogram_ratio}
    for label, measure in measures.items():
        if label not in columns:
            columns[label] = _measured(images, rows, measure)
    for label, values in columns.items():
        if len(values) != count:
            raise UserError(f"{len(values)} values of {label} do not fit {count} identities.")
    order = np.lexsort((columns["name"], identity))
    columns = {label: values[order] for label, values in columns.items()}
    own = {label: columns.pop(label) for label in ("name", "identity_name")}
    return Split(dict(images), rows[:, order], identity[order], **own, labels=columns)


def _measured(images: Mapping[str, np.ndarray], rows: np.ndarray, measure) -> np.ndarray:
    """A statistic of every image that flare can blind: float32 `[N, M]`, 0 for all others."""
    found = np.zeros(rows.T.shape, np.float32)
    for column, (modality, array) in enumerate(images.items()):
        if modality in flare.MODALITIES:
            for sample, row in enumerate(rows[column]):
                found[sample, column] = 0 if row < 0 else measure(array[row])
    return found
