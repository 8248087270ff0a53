"""What a user can get wrong: every kind ends in one sentence that names the file or the option.

Each kind runs through the scripts' own `main`, and leaves nothing behind that a later start would
take for prepared data. Bad embedding files have their table in evaluate_embeddings_test.py.
"""

import pathlib
import re
import shutil

import pytest

from facenet_jax.commands import doctor, prepare
from tests.support import corruptions as spoil
from tests.support import small_datasets as trees

LOGGED = r"([IW]\d{4}|\d\d:\d\d:\d\d) "
VICTIM = "train/0002/ni/0002_v4_n0_s002_004.jpg"
GREY = "train/1/vis/shot_c1_s7.png"
STRIP = "rgbir/query/0502_c0008_000.jpg"
PROGRESS = re.compile(r"(preparing \S+|decoding \w+|reading): .*\[\d\d:\d\d.*\]")

SPOILED = {
    # images
    "no image": (
        "wmveid863",
        spoil.content(VICTIM, lambda _: b"not an image"),
        VICTIM,
        "not an image",
    ),
    "an empty file": ("wmveid863", spoil.content(VICTIM, lambda _: b""), VICTIM, "is not an image"),
    "cut short": ("wmveid863", spoil.content(VICTIM, lambda data: data[:-20]), VICTIM, "truncated"),
    "damaged inside": (
        "folder/camera",
        spoil.content(GREY, lambda data: data[:60] + b"\0\1" + data[62:]),
        GREY,
        "truncated or damaged",
    ),
    "too large to decode": (
        "folder/camera",
        spoil.content(GREY, spoil.bomb),
        GREY,
        "is not an image",
    ),
    "grey": ("wmveid863", spoil.save(VICTIM, "L"), VICTIM, "mode L"),
    "CMYK": ("wmveid863", spoil.save(VICTIM, "CMYK"), VICTIM, "mode CMYK"),
    "transparent": ("folder/camera", spoil.save(GREY, "RGBA"), GREY, "mode RGBA"),
    "a palette": ("folder/camera", spoil.save(GREY, "P"), GREY, "mode P"),
    "16 bits": ("folder/camera", spoil.save(GREY, "I;16"), GREY, "mode I;16"),
    "a narrow strip": ("rgbnt100", spoil.save(STRIP, size=(512, 128)), STRIP, "512 x 128 pixels"),
    "a wide strip": ("rgbnt100", spoil.save(STRIP, size=(1024, 128)), STRIP, "1024 x 128 pixels"),
    "a low strip": ("rgbnt100", spoil.save(STRIP, size=(768, 100)), STRIP, "768 x 100 pixels"),
    # files
    "a missing image": ("wmveid863", spoil.unlink(VICTIM), VICTIM, "config.data.incomplete=skip"),
    "a dangling link": (
        "wmveid863",
        spoil.link(VICTIM, "nowhere"),
        VICTIM,
        "cannot be read: No such",
    ),
    "a link to its own parents": (
        *("wmveid863", spoil.link("train/0002/up", "train"), "train/0002/up"),
        "link to a folder that it lies in",
    ),
    "a pipe": ("wmveid863", spoil.pipe, "vis/pipe.jpg", "neither a file nor a folder"),
    # names
    "a folder that is no identity": (
        *("wmveid863", spoil.sample("train", "0002_v1_n1_s002_009.jpg", "car"), "train/car"),
        "must be a number",
    ),
    "two folders of one identity": ("folder/camera", spoil.twice, "train/01", "same identity 1"),
    "a number too large": (
        *("wmveid863", spoil.sample("train", "0002_v1_n1_s99999999999_001.jpg"), "_s99999999999_"),
        "larger than 2147483647",
    ),
    "a name of another pattern": (
        *("wmveid863", spoil.sample("test", "vehicle.jpg", "0005"), "0005/vis/vehicle.jpg"),
        "does not follow the naming 0001_v1_n1_s012_003.jpg",
    ),
    "a name that breaks the line": (
        *("wmveid863", spoil.sample("train", "a\nb.jpg", "0002"), "a\\nb.jpg"),
        "no readable text",
    ),
    "a name that is no UTF-8": (
        *("wmveid863", spoil.bytes_as_name, "a\\udcff.jpg"),
        "no readable text",
    ),
    "another identity in the name": (
        *("wmveid863", spoil.sample("test", "0005_v1_n1_s005_009.jpg", "0004"), "test/0004"),
        "names identity 5 and lies in the folder of identity 4",
    ),
    "an identity out of range": (
        *(
            "rgbnt100",
            spoil.save("rgbir/query/0601_c0001_000.jpg", size=(768, 128)),
            "0601_c0001_000",
        ),
        "does not follow the naming",
    ),
    "a camera out of range": (
        *(
            "rgbnt100",
            spoil.save("rgbir/query/0502_c0009_000.jpg", size=(768, 128)),
            "0502_c0009_000",
        ),
        "does not follow the naming",
    ),
    # splits and protocols
    "an empty split": ("wmveid863", spoil.empty("test"), "test", "holds no complete sample"),
    "no query3": ("msvr310", spoil.without("query3"), "query3", "query3 holds no complete sample"),
    "no query has a match": (
        *("wmveid863", spoil.elsewhere, "0003_v1_n1_s003_001.jpg"),
        "None of the 2 queries",
    ),
    "no camera in the names": (
        *("folder/camera", spoil.rename("_c", "_"), "gallery/30/vis/shot_1_s7.png"),
        "has no camera, by which the protocol folder/camera",
    ),
    "no scene in the names": (
        *("folder/scene", spoil.rename("_s", "_"), "gallery/30/vis/shot_c1_7.png"),
        "has no scene, by which the protocol folder/scene",
    ),
    "each would find itself": ("folder/none", spoil.without("query"), "set", "has no split query"),
    # tables
    "a table of other columns": (
        *(
            "folder/camera",
            spoil.table(lambda lines: [["id", *lines[0][1:]], *lines[1:]]),
            "mine.csv",
        ),
        "has the columns id,identity",
    ),
    "a table with a column twice": (
        "folder/camera",
        spoil.table(lambda lines: [[*line, line[0]] for line in lines]),
        *("mine.csv", "thermal,split and must have split,identity"),
    ),
    "an empty table": (
        "folder/camera",
        spoil.table(lambda _: []),
        "mine.csv",
        "has the columns none",
    ),
    "a table of a header": (
        "folder/camera",
        spoil.table(lambda x: x[:1]),
        "mine.csv",
        "has no row below its header",
    ),
    "a table in UTF-16": (
        *(
            "folder/camera",
            spoil.table(list, encoding="utf-16"),
            "mine.csv",
            "no CSV table in UTF-8",
        ),
    ),
    "a row twice": (
        *("folder/camera", spoil.table(lambda lines: [*lines, lines[1]]), "mine.csv line 12"),
        "repeats gallery/30/vis/shot_c1_s7.png",
    ),
    "a short row": (
        *("folder/camera", spoil.table(lambda lines: [*lines, lines[1][:5]]), "mine.csv line 12"),
        "not as many cells",
    ),
    "a long row": (
        *(
            "folder/camera",
            spoil.table(lambda lines: [*lines, [*lines[1], "x"]]),
            "mine.csv line 12",
        ),
        "not as many cells",
    ),
    "an unknown split": (
        "folder/camera",
        spoil.cell(0, "validation"),
        "line 3",
        'split "validation"',
    ),
    "an identity of a sign": ("folder/camera", spoil.cell(1, "+2"), "line 3", "or a name"),
    "no identity": ("folder/camera", spoil.cell(1, ""), "line 3", "no readable text"),
    "a negative identity": ("folder/camera", spoil.cell(1, "-2"), "line 3", "from 0 to 2147483647"),
    "a camera in words": ("folder/camera", spoil.cell(2, "left"), "line 3", "needs whole numbers"),
    "a negative scene": ("folder/camera", spoil.cell(3, "-3"), "line 3", "from 0 to 2147483647"),
    "a file that is not there": (
        "folder/camera",
        spoil.cell(5, "no.png"),
        "no.png",
        "line 3 is missing",
    ),
    "no file": ("folder/camera", spoil.cell(6, ""), "mine.csv line 3", "an empty path of"),
    # archives
    "an archive cut short": (
        *("wmveid863", spoil.archive(lambda data: data[:-40]), "set.zip"),
        "neither a folder nor a whole zip archive",
    ),
    "a damaged archive": (
        "wmveid863",
        spoil.archive(spoil.flip),
        "set.zip: t",
        ".jpg cannot be read (",
    ),
    "an encrypted archive": (
        "wmveid863",
        spoil.archive(spoil.header(6, 8, 1)),
        "set.zip",
        "is encrypted",
    ),
    "an archive packed in another way": (
        *("wmveid863", spoil.archive(spoil.header(8, 10, 97)), "set.zip"),
        "compression method is not supported",
    ),
    # places
    "a file that is no archive": ("wmveid863", lambda root: root / VICTIM, VICTIM, "neither a fol"),
    "two copies": (
        "wmveid863",
        spoil.second_copy,
        "",
        "more than one copy of the data set (copy, set)",
    ),
    "nothing there": ("wmveid863", lambda root: root / "no", "set/no", "186Ep0YgHY0a8BQ1Z59HP1D2"),
    "another data set": ("msvr310", spoil.without("."), "set", "MSVR310.zip (491,186,967 bytes"),
    "no such table": ("folder/camera", lambda root: root / "no.csv", "no.csv", "columns split,ide"),
}
"""(data set, what spoils its tree and may return another root, part of the file, more words)."""
MISSING = ("nothing there", "another data set", "no such table")
"""Those that end with exit code 2, for there is no data set at all."""


