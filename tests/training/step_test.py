import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.samples import BANDS
from facenet_jax import models, step
from facenet_jax.inputs import augment
from facenet_jax.types import Outputs
from tests.support import tiny_run as tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

WEIGHTS = {
    "losses__id": 0.5,
    "losses__triplet": ((0.0, 0.0), (0.5, 2.0)),
    "losses__mc": 0.8,
    "losses__flare": 0.1,
}


@functools.cache
def trainer(steps_per_dispatch=3):
    return tiny.Trainer(tiny.config(train__steps_per_dispatch=steps_per_dispatch, **WEIGHTS))


@functools.cache
def long_run():
    return trainer().run(200)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("k", "counts"), [(3, (3, 3, 1)), (7, (1,) * 7), (7, (3, 4))])
def test_how_a_run_is_cut_into_dispatches_changes_no_bit(k, counts):
    """Seven steps in one dispatch of a program for seven, and otherwise."""
    whole, scalars = trainer(7).run(7)
    assert int(whole.step) == 7
    run = trainer(k)
    state, parts = run.start(), []
    for count in counts:
        state, part = run.chunk(state, run.data, run.schedule, run.count(count))
        parts.append({name: np.asarray(x)[:count] for name, x in part.items()})
    assert_equal(state, whole)
    assert_equal(
        {name: np.concatenate([part[name] for part in parts]) for name in scalars}, scalars
    )


def test_the_total_is_the_weighted_sum_of_the_terms():
    _, scalars = long_run()
    names = {name for name in scalars if name.startswith("loss_")}
    assert names == {"loss_id", "loss_triplet", "loss_mask_kl", "loss_mc", "loss_flare"}
    progress = np.arange(200) / 200
    total = (
        0.5 * scalars["loss_id"]
        + np.minimum(4 * progress, 2.0) * scalars["loss_triplet"]
        + scalars["loss_mask_kl"]
        + 0.8 * scalars["loss_mc"]
        + 0.1 * scalars["loss_flare"]
    )
    np.testing.assert_allclose(scalars["loss"], total, rtol=1e-5)


def test_a_tiny_set_is_learned():
    """Far better than guessing one of the identities in each of the three bands."""
    _, scalars = long_run()
    assert np.isfinite(list(scalars.values())).all()
    assert scalars["loss_id"][-5:].mean() < 0.75 * 3 * np.log(tiny.IDENTITIES)
    assert scalars["loss_triplet"][-5:].mean() < 0.6 * scalars["loss_triplet"][:5].mean()


def test_a_chunk_reads_the_plan_the_rates_and_nothing_of_the_host():
    run = trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a donated buffer that cannot be used
        state = run.start()
        count = run.count(3)
        run.chunk(state, run.data, run.schedule, count)  # compiles, and moves constants once
        before = run.start()
        with jax.transfer_guard("disallow"):
            state, scalars = run.chunk(before, run.data, run.schedule, count)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert int(state.step) == 3
    np.testing.assert_array_equal(scalars["learning_rate"], run.schedule.rates[:3, 0])

    rows = run.schedule.rows.at[1].set(run.schedule.rows[2])
    other = dataclasses.replace(run.schedule, rows=rows)
    _, changed = run.chunk(run.start(), run.data, other, count)
    same = np.asarray(changed["loss"]) == np.asarray(scalars["loss"])
    np.testing.assert_array_equal(same, [True, False, False])


def test_the_guard_of_the_test_above_does_see_a_transfer():
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="host-to-device"):
        jax.jit(jnp.negative)(np.int32(3))


def test_an_overflowing_update_shows_in_the_scalars_of_its_own_step():
    """So that a state with infinite parameters is noticed before it is saved."""
    run = trainer()
    schedule = dataclasses.replace(run.schedule, rates=run.schedule.rates.at[1].set(1e38))
    _, scalars = run.chunk(run.start(), run.data, schedule, run.count(2))
    assert np.isfinite(scalars["loss"][:2]).all()
    np.testing.assert_array_equal(np.isfinite(scalars["parameter_norm"][:2]), [True, False])


def test_gather_takes_the_rows_of_each_band():
    mesh = tiny.make_mesh(2)
    data = tiny.resident(mesh)
    data = dataclasses.replace(data, images=(*data.images[:2], data.images[2][:20]))
    rows = jnp.asarray([[3, 1], [0, 31], [7, 19]], jnp.int32)
    images, batch = jax.jit(lambda data, rows: step.gather(data, rows, 0, mesh))(data, rows)
    for band in range(3):
        np.testing.assert_array_equal(images[band], np.asarray(data.images[band])[rows[band]])
    np.testing.assert_array_equal(batch.identity, np.asarray(data.identity)[rows[0]])
    np.testing.assert_array_equal(batch.flare, np.asarray(data.flare)[rows[0]])


