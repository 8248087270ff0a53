"""The real data sets' names in the real trees: the counts of names/README.md must come out."""

import collections
import pathlib

import pytest
from PIL import Image

from data_tfds.doctor import examine
from data_tfds.errors import UserError
from data_tfds.sets import lookup
from data_tfds.sets.msvr310 import NAMING as MSVR310
from data_tfds.sets.wmveid863 import NAMING as WMVEID863
from data_tfds.source import Stamp
from facenet_jax.inputs import dataset as data
from tests.support import small_datasets as trees


class Names:
    """A source whose files have names and nothing else."""

    root = pathlib.Path("/names")

    def __init__(self, files):
        self.files = {file: Stamp(0, 0) for file in files}

    def where(self, path):
        return path


def lines(shared, file):
    text = (shared / "names" / file).read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def placed(split, folder, names, width):
    return [f"{split}/{name[:width]}/{folder}/{name}" for name in names]


def wmveid863(shared):
    for split in ("train", "test"):
        for folder, label in (("vis", "RGB"), ("ni", "NI"), ("th", "TI")):
            yield from placed(split, folder, lines(shared, f"WMVeID863_{split}_{label}.txt"), 4)


def msvr310(shared):
    for place, split in (
        ("bounding_box_train", "train"),
        ("query3", "query"),
        ("bounding_box_test", "test"),
    ):
        for folder in ("vis", "ni", "th"):
            yield from placed(place, folder, lines(shared, f"MSVR310_{split}.txt"), 4)


def rgbnt100(shared):
    for folder, split in (
        ("bounding_box_train", "train"),
        ("query", "query"),
        ("bounding_box_test", "test"),
    ):
        yield from (f"rgbir/{folder}/{name}" for name in lines(shared, f"RGBNT100_{split}.txt"))


def rgbnt201(shared):
    for place, split in (("train_171", "train"), ("test", "test")):
        for folder in ("RGB", "NI", "TI"):
            names = lines(shared, f"RGBNT201_{split}.txt")
            yield from (f"{place}/{folder}/{name}" for name in names)


def samples(name, files, tmp_path, incomplete="error"):
    cls, config = lookup(name)
    builder = cls(data_dir=tmp_path, config=config, incomplete=incomplete)
    return builder.samples(builder.listing(Names(files)))


def counts(splits):
    return {
        split: (len(found), len({sample.identity for sample in found}))
        for split, found in splits.items()
    }


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("wmveid863/clean", wmveid863, {"train": (3441, 596), "gallery": (1228, 272)}),
        (
            "msvr310",
            msvr310,
            {"train": (1032, 155), "query": (591, 52), "gallery": (1055, 155)},
        ),
        ("rgbnt100", rgbnt100, {"train": (8675, 50), "query": (1715, 50), "gallery": (8575, 50)}),
        ("rgbnt201", rgbnt201, {"train": (3951, 171), "gallery": (836, 30)}),
    ],
)
def test_published_counts(shared, tmp_path, name, files, expected):
    assert counts(samples(name, files(shared), tmp_path)) == expected


def test_wmveid863_has_incomplete_samples(shared, tmp_path):
    files = list(wmveid863(shared))
    with pytest.raises(UserError, match=r"--config\.data\.incomplete=skip"):
        samples("wmveid863", files, tmp_path)
    complete = samples("wmveid863", files, tmp_path, incomplete="skip")
    assert counts(complete) == {"train": (3481, 603), "gallery": (1228, 272)}
    leaked = {t.identity for t in complete["train"]} & {t.identity for t in complete["gallery"]}
    assert leaked == {325, 331, 397, 406, 451, 471, 862}


def write(root, files, size=(4, 4)):
    """Each name of each modality in a colour of its own, so that only equal names look alike."""
    colours = {}
    for file in files:
        path = root / file
        number = colours.setdefault(path.parts[-2:], len(colours))
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = tuple(8 * (number >> shift & 31) + 4 for shift in (10, 5, 0))
        Image.new("RGB", size, colour).save(path, quality=95)
    return root


def told(report):
    """What the doctor says, each with the number of its files."""
    return {(finding.severity, finding.what): len(finding.files) for finding in report.findings}


def files_of(report, part):
    (finding,) = (finding for finding in report.findings if part in finding.what)
    return list(finding.files)


@pytest.fixture(scope="module")
def wmveid863_tree(shared, tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("set"), wmveid863(shared)))


@pytest.fixture(scope="module")
def wmveid863_report(wmveid863_tree):
    return examine("wmveid863", wmveid863_tree)


def by_modality(shared, split):
    """The names of a split in each of the three lists."""
    return [set(lines(shared, f"WMVeID863_{split}_{label}.txt")) for label in ("RGB", "NI", "TI")]


def everywhere(shared, split):
    return set.intersection(*by_modality(shared, split))


def test_the_doctor_finds_all_that_is_known_of_wmveid863_and_nothing_else(wmveid863_report):
    overlap = (
        "2075 of train, 12 of gallery are samples of MSVR310: a model trained on one set may not "
        "be scored on the other"
    )
    assert told(wmveid863_report) == {
        ("error", "6 samples are incomplete"): 6,
        (
            "warning",
            "train has 3481 samples of 603 identities, published 3482 of 603 identities",
        ): 0,
        ("warning", "no split query, published with 959 samples"): 0,
        (
            "warning",
            "gallery has 1228 samples of 272 identities, published 1226 of 260 identities",
        ): 0,
        ("warning", "7 identities are in train and in test"): 7,
        ("warning", "17 samples of the same name are in train and in test"): 17,
        ("warning", "51 images are in train and in test, byte for byte"): 51,
        ("warning", "500 of 1228 queries have no match under wmveid863/official"): 500,
        ("warning", overlap): 0,
    }
    splits = wmveid863_report.splits
    assert {name: numbers["samples"] for name, numbers in splits.items()} == {
        "train": 3481,
        "gallery": 1228,
    }
    assert wmveid863_report.exit_code == 1