def spoiled(kind, tmp_path):
    """(data set, root) of a small tree that has this one defect."""
    dataset, change, *_ = SPOILED[kind]
    root = getattr(trees, dataset.split("/")[0])(tmp_path / "set")
    return dataset, change(root) or root


def sentence(text):
    """The only line of stderr that is neither a progress bar nor the log's."""
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    lines = [line for line in lines if line and not PROGRESS.fullmatch(line)]
    (line,) = (line for line in lines if not re.match(LOGGED, line))
    assert line.endswith(".")
    return line


def nothing_but_the_lock(folder):
    return {path.name for path in folder.rglob("*")} <= {".lock"}


@pytest.mark.parametrize("kind", SPOILED)
def test_preparing_ends_in_one_sentence_and_leaves_nothing(kind, tmp_path, capsys):
    dataset, root = spoiled(kind, tmp_path)
    file, words = SPOILED[kind][2:]
    options = ["--dataset", dataset, "--root", str(root), "--image_size", "8,6"]
    code = prepare.main([*options, "--prepared", str(tmp_path / "prepared")])
    said = capsys.readouterr()
    assert code == (2 if kind in MISSING else 1)
    assert said.out == ""
    assert file in sentence(said.err)
    assert words in sentence(said.err)
    assert nothing_but_the_lock(tmp_path / "prepared")