def test_weights_are_numbers_or_piecewise_linear():
    progress = jnp.asarray([0.0, 0.25, 0.5, 0.9], jnp.float32)
    np.testing.assert_array_equal(step.weight_at(2, progress), 2.0)
    table = ((0.0, 1.0), (0.5, 0.0))
    np.testing.assert_allclose(step.weight_at(table, progress), [1.0, 0.5, 0.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"losses__mask_kl": 1.0, "model__flare_heads": False}, "losses.mask_kl is 1.0 but"),
        ({"losses__mask_kl": 0.0, "losses__flare": 0.5, "model__flare_heads": False}, "flare is"),
        ({f"losses__{name}": 0.0 for name in step.LOSSES}, "nothing to learn"),
        ({"losses__id": "high"}, "losses.id is 'high'"),
        ({"losses__id": ((0.0, 1.0), (0.0, 2.0))}, "rising progress"),
        ({"losses__id": (0.0, 1.0)}, "losses.id is"),
        ({"losses__id": float("nan")}, "losses.id is nan"),
    ],
)
def test_losses_that_cannot_be_had_are_named(changes, text):
    with pytest.raises(UserError, match=text):
        step.used_losses(tiny.config(**changes))


def test_used_losses_are_those_with_a_weight():
    assert step.used_losses(tiny.config()) == ("id", "triplet", "mask_kl", "mc")
    heads_off = tiny.config(losses__mask_kl=0.0, model__flare_heads=False, losses__mmm=0.1)
    assert step.used_losses(heads_off) == ("id", "triplet", "mc", "mmm")


def test_losses_go_by_the_names_of_the_bands_and_not_by_their_order():
    """A dict that went through a JAX transformation is sorted: N, T, R."""
    c, batch = tiny.config(), tiny.batch(6)
    logits = {band: tiny.noise(6, 5, seed=i) for i, band in enumerate(BANDS)}
    features = {band: tiny.noise(6, 4, seed=9 + i) for i, band in enumerate(BANDS)}
    terms = [
        step.loss_terms(
            Outputs(dict(sort(features.items())), dict(sort(logits.items())), None, {}),
            batch,
            ("mc", "hc"),
            c.loss_options,
        )
        for sort in (list, sorted)
    ]
    assert terms[0] == terms[1]


@pytest.mark.parametrize("fce", [True, False])
@pytest.mark.parametrize("mfmp", [True, False])
@pytest.mark.parametrize("heads", [True, False])
def test_every_ablation_has_finite_losses_and_gradients(fce, mfmp, heads):
    """Tables 3 and 11: FCE, MFMP and KL, each on and off, with every weighting of the losses."""
    c = tiny.config(
        model__depth=1,
        model__fce__enabled=fce,
        model__mfmp__enabled=mfmp,
        model__flare_heads=heads,
    )
    names = tuple(n for n in step.LOSSES if heads or n not in ("mask_kl", "flare"))
    model = models.build(c.model, c.data.image_size, 4)
    variables, batch = tiny.variables(model), tiny.batch(6)

    @jax.jit
    def gradients(weights):
        def objective(params):
            out, _ = model.apply({**variables, "params": params}, batch, train=True, key=KEY)
            terms = step.loss_terms(out, batch, names, c.loss_options)
            return sum(weights[name] * terms[name] for name in names), terms

        return jax.grad(objective, has_aux=True)(variables["params"])

    every = {name: jnp.float32(1) for name in names}
    grads, terms = gradients(every)
    assert set(terms) == set(names)
    assert all(np.isfinite(x) for x in terms.values())
    for part, tree in grads.items():
        norm = float(step.global_norm(tree))
        assert np.isfinite(norm), part
        # Without FCE and flare heads nothing uses the masks that MFMP predicts.
        assert (norm > 0) == (part != "mfmp" or fce or heads), part
    alone, _ = gradients({name: jnp.float32(name == "id") for name in names})
    if heads:
        assert float(step.global_norm(alone["flare_head"])) == 0


KEY = jax.random.key(0)


def test_extract_gives_the_rows_it_is_asked_for_and_ignores_padding():
    """With the gate of the release a padding row that is flared would change all others."""
    c = tiny.config(model__fce__gate="batch")
    mesh = tiny.make_mesh(2)
    model = models.build(c.model, c.data.image_size, tiny.IDENTITIES)
    variables, data = tiny.variables(model), tiny.resident(mesh)
    extract = step.make_extract(model, mesh)
    calm = np.flatnonzero(~np.asarray(data.flare).any(axis=1))[:3]
    flared = int(np.flatnonzero(np.asarray(data.flare).any(axis=1))[0])
    rows = jnp.asarray([*calm, flared], jnp.int32)

    def embeddings(real):
        return np.asarray(extract(variables, data, rows, jnp.asarray(real)))

    padded, whole = embeddings([True, True, True, False]), embeddings([True] * 4)
    images = jnp.stack([augment.normalise(band[rows]) for band in data.images])
    batch = dataclasses.replace(tiny.batch(4, flare=np.zeros((4, 2), bool)), images=images)
    expected, _ = jax.jit(functools.partial(model.apply, train=False))(variables, batch)
    np.testing.assert_allclose(padded, expected.embedding, rtol=1e-5, atol=1e-5)
    assert np.abs(whole[:3] - padded[:3]).max() > 1e-3


def test_extract_is_compiled_once_however_often_it_is_asked_for():
    mesh = tiny.make_mesh(2)
    model = trainer().model
    assert step.make_extract(model, mesh) is step.make_extract(model, mesh)
    assert step.make_extract(model, mesh) is not step.make_extract(model, mesh, BANDS[:1])
