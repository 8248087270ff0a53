"""The SHA-256 sum of a weight file, and those that publishers' files are known to have."""

import hashlib
import os

from facenet_jax.weights.files import opened

SUMS = {
    "dinov2_vits14_pretrain.pth": (
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"
    ),
    "dinov2_vitb14_pretrain.pth": (
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"
    ),
    "dinov3_vits16_pretrain_lvd1689m-08c60483.pth": "08c60483",
    "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth": (
        "73cec8be7427c8655ceced13ce62f6e20a1fa90d1b4d4a550df17a1144081a7c"
    ),
    "ViT-B-16.pt": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
}
"""{name of a file: how its SHA-256 sum begins}."""


def checked(path: str | os.PathLike[str]) -> str:
    """The SHA-256 sum of a file, with a warning where a file of that name has another one."""
    name = os.fspath(path)
    with opened(name) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    known = SUMS.get(name.rpartition("/")[2], "")
    if found.startswith(known):
        return f"SHA-256 {found}"
    return (
        f"SHA-256 {found}, WARNING: the published file of that name has {known}"
        f"{'' if len(known) == 64 else '...'}; this is another file"
    )
