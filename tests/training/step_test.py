import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from facenet_jax import objective, step
from facenet_jax.inputs import augment
from tests.support import tiny_run as tiny

WEIGHTS = {
    "losses__id__weight": 0.5,
    "losses__triplet__weight": ((0.0, 0.0), (0.5, 2.0)),
    "losses__mc__weight": 0.8,
    "losses__flare__weight": 0.1,
}
KEY = jax.random.key(0)


@functools.cache
def trainer(steps_per_dispatch=7):
    return tiny.Trainer(tiny.config(train__steps_per_dispatch=steps_per_dispatch, **WEIGHTS))


@functools.cache
def long_run():
    return trainer().run(200)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("k", "counts"),
    [pytest.param(3, (3, 3, 1), marks=pytest.mark.slow), (7, (1,) * 7), (7, (3, 4))],
)
def test_how_a_run_is_cut_into_dispatches_changes_no_bit(k, counts):
    """Seven steps in one dispatch of a program for seven, and otherwise."""
    whole, scalars = trainer(7).run(7)
    assert int(whole.step) == 7
    run = trainer(k)
    state, parts = run.start(), []
    for count in counts:
        state, part = run.chunk(state, run.data, count)
        parts.append({name: np.asarray(x)[:count] for name, x in part.items()})
    assert_equal(state, whole)
    assert_equal(
        {name: np.concatenate([part[name] for part in parts]) for name in scalars}, scalars
    )


def test_the_logged_terms_add_up_to_the_loss():
    """Each is its weight times the term, also while a weight changes."""
    _, scalars = long_run()
    terms = {name: values for name, values in scalars.items() if name.startswith("loss_")}
    assert terms.keys() == {"loss_id", "loss_triplet", "loss_mask_kl", "loss_mc", "loss_flare"}
    np.testing.assert_allclose(sum(terms.values()), scalars["loss"], rtol=1e-5)
    assert scalars["loss_triplet"][0] == 0  # its weight is 0 at the beginning
    assert (scalars["loss_triplet"][1:] > 0).all()


def test_a_tiny_set_is_learned():
    """Far better than guessing one of the identities in each of the three modalities."""
    _, scalars = long_run()
    assert np.isfinite(list(scalars.values())).all()
    assert scalars["loss_id"][-5:].mean() / 0.5 < 0.75 * 3 * np.log(tiny.IDENTITIES)
    weight = np.minimum(np.arange(200) / 50, 2.0)
    triplet = scalars["loss_triplet"][1:] / weight[1:]
    assert triplet[-5:].mean() < 0.6 * triplet[:5].mean()


def test_a_chunk_reads_the_plan_the_rates_and_nothing_of_the_host():
    run, count = trainer(), jax.device_put(np.int32(3), trainer().start().step.sharding)

    def chunk(state, schedule):
        return run.program.compiled(state, run.data, schedule, count)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a donated buffer that cannot be used
        chunk(run.start(), run.schedule)  # moves constants once
        before = run.start()
        with jax.transfer_guard("disallow"):
            state, scalars = chunk(before, run.schedule)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert int(state.step) == 3
    np.testing.assert_array_equal(scalars["learning_rate"][:3], run.schedule.rates[:3, 0])

    rows = run.schedule.rows.at[1].set(run.schedule.rows[2])
    _, changed = chunk(run.start(), dataclasses.replace(run.schedule, rows=rows))
    same = np.asarray(changed["loss"][:3]) == np.asarray(scalars["loss"][:3])
    np.testing.assert_array_equal(same, [True, False, False])


def test_the_guard_of_the_test_above_does_see_a_transfer():
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="host-to-device"):
        jax.jit(jnp.negative)(np.int32(3))


def test_an_overflowing_update_shows_in_the_scalars_of_its_own_step():
    """So that a state with infinite parameters is noticed before it is saved."""
    run = trainer()
    schedule = dataclasses.replace(run.schedule, rates=run.schedule.rates.at[1].set(1e38))
    _, scalars = run.program.compiled(run.start(), run.data, schedule, np.int32(2))
    assert np.isfinite(scalars["loss"][:2]).all()
    np.testing.assert_array_equal(np.isfinite(scalars["parameter_norm"][:2]), [True, False])


