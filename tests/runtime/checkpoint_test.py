import dataclasses
import gc
import json
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.runtime import checkpoint_record
from facenet_jax.runtime.checkpoint import METADATA, Checkpoints
from facenet_jax.runtime.checkpoint_record import selected
from tests.support import tiny_run as tiny

MESH = tiny.make_mesh(2)
SHARDING = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec())


def state(value, size=6):
    tree = {
        "params": {"kernel": jnp.full((size, 4), value, jnp.float32)},
        "step": jnp.int32(value),
        "half": jnp.full((3,), value, jnp.bfloat16),
    }
    return jax.device_put(tree, SHARDING)


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.manager.close()


def steps(checkpoints):
    checkpoints.wait()
    folders = (path.name for path in pathlib.Path(checkpoints.folder).iterdir())
    return sorted(int(name) for name in folders)


def save(checkpoints, scores):
    for step, mean_average_precision in scores.items():
        metrics = None if mean_average_precision is None else {"mAP": mean_average_precision}
        checkpoints.save(step, state(step), metrics)


def test_what_is_saved_comes_back_in_value_type_and_place(checkpoints):
    checkpoints.save(3, state(3))
    checkpoints.wait()
    restored = checkpoints.restore(3, state(0))
    jax.tree.map(np.testing.assert_array_equal, restored, state(3))
    for new, old in zip(jax.tree.leaves(restored), jax.tree.leaves(state(3)), strict=True):
        assert (new.dtype, new.sharding) == (old.dtype, old.sharding)


def test_the_latest_and_the_best_are_kept(checkpoints):
    """Where the best is not the latest, both stay, and the latest is where to go on."""
    save(checkpoints, {1: 0.3, 2: 0.9, 3: None, 4: 0.5, 5: None})
    assert steps(checkpoints) == [2, 5]
    assert (checkpoints.latest(), checkpoints.best()) == (5, 2)
    assert checkpoints.metrics(2) == {"mAP": 0.9}
    assert not checkpoints.metrics(5)
    save(checkpoints, {6: 0.95})
    assert steps(checkpoints) == [6]
    assert (checkpoints.latest(), checkpoints.best()) == (6, 6)


def test_the_protocol_names_the_score_that_the_best_is_chosen_by(tmp_path):
    """A rank of the CMC, as sets with one true match a query have it."""
    scores = {1: (0.9, 0.2), 2: (0.3, 0.6), 3: (0.5, 0.4)}
    metrics = {
        step: {"mAP": mean, "mINP": 0.1, "cmc": {"1": rank, "5": 1.0}}
        for step, (mean, rank) in scores.items()
    }
    assert [selected(metrics[1], name) for name in ("mAP", "mINP", "R1", "R5")] == [
        0.9,
        0.1,
        0.2,
        1,
    ]
    for select, best in (("mAP", 1), ("R1", 2)):
        opened = Checkpoints(tmp_path / select, select)
        for step, found in metrics.items():
            opened.save(step, state(step), found)
        assert steps(opened) == [best, 3]
        assert (opened.best(), opened.metrics(best)) == (best, metrics[best])
        opened.close()


def test_without_scores_there_is_a_latest_and_no_best(checkpoints):
    assert (checkpoints.latest(), checkpoints.best()) == (None, None)
    save(checkpoints, {1: None, 2: None})
    assert steps(checkpoints) == [2]
    assert (checkpoints.latest(), checkpoints.best()) == (2, None)


def test_another_process_finds_them(checkpoints):
    save(checkpoints, {1: 0.9, 2: None})
    checkpoints.wait()
    other = Checkpoints(checkpoints.folder)
    assert (other.latest(), other.best(), other.metrics(1)) == (2, 1, {"mAP": 0.9})
    save(other, {3: 0.1})
    assert steps(other) == [1, 3]  # the best is known to be the one of the process before
    other.close()


def test_the_best_is_by_the_score_that_the_run_chose(tmp_path):
    """Whoever opens the checkpoints later need not know by which score."""
    own = Checkpoints(tmp_path / "checkpoints", "R1")
    for step, (mean, rank_1) in {1: (0.2, 0.9), 2: (0.8, 0.3)}.items():
        own.save(step, state(step), {"mAP": mean, "cmc": {"1": rank_1}})
    own.close()
    other = Checkpoints(tmp_path / "checkpoints")
    assert (other.latest(), other.best()) == (2, 1)
    assert other.metrics(1) == {"mAP": 0.2, "cmc": {"1": 0.9}}
    other.close()


