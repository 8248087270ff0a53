import dataclasses

import jax
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import run as runs
from facenet_jax.inputs import dataset as datasets
from facenet_jax.inputs import stream
from facenet_jax.runtime import memory
from facenet_jax.runtime.memory import Budget
from tests.support import tiny_run as tiny


def test_images_stream_when_they_are_more_than_their_share(monkeypatch, log_lines):
    """17,280 bytes, 576 of them for each sample, against half of a device."""
    config, mesh = tiny.config(), tiny.make_mesh(1)
    monkeypatch.setattr(memory, "of_device", lambda mesh: 2 * 17280)
    assert not memory.streams(config, 17280, 576, mesh)
    monkeypatch.setattr(memory, "of_device", lambda mesh: 2 * 17279)
    assert memory.streams(config, 17280, 576, mesh)
    assert "The images take 17.3 kB, more than 50 %" in log_lines[0]
    assert "3 steps (13.8 kB" in log_lines[0]
    config.data.max_memory_fraction = 0.6
    assert not memory.streams(config, 17280, 576, mesh)
    assert memory.streams(config, 17280 + 5760, 576, mesh)


def test_the_config_decides_where_it_does(monkeypatch):
    monkeypatch.setattr(memory, "of_device", lambda mesh: 1)
    mesh = tiny.make_mesh(1)
    assert memory.streams(tiny.config(data__resident="never"), 10, 1, mesh)
    assert not memory.streams(tiny.config(data__resident="always"), 10, 1, mesh)
    monkeypatch.setattr(memory, "of_device", lambda mesh: None)
    assert not memory.streams(tiny.config(), 10, 1, mesh)


def test_the_images_of_a_run_are_those_of_all_its_splits():
    """Evaluation alone needs no training images; a validation split queries itself."""
    dataset, config = tiny.dataset(), tiny.config()
    of_sample = 3 * 32 * 16 * 3
    train, test = 32 * of_sample, 2 * 16 * of_sample
    assert datasets.image_bytes(dataset, config, training=True) == (train + test, of_sample)
    assert datasets.image_bytes(dataset, config, training=False) == (test, of_sample)
    held_out = tiny.dataset(validation=tiny.training_split(2))
    assert datasets.image_bytes(held_out, config, training=True)[0] == train + test + 16 * of_sample


def test_a_container_has_what_it_is_given(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP", limit)
    mesh = tiny.make_mesh(4)
    host = 4 * memory.of_device(mesh)
    assert host > 1e9
    limit.write_text("max\n")
    assert memory.of_device(mesh) == host // 4
    limit.write_text("4000000\n")
    assert memory.of_device(mesh) == 1000000


def test_a_budget_counts_what_each_device_holds():
    t = tiny.Trainer(
        tiny.config("three_stream", train__shard_state="always", train__shard_above=512), 4
    )
    state, images = t.start(), sum(x.nbytes for x in t.data.images)
    need = t.program.budget(state, [t.data])
    assert need.images == 2 * images
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.optimizer))
    assert need.optimizer == held
    assert need.activations > 0
    assert t.program.budget(runs.state_shapes(t.run_), []).optimizer == held  # of shapes as well

    streamed = stream.OnDiskSplit(t.data, tuple((np.asarray(x),) for x in t.data.images))
    window = stream.shapes(streamed, 3, 8, t.mesh)
    need = dataclasses.replace(t.program, reads=window).budget(state, [streamed])
    assert need.images == 3 * 3 * 3 * (8 // 4) * np.prod(tiny.SIZE) * 3


def need(device):
    return Budget(1_000_000_000, 2_000_000_000, 500_000_000, 4_000_000_000, device)


def test_the_budget_in_words():
    assert str(need(16_000_000_000)) == (
        "memory of a device: parameters 1.00 GB, optimiser 2.00 GB, images 500.00 MB, activations "
        "and gradients 4.00 GB; 7.50 GB of 16.00 GB available"
    )
    assert "the device does not report its limit" in str(need(None))


def test_what_cannot_fit_is_refused_with_three_ways_out():
    memory.check(need(7_500_000_000), tiny.config(), 1)
    memory.check(need(None), tiny.config(), 1)
    with pytest.raises(UserError) as refusal:
        memory.check(need(7_499_999_999), tiny.config(), 1)
    text = str(refusal.value)
    assert "7.50 GB of 7.50 GB available" in text
    assert text.endswith(
        "; recompute activations with --config.model.remat=full, use more devices than 1, which "
        "divide the batch, or lower --config.train.identities_per_batch=4."
    )


def test_what_would_save_little_is_not_named():
    """Images are a fifteenth of the need, the optimiser more than a quarter."""
    text = memory.remedies(tiny.config(), 4, need(None))
    assert "resident" not in text
    assert "shard_state" in text
    images = dataclasses.replace(need(None), images=1_000_000_000, optimizer=0)
    text = memory.remedies(tiny.config(), 4, images)
    assert "resident=never" in text
    assert "shard_state" not in text


def test_bfloat16_helps_where_it_is_smaller(monkeypatch):
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "gpu")
    assert "dtype=bfloat16" in memory.remedies(tiny.config(), 1)
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "cpu")
    assert "dtype=bfloat16" not in memory.remedies(tiny.config(), 1)


@pytest.mark.parametrize("devices", [1, 4])
def test_ways_out_that_are_taken_are_not_named(devices):
    taken = {"model__remat": "full", "data__resident": "never", "model__dtype": "bfloat16"}
    text = memory.remedies(tiny.config(**taken), devices)
    assert ("shard_state" in text) == (devices > 1)
    assert f"more devices than {devices}" in text
    assert "identities_per_batch=4" in text
    assert "remat" not in text


def test_running_out_of_memory_is_one_sentence():
    with (
        pytest.raises(
            UserError, match=r"ran out of memory .RESOURCE_EXHAUSTED: 9 bytes.; recompute"
        ),
        memory.explained(tiny.config(), 1),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes\nmore of it")
    with pytest.raises(jax.errors.JaxRuntimeError), memory.explained(tiny.config(), 1):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