@pytest.mark.slow
def test_the_doctor_warns_of_what_the_clean_protocol_mends(shared, wmveid863_tree):
    """The images that are in both splits leave with the seven identities that have them."""
    report = examine("wmveid863/clean", wmveid863_tree)
    leaked = ("0325", "0331", "0397", "0406", "0451", "0471", "0862")
    parsed = (
        WMVEID863.parse(name) for name in everywhere(shared, "train") if not name.startswith(leaked)
    )
    left = sum(name.night == 9 and 0 <= name.scene <= 30 for name in parsed)
    overlap = (
        f"{left} of train, 12 of gallery are samples of MSVR310: a model trained on one set may "
        "not be scored on the other"
    )
    assert told(report) == {
        ("warning", "6 samples are incomplete"): 6,
        ("warning", "7 identities are in train and in test"): 7,
        ("warning", "17 samples of the same name are in train and in test"): 17,
        ("warning", "500 of 1228 queries have no match under wmveid863/clean"): 500,
        ("warning", overlap): 0,
    }
    splits = report.splits
    assert {
        split: (numbers["samples"], numbers["identities"]) for split, numbers in splits.items()
    } == {"train": (3441, 596), "gallery": (1228, 272)}


# The twins below are set operations on the lists and know nothing of our pairing.


def test_the_doctor_names_every_missing_partner(shared, wmveid863_report):
    missing = set()
    for split in ("train", "test"):
        names = by_modality(shared, split)
        for folder, present in zip(trees.FOLDERS, names, strict=True):
            absent = set.union(*names) - present
            missing |= {f"{split}/{name[:4]}/{folder}/{name}" for name in absent}
    said = " ".join(files_of(wmveid863_report, "incomplete")).split()
    root = f"{wmveid863_report.root}/"
    assert {word.removeprefix(root) for word in said if word.startswith(root)} == missing


def test_the_doctor_names_what_train_and_test_share(shared, wmveid863_report):
    identities = files_of(wmveid863_report, "identities are in train")
    assert identities == ["0325", "0331", "0397", "0406", "0451", "0471", "0862"]
    twice = everywhere(shared, "train") & everywhere(shared, "test")
    assert set(files_of(wmveid863_report, "of the same name")) == twice
    assert len(twice) == 17


def test_the_doctor_names_every_query_without_a_match(shared, wmveid863_report):
    names = everywhere(shared, "test")
    identities = collections.Counter(name[:4] for name in names)
    views = collections.Counter(name[:7] for name in names)  # 0001_v3
    lost = {name for name in names if identities[name[:4]] == views[name[:7]]}
    assert set(files_of(wmveid863_report, "no match under")) == lost


def test_the_samples_said_to_be_msvr310s_carry_its_keys(shared):
    """Identity, scene and view of every sample, compared with MSVR310's own list of names."""
    names = [*everywhere(shared, "train"), *everywhere(shared, "test")]
    ours = [parsed for parsed in map(WMVEID863.parse, names) if parsed.night == 9]
    theirs = [*lines(shared, "MSVR310_train.txt"), *lines(shared, "MSVR310_test.txt")]
    keys = collections.Counter((p.identity, p.scene, p.view) for p in map(MSVR310.parse, theirs))
    said = collections.Counter((p.identity, p.scene, p.view) for p in ours if 0 <= p.scene <= 30)
    assert said.total() == 2087
    assert said == keys


@pytest.mark.parametrize(
    ("name", "files", "size", "findings"),
    [
        (
            "msvr310",
            msvr310,
            (4, 4),
            [
                "WMVeID863 contains MSVR310: a model trained on one set may not be scored on the "
                "other"
            ],
        ),
        pytest.param("rgbnt201", rgbnt201, (4, 4), [], marks=pytest.mark.slow),
        pytest.param("rgbnt100", rgbnt100, (768, 128), [], marks=pytest.mark.slow),
    ],
)
def test_the_doctor_has_nothing_to_complain_of_in_the_other_sets(
    shared, tmp_path, name, files, size, findings
):
    report = examine(name, str(write(tmp_path / name, files(shared), size)))
    assert told(report) == {("warning", what): 0 for what in findings}


@pytest.mark.parametrize(
    ("name", "files", "size", "rows"),
    [
        pytest.param(*("wmveid863", wmveid863, (2, 2), (3481, 1228, 1228)), marks=pytest.mark.slow),
        pytest.param(
            *("wmveid863/clean", wmveid863, (2, 2), (3441, 1228, 1228)), marks=pytest.mark.slow
        ),
        pytest.param(*("msvr310", msvr310, (2, 2), (1032, 591, 1055)), marks=pytest.mark.slow),
        pytest.param(*("rgbnt201", rgbnt201, (2, 2), (3951, 836, 836)), marks=pytest.mark.slow),
        pytest.param(
            *("rgbnt100", rgbnt100, (128, 768), (8675, 1715, 8575)), marks=pytest.mark.slow
        ),
    ],
)
def test_the_whole_real_layout_with_generated_pixels(shared, tmp_path, name, files, size, rows):
    trees.picture(0, size).save(tmp_path / "image.jpg")
    for file in files(shared):
        path = tmp_path / "tree" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(tmp_path / "image.jpg")
    section = trees.section(name, tmp_path / "tree", tmp_path / "p", image_size=(2, 2))
    section.incomplete = "skip" if name == "wmveid863" else "error"
    dataset = data.load(section)
    assert tuple(len(dataset.split(each)) for each in ("train", "query", "gallery")) == rows
