"""One word for each thing: *modality* and *sample*; and no reference to texts that are not here."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = ("facenet_jax/**/*.py", "data_tfds/**/*.py", "configs/*.py", "scripts/*.py", "main.py")
OTHERS = ("Makefile", "pyproject.toml")
PAGES = ()  # "README.md", "docs/*.md": to be added when they are rewritten


def word(pattern: str) -> re.Pattern:
    """The word alone, also as a part of a name such as thermal_band, in any case."""
    return re.compile(rf"(?<![a-z])(?:{pattern})(?![a-z])", re.IGNORECASE)


WORDS = {
    word("bands?"): "modality",
    word("spectrum|spectra"): "modality",
    word("triplets?"): "sample",
    re.compile(r"facenet\.md|spec(ification)? (section|facenet)|shared golden|golden/README"): (
        "the paper's equation, or docs/fidelity.md"
    ),
}
"""{what is not said: what is said instead}."""

LOSS = re.compile(
    r"triplet[ _]loss(es)?"
    r"|batch[-_]hard[-_ ]triplets?"
    r"|losses\.triplet"
    r"|def triplet\("
    r"|weighted_triplet|regularisation triplet"
    r"|[\"']triplet(_local)?[\"'](: triplet,)?",
    re.IGNORECASE,
)
"""Where "triplet" is the loss on an anchor, a positive and a negative: its name in this field."""

EXCEPTIONS = {
    "facenet_jax/parity/parts.py": "arrays of the reference files, named triplet_* there",
    "facenet_jax/parity/model.py": "a variable with the value of the triplet loss",
    "facenet_jax/parity/transreid.py": "names of losses in the reference files",
    "facenet_jax/parity/hosts.py": "the same",
    "facenet_jax/parity/topreid.py": "the function of the triplet loss",
}
"""{file: why its "triplet" is the loss too}."""


def files() -> list[pathlib.Path]:
    """The texts that are held to these words."""
    return sorted(file for pattern in (*CODE, *OTHERS, *PAGES) for file in ROOT.glob(pattern))


def slips(text: str, path: str = "") -> list[str]:
    """Lines with a word that has another here, each with that other one."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        plain = LOSS.sub("", line)
        for pattern, instead in WORDS.items():
            if instead == "sample" and path in EXCEPTIONS:
                continue
            if match := pattern.search(plain):
                found.append(f"{path}:{number}: '{match[0]}' (say {instead}): {line.strip()}")
    return found


def test_one_word_for_each_thing():
    found = [
        slip for file in files() for slip in slips(file.read_text(), str(file.relative_to(ROOT)))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("for band in BANDS:", 1),
        ("thermal_band = 1", 1),
        ("bandwidth, abandoned, multi-spectral", 0),
        ("64 triplets/s", 1),
        ('"triplet": triplet,', 0),
        ("the batch-hard triplet loss", 0),
        ("see facenet.md section 4", 1),
        ("the spec section 4", 1),
        ("a spectrum of", 1),
        ("data_spec, spec.json", 0),
    ],
)
def test_slips_are_seen(line, count):
    assert len(slips(line)) == count