def test_half_a_checkpoint_is_none(checkpoints, tmp_path):
    """What a killed process leaves is neither found nor in the way."""
    save(checkpoints, {1: None})
    checkpoints.wait()
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", left)
    (left / "_METADATA").unlink(missing_ok=True)
    other = Checkpoints(checkpoints.folder)
    assert other.latest() == 1
    save(other, {2: None})
    assert steps(other) == [2]
    other.close()


def test_a_block_that_fails_keeps_what_was_saved_in_it(checkpoints):
    def fail():
        with checkpoints:
            checkpoints.save(1, state(1, size=200_000))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert Checkpoints(checkpoints.folder).latest() == 1


def test_a_disk_without_space_is_noticed_before_writing(checkpoints, monkeypatch):
    save(checkpoints, {1: None})
    checkpoints.wait()
    usage = shutil.disk_usage(".")._replace(free=50)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"MB left; free space there .* untouched"):
        save(checkpoints, {2: None})
    assert steps(checkpoints) == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_while_saving_costs_no_checkpoint(checkpoints):
    """A limit on the size of files stands for it; the earlier checkpoint stays and can be read."""
    save(checkpoints, {1: None})
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = state(2, size=100_000)
    large = large | {"params": {"kernel": jnp.asarray(tiny.noise(100_000, 4))}}

    def save_large():
        with checkpoints:
            checkpoints.save(2, large)

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"could not be written to .*free space"):
            save_large()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    other = Checkpoints(checkpoints.folder)
    assert other.latest() == 1
    jax.tree.map(np.testing.assert_array_equal, other.restore(1, state(0)), state(1))
    other.close()
    gc.collect()  # the writes that Orbax gave up complain here and not in another test


def test_a_damaged_checkpoint_is_named(checkpoints, tmp_path):
    save(checkpoints, {1: None})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "default" / "ocdbt.process_0")
    (tmp_path / "checkpoints" / "1" / "default" / "manifest.ocdbt").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"The checkpoint of step 1 in .* cannot be read"):
        checkpoints.restore(1, state(0))


def flip(path, at=None, bit=6):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1 << bit
    path.write_bytes(data)


def reopened(checkpoints):
    checkpoints.wait()
    return Checkpoints(checkpoints.folder)


def test_a_flipped_bit_is_never_another_state(checkpoints, tmp_path):
    """Each of 24 single bits, in every file: the same state or one sentence."""
    noise = {"kernel": jax.device_put(tiny.noise(40, 50), SHARDING)}
    checkpoints.save(1, noise, {"mAP": 0.5})
    checkpoints.wait()
    files = [x for x in (tmp_path / "checkpoints" / "1").rglob("*") if x.is_file()]
    files = [path for path in files if path.stat().st_size]
    refused = 0
    rng = np.random.default_rng(0)
    for case in range(24):
        path = files[case % len(files)]
        whole = path.read_bytes()
        flip(path, int(rng.integers(len(whole))), int(rng.integers(8)))
        try:
            other = Checkpoints(checkpoints.folder)
            found = other.restore(1, noise)
            np.testing.assert_array_equal(found["kernel"], noise["kernel"], err_msg=str(path))
            assert other.metrics(1) == {"mAP": 0.5}
            other.close()
        except UserError as error:
            assert len(str(error)) < 700  # noqa: PT017 (either may happen)
            refused += 1
        path.write_bytes(whole)
    assert 0 < refused < 24


def test_the_array_that_is_not_what_was_saved_is_named(checkpoints):
    """Whatever Orbax gives: here a record of other arrays stands for a bit that it let through."""
    save(checkpoints, {1: None, 2: None})
    other = reopened(checkpoints)
    wrong = checkpoint_record.digests_of(state(3))
    record = other.record(2)
    other.records[2] = dataclasses.replace(
        record, digests={**record.digests, "half": wrong["half"]}
    )
    with pytest.raises(UserError, match=r"damaged: by its digest the array half is not what was"):
        other.restore(2, state(0))
    other.close()


