"""CCNet checkpoints of the release: every tensor both ways, and what is refused."""

import json

import jax
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.weights import ccnet_release
from facenet_jax.weights.ccnet_release import Sizes
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.merge import flatten
from facenet_jax.weights.torch_writer import write_state_dict
from tests.models import ccnet_test as ccnet
from tests.support import tiny_run as tiny

SIZES = Sizes(branches=3, width=2, depths=(1, 1, 1, 1), identities=tiny.IDENTITIES, alnu=True)


def checkpoint(sizes=SIZES, seed=0):
    """Random tensors under the release's names."""
    rng = np.random.default_rng(seed)
    modalities = tiny.MODALITIES[: sizes.branches]
    rows = list(ccnet_release.rows(sizes, modalities))
    state = {row.theirs: rng.uniform(1, 2, row.shape).astype(np.float32) for row in rows}
    for row in rows:
        if row.theirs.endswith("running_var"):
            name = row.theirs.removesuffix("running_var") + "num_batches_tracked"
            state[name] = np.zeros((), np.int64)
    return state


def test_the_names_and_shapes_are_the_releases(shared):
    """All 1056 of the file that the authors' code writes for MSVR310."""
    folder = shared / "golden" / "siblings" / "ccnet"
    expected = json.loads((folder / "state_dict_shapes.json").read_text())
    state = {
        name: np.broadcast_to(np.float32(1), shape)
        for name, shape in expected.items()
        if not name.endswith("num_batches_tracked")
    }
    sizes = ccnet_release._sizes(state, "the file")
    assert sizes == Sizes(3, 64, (3, 4, 6, 3), 155, True)
    rows = {row.theirs: list(row.shape) for row in ccnet_release.rows(sizes, tiny.MODALITIES)}
    assert rows == {name: shape for name, shape in expected.items() if name in state}


@pytest.mark.parametrize("alnu", [True, False])
def test_an_import_fills_the_model_and_comes_out_bit_by_bit(tmp_path, alnu):
    state = checkpoint(Sizes(3, 2, (1, 2, 1, 1), tiny.IDENTITIES, alnu))
    write_state_dict(tmp_path / "in.pth", state)
    variables, sizes = ccnet_release.import_release(
        read_checkpoint(tmp_path / "in.pth"), tiny.MODALITIES
    )
    c = ccnet.config(model__depths=sizes.depths, model__norm="alnu" if alnu else "none")
    shapes = jax.eval_shape(tiny.build(c).init, jax.random.key(0))
    assert jax.tree.structure(variables) == jax.tree.structure(dict(shapes))
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, variables, shapes)
    assert all(jax.tree.leaves(same))
    write_state_dict(tmp_path / "out.pth", ccnet_release.export_release(variables, tiny.MODALITIES))
    out = read_checkpoint(tmp_path / "out.pth")
    assert out.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(out[name], tensor)


def test_each_branch_is_its_modality():
    state = checkpoint()
    variables, _ = ccnet_release.import_release(state, tiny.MODALITIES)
    ours = flatten(variables)
    for i, modality in enumerate(tiny.MODALITIES):
        kernel = ours[f"params/trunk_{modality}/norm/beta/out/kernel"]
        theirs = state[f"branch_{i}.modalnorm.conv_beta.conv_alpha.0.weight"]
        np.testing.assert_array_equal(kernel, theirs[:, :, 0, 0].T)
        frozen = ours["batch_stats/neck/bias"][i]
        np.testing.assert_array_equal(frozen, state[f"branch_{i}.bottleneck.bias"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"conv1.weight": s["branch_0.base.conv1.weight"]}, "is no CCNet"),
        (lambda s: {k: v for k, v in s.items() if k != "branch_1.base.bn1.bias"}, "lacks branch_1"),
        (lambda s: {**s, "branch_0.extra.weight": np.ones(2)}, "no place for branch_0.extra"),
        (lambda s: {k: v for k, v in s.items() if "branch_2" not in k}, "has 2 branches, but"),
        (lambda s: {**s, "branch_0.base.conv1.weight": np.ones(3)}, "other ranks"),
        (
            lambda s: {**s, "branch_2.classifier.weight": np.ones((4, 64), np.float32)},
            r"\[4, 64\] instead of \[8, 64\]",
        ),
        (
            lambda s: {**s, "branch_0.base.bn1.bias": np.float32([np.nan, 1])},
            "branch_0.base.bn1.bias holds NaN",
        ),
    ],
)
def test_other_files_are_refused_with_both_sides(change, words):
    with pytest.raises(UserError, match=words):
        ccnet_release.import_release(change(checkpoint()), tiny.MODALITIES)


def test_what_the_release_does_not_have_cannot_be_exported():
    model = tiny.build(ccnet.config(model__shared_trunk=True))
    with pytest.raises(UserError, match="share nothing"):
        ccnet_release.export_release(tiny.variables(model), tiny.MODALITIES)
    moved = tiny.build(ccnet.config(model__norm_after="layer3"))
    with pytest.raises(UserError, match="norm"):
        ccnet_release.export_release(tiny.variables(moved), tiny.MODALITIES)
