"""A work directory, data and weights on a bucket, against the same on a disk."""

import errno
import io
import json
import pathlib
import shutil
import sys

import fsspec
import numpy as np
import pytest
from etils.epath import backend
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from data_tfds.errors import UserError
from data_tfds.paths import open_path
from data_tfds.prepare import prepare
from facenet_jax import api, evaluate, run, stored
from facenet_jax.inputs import dataset as data
from facenet_jax.runtime import cli, workdir
from facenet_jax.runtime.checkpoint import Checkpoints
from facenet_jax.runtime.writers import Writer, drop_after, write_json
from facenet_jax.weights.files import read_checkpoint
from tests.support import small_datasets as trees
from tests.support import tiny_run as tiny
from tests.support.fake_gcs import Bucket

STEPS = 12


def take_for_gs(patch, folder):
    """Put a bucket of objects below `folder` behind every gs://.

    Arrays reach a bucket through TensorStore's own client, for which no Python class can stand in:
    the checkpoints of gs://NAME lie on disk, in folder/NAME.
    """
    (folder / "objects").mkdir()
    patch.setattr(Bucket, "home", folder / "objects")
    patch.setattr(Bucket, "broken", None)
    registry = sys.modules["fsspec.registry"]._registry
    for name in ("gs", "gcs"):
        patch.setitem(registry, name, Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()

    def on_disk(path, *select):
        url = str(path)
        return Checkpoints(folder / url[5:] if url.startswith("gs://") else path, *select)

    patch.setattr(run, "Checkpoints", on_disk)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    take_for_gs(monkeypatch, tmp_path)
    yield Bucket
    backend.fsspec_backend._get_filesystem.cache_clear()


WHOLE_RUNS = pytest.mark.slow
"""Of a run on the stand-in for a bucket. Once Orbax waited without end for a write of TensorStore
there, for a reason not found yet, so they are not among those that every change runs."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(a workdir on disk, the same run on a bucket, killed once and stopped once)."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny.config(
        "three_stream",  # compiles faster
        data__root=str(tiny.tree(folder / "tree")),
        data__prepared=str(folder / "prepared"),
        train__steps=STEPS,
        train__save_every_steps=5,
        train__evaluate_every=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        take_for_gs(patch, folder)
        disk, remote = open_path(folder / "run"), open_path("gs://bucket/runs/one")
        tiny.train(config, disk)
        with pytest.raises(tiny.Killed):  # at step 7, after the save of step 5
            tiny.train(config, remote, stop_at=4, end=tiny.Killed())
        published = [line["step"] for line in metrics(remote)]
        assert tiny.train(config, remote, stop_at=2) is None  # at step 10
        tiny.train(config, remote)
        yield disk, remote, published
    backend.fsspec_backend._get_filesystem.cache_clear()


def metrics(folder):
    """The lines of metrics.jsonl, without what depends on the clock."""
    clock = ("time", "perf/samples_per_second")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in x.items() if name not in clock} for x in lines]


def arrays(folder, name):
    with (folder / "embeddings" / f"{name}.npz").open("rb") as file, np.load(file) as columns:
        return dict(columns)


def same_embeddings(ours, theirs):
    for name in ("query", "gallery"):
        new, old = arrays(ours, name), arrays(theirs, name)
        assert new.keys() == old.keys()
        for column in old:
            np.testing.assert_array_equal(new[column], old[column])


@WHOLE_RUNS
def test_a_run_on_a_bucket_writes_what_a_run_on_disk_writes(runs):
    disk, remote, _ = runs
    for name in ("result.json", "config.json"):
        assert json.loads((remote / name).read_text()) == json.loads((disk / name).read_text())
    same_embeddings(remote, disk)
    keys = {key.removeprefix("bucket/runs/one/") for key in Bucket.names()}
    events = {key for key in keys if key.startswith("tensorboard/events.out.tfevents.")}
    assert len(events) == 3  # one of each start
    assert keys - events == {
        *(
            "config.json",
            "spec.json",
            "data.json",
            "environment.json",
            "parameters.txt",
            "metrics.jsonl",
            "result.json",
        ),
        *("embeddings/query.npz", "embeddings/gallery.npz"),
    }


@WHOLE_RUNS
def test_metrics_on_a_bucket_survive_a_kill_and_a_stop(runs):
    """The kill came at step 7: published was all up to the save of step 5, and no more."""
    disk, remote, published = runs
    assert published == [1, 2, 3, 4, 4, 5]
    assert metrics(remote) == metrics(disk)


@WHOLE_RUNS
def test_event_files_on_a_bucket_hold_every_step(runs, tmp_path):
    _, remote, _ = runs
    seen = set()
    for path in (remote / "tensorboard").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        seen |= {event.step for event in EventFileLoader(str(tmp_path / path.name)).Load()}
    assert seen >= set(range(1, STEPS + 1))


@WHOLE_RUNS
def test_evaluate_and_embed_read_and_write_the_bucket(runs):
    disk, remote, _ = runs
    result = json.loads((remote / "result.json").read_text())
    for key in ("embeddings/query.npz", "embeddings/gallery.npz", "result.json"):
        (remote / key).unlink()
    config, folder = cli.config_and_workdir(lambda: stored.read_config(remote), None, str(remote))
    with tiny.on(1):
        evaluate.export_only(config, folder)
    same_embeddings(remote, disk)
    with tiny.on(1):
        evaluate.evaluate(config, folder)
    assert json.loads((remote / "result.json").read_text()) == result


@WHOLE_RUNS
def test_a_network_is_loaded_from_a_bucket(runs):
    disk, remote, _ = runs
    images, _ = tiny.pictures(2, 2)
    modalities = dict(zip(tiny.MODALITIES, images, strict=True))
    ours, theirs = (api.load(str(folder)).embed(batch=4, **modalities) for folder in (remote, disk))
    np.testing.assert_array_equal(ours, theirs)


def test_a_writer_on_a_bucket_publishes_when_told_to(bucket):
    folder = open_path("gs://bucket/run")
    writer = Writer(folder)
    writer.write(1, {"x": 1.0})
    assert bucket.names() == []
    writer.flush()
    assert [line["step"] for line in metrics(folder)] == [1]
    writer.write(2, {"x": 2.0})
    writer.close()
    assert [line["step"] for line in metrics(folder)] == [1, 2]
    assert not writer.local.exists()
    drop_after(folder / "metrics.jsonl", 1)
    second = Writer(folder)
    second.write(2, {"x": 3.0})
    second.close()
    assert [(line["step"], line["x"]) for line in metrics(folder)] == [(1, 1.0), (2, 3.0)]
    assert len([key for key in bucket.names() if "/tensorboard/" in key]) == 2


def test_json_on_a_bucket_is_written_whole_or_not_at_all(bucket):
    path = open_path("gs://bucket/result.json")
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert bucket.names() == ["bucket/result.json"]
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("403 Forbidden")])
def test_a_bucket_that_cannot_be_reached_is_one_sentence(bucket, error):
    folder = open_path("gs://bucket/run")
    bucket.broken = error
    with pytest.raises(UserError, match=r"gs://bucket/run cannot be written \(.*choose another"):
        workdir.locked(folder).__enter__()
    with pytest.raises(UserError, match=r"config.json cannot be read .* a workdir\?"):
        stored.read_config(folder)
    with pytest.raises(UserError, match=r"gs://bucket/run/a.json could not be written"):
        write_json(folder / "a.json", 1)
    with pytest.raises(UserError, match=r"gs://bucket/a.zip cannot be read .* check its name"):
        prepare("wmveid863", "gs://bucket/a.zip", str(bucket.home.parent / "prepared"))


def test_what_is_no_path_and_no_bucket_is_refused():
    with pytest.raises(UserError, match="s3://bucket/run is on no file system"):
        open_path("s3://bucket/run")


def test_without_gcsfs_it_is_said_what_to_install(monkeypatch):
    def absent(name):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    for opens in (open_path, api.load, lambda url: cli.config_and_workdir(dict, None, url)):
        with pytest.raises(UserError, match=r"gs://bucket/run needs the package gcsfs.*pip inst"):
            opens("gs://bucket/run")


@pytest.fixture
def archive(tmp_path):
    """(the zip of a small data set, a folder to prepare in, the arrays it gives from disk)."""
    root = trees.wmveid863(tmp_path / "tree")
    path = pathlib.Path(shutil.make_archive(str(tmp_path / "WMVeID863"), "zip", root))
    expected = data.load(trees.section("wmveid863", path, tmp_path / "from_disk"))
    return path, tmp_path / "prepared", expected.split("train").images


def test_an_archive_on_a_bucket_is_fetched_once(bucket, archive, monkeypatch):
    path, prepared, expected = archive
    url = "gs://bucket/sets/WMVeID863.zip"
    open_path(url).write_bytes(path.read_bytes())
    fetched = []
    get = Bucket.get_file

    def count(self, *arguments, **options):
        fetched.append(arguments)
        return get(self, *arguments, **options)

    monkeypatch.setattr(Bucket, "get_file", count)
    for _ in range(2):
        loaded = data.load(trees.section("wmveid863", url, prepared))
        for modality, images in loaded.split("train").images.items():
            np.testing.assert_array_equal(images, expected[modality])
    assert len(fetched) == 1
    copy = prepared / "downloads" / "bucket" / "sets" / "WMVeID863.zip"
    assert copy.read_bytes() == path.read_bytes()
    (folder,) = prepared.glob("wmveid863-official-*")
    assert json.loads((folder / "source.json").read_text())["root"] == url

    copy.write_bytes(path.read_bytes()[:-1])  # not what is there
    data.load(trees.section("wmveid863", url, prepared))
    assert len(fetched) == 2
    assert copy.read_bytes() == path.read_bytes()
    assert not list(prepared.glob(".incomplete-*"))


def test_a_fetch_that_fails_leaves_nothing(bucket, archive, monkeypatch):
    path, prepared, _ = archive
    url = "gs://bucket/WMVeID863.zip"
    open_path(url).write_bytes(path.read_bytes())

    def half(self, url, to):
        pathlib.Path(to).write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr(Bucket, "get_file", half)
    with pytest.raises(UserError, match="bytes and 100 came"):
        prepare("wmveid863", url, str(prepared))

    def breaks(self, url, to):
        half(self, url, to)
        raise RuntimeError("connection reset")

    monkeypatch.setattr(Bucket, "get_file", breaks)
    with pytest.raises(UserError, match=r"WMVeID863.zip cannot be read \(RuntimeError: connection"):
        prepare("wmveid863", url, str(prepared))

    def full(self, url, to):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Bucket, "get_file", full)
    with pytest.raises(UserError, match=r"cannot be written below .*No space left"):
        prepare("wmveid863", url, str(prepared))
    assert [file.name for file in prepared.rglob("*") if file.is_file()] == [".lock"]


@pytest.mark.parametrize(
    "root", ["gs://bucket/WMVeID863", "gs://bucket/own.csv", "s3://bucket/WMVeID863"]
)
def test_of_a_bucket_only_an_archive_is_fetched(bucket, tmp_path, root):
    name = "folder/camera" if root.endswith(".csv") else "wmveid863"
    with pytest.raises(UserError, match=f"{root} is not on this machine.*gcloud storage cp -r"):
        prepare(name, root, str(tmp_path / "prepared"))


def test_prepared_data_lie_on_a_disk(tmp_path):
    with pytest.raises(UserError, match=r"data.prepared is gs://bucket/p and must be"):
        prepare("wmveid863", str(tmp_path), "gs://bucket/p")


def test_weights_are_read_from_a_bucket(bucket):
    weights = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}
    file = io.BytesIO()
    np.savez(file, **weights)
    open_path("gs://bucket/vit.npz").write_bytes(file.getvalue())
    read = read_checkpoint("gs://bucket/vit.npz")
    np.testing.assert_array_equal(read["kernel"], weights["kernel"])
