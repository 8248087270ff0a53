"""How large the files of a data set may be, so that none of them fills the memory."""

import dataclasses

PILLOW_MOST_PIXELS = 178_956_970
"""Pillow refuses images of more pixels by itself."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The options `data.max_pixels` and `data.max_file_bytes`."""

    pixels: int = 50_000_000  # of an image: 150 MB decoded
    file_bytes: int = 200_000_000  # of a file on disk, or as it is unpacked from an archive
