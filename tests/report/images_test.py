"""Ranked lists as images at the end of a training, in event files and for wandb."""

import io
import logging
import subprocess
import sys

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from data_tfds.errors import UserError
from facenet_jax import report
from facenet_jax.report import finished, images, ranked
from facenet_jax.runtime.writers import Writer
from tests.report.report_test import here, network, workdirs  # noqa: F401
from tests.runtime.wandb_run_test import CONFIG, wandb  # noqa: F401
from tests.support import tiny_run as tiny

pytestmark = pytest.mark.usefixtures("wandb")


def events(folder):
    """{tag: (step, the image)} of the images in the event files of a workdir."""
    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    width, height, encoded = value.tensor.string_val
                    image = Image.open(io.BytesIO(encoded))
                    image.load()
                    assert image.size == (int(width), int(height))
                    found[value.tag] = (event.step, image)
    return found


def width(columns: int) -> int:
    """Of an image with so many narrow columns."""
    return images.GAP + columns * (images.CELL + images.GAP)


@pytest.mark.usefixtures("here")
def test_the_images_are_the_lists_of_the_page(workdirs, wandb, tmp_path):  # noqa: F811
    writer = Writer(tmp_path, "tensorboard,wandb,images", CONFIG)
    images.write(workdirs[0], writer, 7)
    writer.close()
    run = finished.open_finished(workdirs[0])
    lists = list(ranked.with_images(run))
    found = events(tmp_path)
    assert len(found) == len(lists) == len(ranked.lists(run)) > 3
    assert {"ranked/worst_1", "ranked/worst_2", "ranked/best_1"} <= set(found)
    for of, (step, image) in zip(lists, found.values(), strict=True):
        assert (step, image.width) == (7, width(len(of.shown)))
        for i, (_, _, frame) in enumerate(of.shown):  # the left edge of a column's frame
            left = images.GAP + i * (images.CELL + images.GAP)
            assert image.getpixel((left, 60)) == tuple(bytes.fromhex(images.COLOURS[frame][1:]))
    ((_, sent),) = wandb.runs[0].logged
    assert list(sent) == list(found)
    for (image, caption), of in zip(sent.values(), lists, strict=True):
        assert (image.width, caption) == (width(len(of.shown)), of.caption)


def test_without_the_data_set_one_line_says_so(workdirs, tmp_path, caplog):  # noqa: F811
    writer = Writer(tmp_path, "tensorboard,images")
    with caplog.at_level(logging.WARNING, logger="absl"):
        images.write(workdirs[1], writer, 7)
        images.write(tmp_path, writer, 7)
    writer.close()
    assert events(tmp_path) == {}
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("There are no images of ranked lists. The data set cannot be opened")
    assert "result.json cannot be read" in second


@pytest.mark.slow
def test_a_run_without_the_word_gets_its_images_when_started_again(wandb, tmp_path):  # noqa: F811
    c = tiny.config("three_stream", train__steps=3, train__writers="tensorboard,wandb")
    c.data.root, c.data.prepared = str(tiny.tree(tmp_path / "tree")), str(tmp_path / "prepared")
    assert not images.wanted(c)
    tiny.train(c, tmp_path / "run")
    assert events(tmp_path / "run") == {}
    c.train.writers = "tensorboard,wandb,images"
    assert images.wanted(c)
    tiny.train(c, tmp_path / "run", show=images.write)
    found = events(tmp_path / "run")
    assert list(found) == [*(f"ranked/worst_{i}" for i in (1, 2, 3)), "ranked/best_1"]
    assert all((step, image.width) == (3, width(11)) for step, image in found.values())
    before, after = wandb.runs
    assert not any("ranked/worst_1" in values for _, values in before.logged)
    assert [list(values) for _, values in after.logged if "ranked/worst_1" in values] == [
        list(found)
    ]
    assert after.ends == [0]


CHILD = """
import sys
{first}
from facenet_jax import commands
from facenet_jax.commands import run
run.training = lambda config, folder, profile, show: print("SHOW", show)
sys.exit(commands.main(["train", *sys.argv[1:]]))
"""


def start(tmp_path, writers: str, first: str = "") -> subprocess.CompletedProcess:
    """`facenet train` up to the training; `first` is done before."""
    options = [f"--config={tiny.BASELINE}", f"--workdir={tmp_path / 'run'}", "--compile_cache="]
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(first=first), *options, f"--config.train.{writers}"],
        env=tiny.environment(),
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_asks_for_images_where_the_option_does(tmp_path):
    done = start(tmp_path, "writers=tensorboard,images")
    assert "SHOW <function write" in done.stdout, done.stderr


def test_a_package_that_is_missing_is_one_sentence_at_the_start(tmp_path, monkeypatch):
    done = start(tmp_path, "writers=tensorboard,images", "sys.modules['jinja2'] = None")
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert "Images of ranked lists (config.train.writers) need jinja2, which is not" in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.setattr(report, "PACKAGES", ("jinja3",))
    images.refuse_missing(tiny.config(train__writers="tensorboard,wandb"))
    with pytest.raises(UserError, match=r"need jinja3, .* pip install 'facenet_jax\[report\]'"):
        images.refuse_missing(tiny.config(train__writers="wandb,images"))
