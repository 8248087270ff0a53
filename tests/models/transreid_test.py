"""TransReID: groups of patches, side information, heads, with FACENet, numbers of the release."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.transreid import demo, wmveid863
from data_tfds.errors import UserError
from data_tfds.samples import VISIBLE
from facenet_jax import config as configs
from facenet_jax import models, objective
from facenet_jax.models import transreid
from facenet_jax.types import DataSpec
from scripts import check_parity
from tests.support import tiny_run as tiny

LABELS = {"camera": 3, "view": 2}


def regrouped_by_hand(patches, parts, shift, interleave):
    """Lists instead of arrays: rotate, fill up, deal out, cut."""
    length = len(patches) // parts
    turned = [*patches[shift - 1 :], *patches[: shift - 1]]
    while len(turned) % interleave:
        turned.append(turned[-2])
    run = len(turned) // interleave
    dealt = [turned[i + k * run] for i in range(run) for k in range(interleave)]
    return [dealt[i * length : (i + 1) * length] for i in range(parts)]


@pytest.mark.parametrize(
    ("count", "parts", "shift", "interleave"),
    [(8, 4, 1, 2), (9, 2, 3, 2), (49, 4, 5, 2), (10, 3, 8, 3), (7, 1, 2, 4)],
)
def test_patches_are_regrouped(count, parts, shift, interleave):
    rows = np.arange(count, dtype=np.float32)
    patches = jnp.asarray(np.stack([rows, -rows], axis=-1))[None]
    found = transreid.regrouped(patches, parts, True, shift, interleave)
    expected = np.asarray(regrouped_by_hand(list(range(count)), parts, shift, interleave))
    np.testing.assert_array_equal(found[0, ..., 0], expected)
    np.testing.assert_array_equal(found[0, ..., 1], -expected)
    plain = transreid.regrouped(patches, parts, False, shift, interleave)
    length = count // parts
    np.testing.assert_array_equal(plain[0, ..., 0].ravel(), rows[: parts * length])


def test_side_information_of_unknown_cameras_is_zero():
    module = transreid.SideInformation(3, 4)
    row = jnp.asarray([0, 2, -1, 3])
    variables = module.init(jax.random.key(0), row)
    table = np.asarray(variables["params"]["table"])
    found = np.asarray(module.apply(variables, row))
    np.testing.assert_array_equal(found, [table[0], table[2], np.zeros(4), np.zeros(4)])


def test_camera_and_view_reach_the_embedding():
    """Each pair of camera and view has a row, weighted by lambda; an unknown one has none."""
    spec = DataSpec((VISIBLE,), tiny.SIZE, 3, LABELS)
    c = tiny.config("transreid", model__sie__camera=True, model__sie__view=True)
    c.model.jpm.enabled = False
    model = models.build(c.model, spec)
    variables = tiny.draw(jax.eval_shape(model.init, jax.random.key(0)))
    assert variables["params"]["side"]["table"].shape == (1, 6, 16)
    images = jnp.broadcast_to(tiny.noise(1, 1, *tiny.SIZE, 3), (1, 8, *tiny.SIZE, 3))
    camera, view = (
        jnp.asarray([x]) for x in ([0, 0, 1, 2, 2, -1, 0, 3], [0, 1, 0, 1, 1, 0, -1, 0])
    )
    batch = tiny.Batch(images, jnp.zeros(8, jnp.int32), {"camera": camera, "view": view})
    outputs, _ = jax.jit(functools.partial(model.apply, train=False))(variables, batch)
    embedding = np.asarray(outputs.embedding)
    apart = np.abs(embedding[:, None] - embedding[None]).max(-1) > 1e-4
    groups = [0, 1, 2, 3, 3, 4, 4, 4]
    np.testing.assert_array_equal(apart, np.not_equal.outer(groups, groups))


def test_what_data_do_not_know_is_one_sentence():
    c = tiny.config("transreid", model__sie__view=True)
    with pytest.raises(UserError, match=r"sie\.view is True, but the training samples have 0"):
        models.build(c.model, DataSpec((VISIBLE,), tiny.SIZE, 3, {"camera": 3}))
    c = tiny.config("transreid", model__facenet=True)
    with pytest.raises(UserError, match="FACENet needs visible, near_infrared, thermal"):
        models.build(c.model, DataSpec((VISIBLE,), tiny.SIZE, 3, LABELS))
    c = tiny.config("transreid", model__jpm__enabled=False, losses__mc__weight=1.0)
    c.losses.mask_kl.weight = 1.0
    with pytest.raises(UserError) as caught:
        configs.check(c)
    assert "no local features" in str(caught.value)
    assert "config.losses.mask_kl.weight is 1.0 but config.model.facenet is False" in str(
        caught.value
    )


def test_options_that_would_mean_nothing_are_refused():
    c = tiny.config("transreid", model__jpm__parts=9, model__fce__mask="hard")
    with pytest.raises(UserError, match="gives 8 patches") as caught:
        configs.check(c)
    said = str(caught.value)
    assert "options of config.model.fce are changed but config.model.facenet is False" in said


@pytest.mark.slow
def test_trains_with_facenet_and_goes_on():
    """Losses of global and local features, MFMP and FCE; stopped half-way, the same bits."""
    c = tiny.config("transreid", model__facenet=True, model__jpm__parts=2, model__jpm__shift=2)
    for name in ("mask_kl", "mc"):
        c.losses[name].weight = 1.0
    terms = {"id", "id_local", "triplet", "triplet_local", "mask_kl", "mc"}
    assert terms == set(objective.terms(c))
    trainer = tiny.Trainer(c)
    whole, scalars = trainer.run(6)
    assert np.isfinite(scalars["loss"]).all()
    half, _ = trainer.run(3)
    again, _ = trainer.run(3, half)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    before = trainer.start().params
    for part in ("last_local", "neck_local_2", "mfmp"):
        first, last = (np.asarray(jax.tree.leaves(x[part])[0]) for x in (before, whole.params))
        assert np.abs(first - last).max() > 0


@pytest.mark.parametrize("name", ["transreid", "facenet"])
def test_recipes_fit_together(name):
    for module in (demo, wmveid863):
        c = module.get_config(name)
        configs.check(c)
        assert ("mask_kl" in objective.terms(c)) == (name == "facenet")
    model = models.build(c.model, DataSpec(tiny.MODALITIES, (256, 128), 603))
    outputs = jax.eval_shape(lambda key: model.init(key), jax.random.key(0))
    assert outputs["params"]["classifier_local_4"]["kernel"].shape == (3, 768, 603)
    with pytest.raises(UserError, match="must be one of transreid, facenet"):
        demo.get_config("x")


def test_every_number_of_the_release_is_met():
    rows = check_parity.check(tiny.ROOT / "tests" / "golden" / "transreid")
    assert len(rows) == 123
    assert [row for row in rows if row.status != "ok"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["persons", "vehicles", "no_rearrange", "plain"])
def test_every_variant_of_the_release_is_met(shared, name):
    rows = check_parity.check(shared / "golden" / "siblings" / "transreid" / name)
    assert [row for row in rows if row.status != "ok"] == []
