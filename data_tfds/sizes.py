"""How large the data sets are, known without TFDS: measuring on random pixels needs no more."""

import dataclasses

from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a data set is, in samples and identities; a whole gallery that queries is both.

    0 where a number is not known.
    """

    train: int
    identities: int
    query: int
    gallery: int
    test_identities: int
    query_identities: int = 0

    def splits(self) -> dict[str, tuple[int, int]]:
        """Samples and identities of each split that is stored; 0 where not known."""
        size = {"train": (self.train, self.identities)}
        if self.query != self.gallery:
            size["query"] = (self.query, self.query_identities)
        return {**size, "gallery": (self.gallery, self.test_identities)}


THREE = (VISIBLE, NEAR_INFRARED, THERMAL)

KNOWN = {
    "wmveid863": (THREE, Size(3482, 603, 1228, 1228, 272)),
    "msvr310": (THREE, Size(1032, 155, 591, 1055, 155, query_identities=52)),
    "rgbnt100": (THREE, Size(8675, 50, 1715, 8575, 50, query_identities=50)),
    "rgbnt201": (THREE, Size(3951, 171, 836, 836, 30)),
    "rendered": (THREE, Size(3520, 176, 300, 800, 50)),
}
"""{data.name: (modalities, size)} as `sets.lookup` and `sets.size` give them, which import TFDS."""