@pytest.mark.parametrize(
    ("fce", "mfmp", "heads"),
    [
        (True, True, True),
        pytest.param(True, False, True, marks=pytest.mark.slow),
        pytest.param(True, True, False, marks=pytest.mark.slow),
        pytest.param(False, True, True, marks=pytest.mark.slow),
        pytest.param(False, True, False, marks=pytest.mark.slow),
        (False, False, False),
    ],
)
def test_every_ablation_has_finite_losses_and_gradients(fce, mfmp, heads):
    """Tables 3 and 11: FCE, MFMP and KL, each on and off, with every weighting of the losses."""
    c = tiny.config(
        model__depth=1,
        model__fce__enabled=fce,
        model__mfmp__enabled=mfmp,
        model__flare_heads=heads,
    )
    for label, section in c.losses.items():
        section.weight = 1.0 if heads or label not in ("mask_kl", "flare") else 0.0
    terms = {label: function for label, (_, function) in objective.terms(c).items()}
    model = tiny.build(c)
    variables, batch = tiny.variables(model), tiny.batch(6)

    @jax.jit
    def gradients(weights):
        def weighed(params):
            out, _ = model.apply({**variables, "params": params}, batch, train=True, key=KEY)
            values = {label: function(out, batch) for label, function in terms.items()}
            return sum(weights[label] * values[label] for label in terms), values

        return jax.grad(weighed, has_aux=True)(variables["params"])

    every = {label: jnp.float32(1) for label in terms}
    grads, values = gradients(every)
    assert len(values) == (8 if heads else 6)
    assert all(np.isfinite(x) for x in values.values())
    for part, tree in grads.items():
        norm = float(optax.tree.norm(tree))
        assert np.isfinite(norm), part
        # Without FCE and flare heads nothing uses the masks that MFMP predicts.
        assert (norm > 0) == (part != "mfmp" or fce or heads), part
    alone, _ = gradients({label: jnp.float32(label == "id") for label in terms})
    if heads:
        assert float(optax.tree.norm(alone["flare_head"])) == 0


def test_extract_gives_the_rows_it_is_asked_for_and_ignores_padding():
    """With the gate of the release a padding row that is flared would change all others."""
    t = trainer()
    model = tiny.build(tiny.config(model__fce__gate="batch"))
    variables, flare = tiny.variables(model), np.stack(t.data.labels["flare"], axis=1)
    extract = step.make_extract(model, t.mesh, tiny.MODALITIES)
    calm = np.flatnonzero(~flare.any(axis=1))[:3]
    flared = int(np.flatnonzero(flare.any(axis=1))[0])
    rows = jnp.asarray([[*calm, flared]] * 3, jnp.int32)

    def embeddings(real):
        return np.asarray(extract(variables, t.data, rows, jnp.asarray(real)))

    padded, whole = embeddings([True, True, True, False]), embeddings([True] * 4)
    images = jnp.stack([augment.normalise(part[rows[0]]) for part in t.data.images])
    batch = dataclasses.replace(tiny.batch(4, flare=np.zeros((4, 2), bool)), images=images)
    expected, _ = jax.jit(functools.partial(model.apply, train=False))(variables, batch)
    np.testing.assert_allclose(padded, expected.embedding, rtol=1e-5, atol=1e-5)
    assert np.abs(whole[:3] - padded[:3]).max() > 1e-3


def test_extract_is_compiled_once_however_often_it_is_asked_for():
    model, mesh, names = trainer().model, trainer().mesh, tiny.MODALITIES
    assert step.make_extract(model, mesh, names) is step.make_extract(model, mesh, names)
    assert step.make_extract(model, mesh, names) is not step.make_extract(model, mesh, names[:1])


def test_the_parts_of_an_embedding_are_known_without_computing_it():
    model = trainer().model
    types = {"flare": np.dtype(bool), "camera": np.dtype(np.int32)}
    parts, width = step.embedding_parts(model, tiny.MODALITIES, types)
    assert (parts, width) == (
        {"visible": (0, 16), "near_infrared": (16, 32), "thermal": (32, 48)},
        48,
    )
    parts, width = step.embedding_parts(model, ("thermal",), types)
    assert (parts, width) == ({"thermal": (0, 16)}, 16)


@pytest.mark.parametrize(("batch", "found"), [(0, 256), (8, 8)])
def test_each_device_embeds_64_samples_unless_told(batch, found):
    assert step.embedding_batch(tiny.config(evaluate__batch=batch), devices=4) == found
