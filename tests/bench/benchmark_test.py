import json
import sys
import time

import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import run as runs
from facenet_jax.bench import synthetic, timing
from facenet_jax.commands import benchmark
from tests.support import tiny_run as tiny

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture
def two_devices(monkeypatch):
    monkeypatch.setattr(runs, "make_mesh", lambda: tiny.make_mesh(2))


def small(**changes):
    """The tiny baseline, which compiles quicker than FACENet, in the size of the smallest set."""
    defaults = {"data__name": "msvr310", "train__steps_per_dispatch": 2, "model__depth": 1}
    return tiny.config("three_stream", **defaults | changes)


def measured(what, chunks=3, **changes):
    config = small(**changes)
    return benchmark.run_benchmark(config, benchmark.Options(what, chunks, time.time())), config


@pytest.mark.parametrize("what", [pytest.param("train", marks=pytest.mark.slow), "embed"])
def test_a_rate_its_flops_and_their_share_of_the_peak_agree(what):
    result, config = measured(what)
    batch = 8
    assert (result["what"], result["batch"], result["steps_per_chunk"]) == (what, batch, 2)
    assert len(result["chunk_seconds"]) == 3
    seconds = np.median(result["chunk_seconds"])
    np.testing.assert_allclose(result["rate"], 2 * batch / seconds)
    np.testing.assert_allclose(result["ms_per_step"], 1e3 * seconds / 2)
    low, high = result["rate_quartiles"]
    assert 0 < low <= result["rate"] <= high
    if what == "train":
        assert np.isfinite(result["loss"])
    by_part = timing.model_flops(config, synthetic.spec(config.data), train=what == "train")
    assert result["flops_by_part"] == by_part
    assert result["flops_per_sample"] == sum(by_part.values())
    # A network of width 16 is mostly elementwise.
    assert 1.05 < result["xla_flops_per_sample"] / sum(by_part.values()) < 3
    used = result["rate"] * result["flops_per_sample"] / result["peak_flops_per_second"]
    assert "x 2" in result["peak_how"]
    np.testing.assert_allclose(result["mfu"], used)
    assert 0 < result["compile_seconds"] < result["start_to_first_step_seconds"]
    holds = result["memory"]
    assert holds["process_peak"] > holds["program_arguments"] > 0
    assert holds["device_peak"] is None  # a CPU does not report it
    assert len(result["devices"]) == result["device_count"] == 8
    assert result["packages"].keys() >= {"jax", "jaxlib", "flax", "optax"}
    assert result["commit"] is None or len(result["commit"].rstrip("+")) == 40
    text = benchmark.report({"file": "x.py", **result})
    assert "MFU" in text
    assert f"{result['rate']:.4g}, quartiles" in text


def test_an_evaluation_is_its_embeddings_and_its_ranking():
    result, _ = measured("evaluate")
    assert (result["queries"], result["gallery"]) == (591, 1055)
    total = np.median(result["chunk_seconds"])
    assert result["embed_seconds"] > 0 < result["rank_seconds"]
    np.testing.assert_allclose(
        result["embed_seconds"] + result["rank_seconds"], total, rtol=0.5
    )  # medians of the parts are not the parts of the median


@pytest.mark.slow
def test_input_is_measured_alone_and_under_training(tmp_path):
    # As many steps in all as above, so that the resident program is compiled already.
    options = benchmark.Options("input", 4, time.time(), folder=str(tmp_path))
    result = benchmark.run_benchmark(small(), options)
    for name in ("host", "devices", "training_streamed", "training_resident"):
        assert result[f"{name}_rate"] > 0
    ratio = result["devices_rate"] / result["training_resident_rate"]
    np.testing.assert_allclose(result["devices_to_training"], ratio)
    assert result["bytes_per_sample"] == 3 * 3 * np.prod(tiny.SIZE)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_writes_what_it_says(tmp_path, monkeypatch, capsys):
    file, trace = tmp_path / "r.json", tmp_path / "trace"
    arguments = ["--what=embed", "--chunks=1", "--steps_per_chunk=1", f"--json={file}"]
    arguments += [f"--profile={trace}", "--compile_cache=", "--config.data.name=msvr310"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", f"--config={tiny.BASELINE}", *arguments])
    benchmark.main()
    result = json.loads(file.read_text())
    assert result["config"]["data"]["name"] == "msvr310"
    assert (result["steps_per_chunk"], result["chunks"]) == (1, 1)
    assert f"{result['rate']:.4g}" in capsys.readouterr().out
    assert list(trace.rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--chunks=0"], "chunks"),
        (["--json=nowhere/r.json"], "nowhere"),
        (["--config.data.name=folder/camera"], "size is not known"),
        (["--config.evaluate.batch=7"], "does not divide"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, text, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", f"--config={tiny.__file__}", *arguments])
    with pytest.raises(UserError, match=text):
        benchmark.main()


def test_noise_has_the_size_and_the_modalities_of_the_data_set():
    config = small(data__name="wmveid863", data__image_size=(8, 8))
    run = synthetic.run(config, 3, train=True, test=False)
    assert list(run.dataset.splits) == ["train"]
    train = run.dataset.split("train")
    assert len(train) == 3482
    assert len(np.unique(train.identity)) == 603
    assert run.plan.rows.shape == (3, 3, 8)
    assert config.train.steps == 0
    assert run.model.spec == runs.data_spec(config, run.dataset) == synthetic.spec(config.data)
    data, rows = runs.on_devices(run, train)
    assert data.images[0].shape == (3482, 8, 8, 3)
    np.testing.assert_array_equal(rows, np.broadcast_to(np.arange(3482), (3, 3482)))
    visible, near_infrared, thermal = (np.asarray(x).mean() for x in data.labels["flare"])
    assert 0.25 < visible < 0.35
    assert 0.25 < near_infrared < 0.35
    assert thermal == 0
    assert train.images["visible"].std() > 70
    assert (train.images["visible"] != train.images["thermal"]).any()


def test_a_run_to_evaluate_has_the_test_splits_alone():
    run = synthetic.run(small(), 1, train=False, test=True)
    assert {name: len(split) for name, split in run.dataset.splits.items()} == {
        "query": 591,
        "gallery": 1055,
    }
    assert run.model.spec.identities == 155


def test_shapes_alone_take_no_memory():
    config = small(data__name="wmveid863", data__image_size=(4096, 4096))
    dataset = synthetic.load(config.data, test=False, pixels=False)
    images = dataset.split("train").images["thermal"]
    assert images.shape == (3482, 4096, 4096, 3)
    assert not any(images.strides)
