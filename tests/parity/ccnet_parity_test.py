"""CCNet's rows: that they see a wrong number, and (slow) that the release's are met."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.parity import ccnet, releases
from facenet_jax.parity.rows import Golden
from scripts import check_parity
from tests.support import tiny_run as tiny
from tests.weights.ccnet_release_test import SIZES, checkpoint


def test_weights_follow_from_their_names():
    """Numbers of the rule for seed 11, from the state dict's own names."""
    variance = releases.tensor("branch_0.base.bn1.running_var", (64,), 11)
    assert variance.dtype == np.float32
    assert (variance >= 1).all()
    kernel = releases.tensor("branch_0.base.conv1.weight", (64, 3, 7, 7), 11)
    np.testing.assert_allclose(kernel.std(), (3 * 49) ** -0.5, rtol=0.05)
    assert not releases.tensor("branch_0.base.bn1.num_batches_tracked", (), 11)


def test_a_norm_passes_within_its_tolerance_alone():
    reference = {"a": 1.0, "b": 2.0, "tiny": 1e-12, "none": None}
    near = {"a": 1 + 1e-7, "b": 2.0, "tiny": 1e-10}
    assert {row.status for row in releases.norm_rows("norm", near, reference)} == {"ok"}
    far = {"a": 1 + 1e-5, "tiny": 1e-8, "none": 1.0}
    failed = [row.status for row in releases.norm_rows("norm", far, reference)]
    assert failed == ["FAIL"] * 4


@pytest.fixture
def golden(tmp_path):
    """A directory of a tiny CCNet whose numbers are our own."""
    shapes = {name: list(tensor.shape) for name, tensor in checkpoint(SIZES).items()}
    meta = {"seed": 3, "image": list(tiny.SIZE), "block": 8, "normalise": "imagenet"}
    meta |= {"alpha": 0.6, "lam": 0.3, "system": "ccnet"}
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 4, 2, 3), np.uint8)
    (tmp_path / "state_dict_shapes.json").write_text(json.dumps(shapes))
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    np.savez(tmp_path / "ccnet.npz", images=images, labels=np.array([0, 0, 1, 1]))
    return Golden(tmp_path)


def test_a_wrong_number_fails(golden):
    twin = ccnet.Twin(golden, "float32")
    values = twin.evaluate()
    np.testing.assert_allclose(np.linalg.norm(values["embedding"], axis=1), 1, rtol=1e-5)
    reference = {f"eval_{name}": np.asarray(value) for name, value in values.items()}
    assert {row.status for row in releases.forward_rows("eval", values, reference)} == {"ok"}
    wrong = reference | {"eval_f_n": reference["eval_f_n"] * 1.001, "eval_new": np.ones(3)}
    failed = [r.name for r in releases.forward_rows("eval", values, wrong) if r.status == "FAIL"]
    assert len(failed) == 2


def test_a_system_that_is_not_known_is_one_sentence(golden):
    meta = golden.needed("meta.json") | {"system": "other"}
    (golden.folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="names the system 'other'; known are facenet, "):
        check_parity.check(golden.folder)


@pytest.mark.slow
def test_every_number_of_the_release_is_met(shared):
    with jax.numpy_dtype_promotion("standard"):
        rows = check_parity.check(shared / "golden" / "siblings" / "ccnet")
    assert len(rows) > 900
    assert [dataclasses.astuple(row) for row in rows if row.status != "ok"] == []