@pytest.mark.parametrize("kind", SPOILED)
def test_the_doctor_finds_what_preparing_refuses(kind, tmp_path, capsys):
    dataset, root = spoiled(kind, tmp_path)
    code = doctor.main(["--dataset", dataset, "--root", str(root), "--all"])
    said = capsys.readouterr()
    assert code == (2 if kind in MISSING else 1)
    if said.out:
        assert "ERROR: " in said.out
        assert SPOILED[kind][2] in said.out
    else:  # not even a list of files to examine
        assert SPOILED[kind][2] in sentence(said.err)


OPTIONS = {
    "an unknown data set": ("prepare", ["--dataset=wmveid"], '"wmveid" and must be one of'),
    "a protocol of another set": (
        "prepare",
        ["--dataset=rgbnt100/scene"],
        "it has rgbnt100/camera",
    ),
    "no protocol": ("prepare", ["--dataset=folder"], "folder needs one of its protocols: it has"),
    "prepared data below a file": ("prepare", ["--prepared=FILE/x"], "--config.data.prepared=DIR"),
    "prepared data in a file": ("prepare", ["--prepared=FILE"], "--config.data.prepared=DIR"),
    "a report below a file": ("doctor", ["--json=FILE/x"], "FILE/x cannot be written: Not a dir"),
    "an unknown set for the doctor": ("doctor", ["--dataset=wmveid"], '"wmveid" and must be'),
}
"""(script, options, words of the sentence); FILE is a file of the test."""


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_bad_option_is_one_sentence(kind, tmp_path, capsys):
    script, changes, words = OPTIONS[kind]
    file = tmp_path / "file"
    file.write_text("mine")
    root = trees.wmveid863(tmp_path / "set")
    options = ["--dataset=wmveid863", f"--root={root}"]
    if script == "prepare":
        options.append(f"--prepared={tmp_path / 'prepared'}")
    changes = [option.replace("FILE", str(file)) for option in changes]
    assert {"prepare": prepare, "doctor": doctor}[script].main([*options, *changes]) == 1
    said = capsys.readouterr()
    assert words.replace("FILE", str(file)) in sentence(said.err)
    assert said.out == ""
    assert nothing_but_the_lock(tmp_path / "prepared")
    assert file.read_text() == "mine"


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGED = {
    "no facts": ("dataset_info.json", pathlib.Path.unlink, "8,6", "dataset_info.json"),
    "no JSON": ("dataset_info.json", lambda path: path.write_text("{"), "8,6", "Expecting prop"),
    "cut pixels": ("train-visible-8x6-*.npy", cut, "8,6", "mmap length"),
    "no pixels": (
        "train-visible-8x6-*.npy",
        lambda path: path.write_bytes(b""),
        "8,6",
        "No data left",
    ),
    "cut labels": ("train.npz", cut, "8,6", "not a zip file"),
    "labels of another split": (
        "train.npz",
        lambda path: shutil.copy(path.with_name("query.npz"), path),
        "8,6",
        "8 images and 2 labels of train, visible",
    ),
    "a record gone": ("*-train.array_record-*", pathlib.Path.unlink, "8,8", "No such file"),
    "a record cut": ("*-train.array_record-*", cut, "8,8", "Riegeli"),
}
"""(file of the prepared data, what harms it, size asked for next, words of the sentence)."""


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_prepared_data_is_told_and_prepared_anew_once_deleted(kind, tmp_path, capsys):
    pattern, harm, size, words = DAMAGED[kind]
    root, prepared = trees.wmveid863(tmp_path / "set"), tmp_path / "prepared"
    options = ["--dataset=rendered", f"--root={root}", f"--prepared={prepared}"]
    assert prepare.main([*options, "--image_size=8,6"]) == 0
    table = capsys.readouterr().out
    (path,) = prepared.rglob(pattern)
    harm(path)
    assert prepare.main([*options, f"--image_size={size}"]) == 1
    said = sentence(capsys.readouterr().err)
    (folder,) = (path for path in prepared.iterdir() if path.is_dir())
    assert f"prepared data in {folder} is damaged" in said
    assert words in said
    shutil.rmtree(folder)
    assert prepare.main([*options, f"--image_size={size}"]) == 0
    assert capsys.readouterr().out == table