def test_the_advice_depends_on_whether_there_is_another_checkpoint(checkpoints, tmp_path):
    save(checkpoints, {1: 0.9, 2: None})
    other = reopened(checkpoints)
    assert "from step 1." in other.advice(2)
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    other = reopened(checkpoints)
    assert "it is the only one, so fetch it from a backup" in other.advice(2)


def test_a_renamed_folder_is_not_another_step(checkpoints, tmp_path):
    save(checkpoints, {6: None})
    checkpoints.wait()
    (tmp_path / "checkpoints" / "6").rename(tmp_path / "checkpoints" / "5")
    other = reopened(checkpoints)
    with pytest.raises(UserError, match=r"5 has the checkpoint of step 6; rename it to 6\."):
        other.restore(5, state(0))


def test_scores_of_the_best_survive_without_its_own_record(checkpoints, tmp_path):
    """Later checkpoints name the best, so that it never becomes another one without a word."""
    save(checkpoints, {1: 0.9, 2: 0.3})
    checkpoints.wait()
    (tmp_path / "checkpoints" / "1" / METADATA).unlink()
    other = reopened(checkpoints)
    assert (other.best(), other.metrics(1)) == (1, {"mAP": 0.9})
    save(other, {3: 0.2})
    assert steps(other) == [1, 3]
    other.close()


def test_scores_that_come_after_saving_are_kept_by_the_next_checkpoint(checkpoints):
    """As where a signal came between a step and its evaluation."""
    save(checkpoints, {1: 0.3, 2: None})
    other = reopened(checkpoints)
    assert other.best() == 1
    other.note(2, {"mAP": 0.9})
    assert other.best() == 2
    save(other, {3: 0.1})
    assert steps(other) == [2, 3]
    again = reopened(other)
    assert (again.best(), again.metrics(2)) == (2, {"mAP": 0.9})


@pytest.mark.parametrize("text", ["", "garbage", "[1]", '{"custom_metadata": {"seal": "0"}}', "{"])
def test_a_damaged_record_is_one_sentence(checkpoints, tmp_path, text):
    save(checkpoints, {1: 0.9})
    checkpoints.wait()
    (tmp_path / "checkpoints" / "1" / METADATA).write_text(text)

    def use():
        other = Checkpoints(checkpoints.folder)
        other.restore(1, state(0))

    with pytest.raises(UserError, match=METADATA):
        use()


def old_scores(checkpoints, tmp_path, text):
    """The checkpoint of step 1 as version 0.1.0 left it: no record, scores in a file."""
    checkpoints.wait()
    folder = tmp_path / "checkpoints" / "1"
    (folder / METADATA).unlink()
    (folder / "metrics").mkdir()
    (folder / "metrics" / "metrics").write_text(text)
    return Checkpoints(checkpoints.folder)


def test_scores_of_older_checkpoints_are_read(checkpoints, tmp_path):
    save(checkpoints, {1: 0.9})
    scores = {"mAP": 0.4, "cmc": {"1": 0.7}, "select": "R1"}
    other = old_scores(checkpoints, tmp_path, json.dumps(scores))
    assert (other.best(), other.metrics(1)) == (1, {"mAP": 0.4, "cmc": {"1": 0.7}})
    jax.tree.map(np.testing.assert_array_equal, other.restore(1, state(0)), state(1))
    other.close()


@pytest.mark.parametrize("text", ["", "garbage", "{}", "[1]", '{"mAP": "a"}'])
def test_damaged_scores_of_an_older_checkpoint_are_named(checkpoints, tmp_path, text):
    """Orbax reads them when it opens the folder; without the file all goes on."""
    save(checkpoints, {1: 0.9})
    file = r"metrics/metrics, the scores of the checkpoint of step 1, is damaged .* remove this one"
    with pytest.raises(UserError, match=file):
        old_scores(checkpoints, tmp_path, text).best()
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").unlink()
    other = Checkpoints(checkpoints.folder)
    jax.tree.map(np.testing.assert_array_equal, other.restore(1, state(0)), state(1))
    assert (other.latest(), other.best()) == (1, None)
    other.close()


def test_a_checkpoint_of_another_model_is_refused(checkpoints):
    save(checkpoints, {1: None})
    checkpoints.wait()
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.restore(1, state(0, size=7))
