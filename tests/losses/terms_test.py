"""The terms by which a config names losses: what they act on, their parameters, where they lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import losses, objective
from facenet_jax.losses import centres, divergence, identity, terms
from facenet_jax.options import options_of
from facenet_jax.types import Batch, Outputs
from tests.support import tiny_run as tiny

IDENTITY = jnp.arange(6) // 2
BATCH = Batch(None, IDENTITY, {"flare": jnp.asarray(np.arange(18).reshape(3, 6) % 4 == 0)})
NAMES = ("fused", "part_b", "part_a")  # not in alphabetical order


def outputs(names=NAMES, present=None):
    """Outputs of noise under these names."""
    return Outputs(
        features={name: tiny.noise(6, 4, seed=i) for i, name in enumerate(names)},
        logits={name: tiny.noise(6, 3, seed=9 + i) for i, name in enumerate(names)},
        embedding=jnp.zeros((6, 1)),
        parts={},
        extras={"flare_logits": tiny.noise(2, 6, 2, seed=20)},
        present=present or {},
    )


OUT = outputs()


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("on", "names"),
    [
        ((), NAMES),
        (("part_a",), ("part_a",)),
        (("part_*",), ("part_b", "part_a")),
        (("part_a", "fused"), ("part_a", "fused")),  # in the order of the patterns
        (("part_?", "*"), ("part_b", "part_a", "fused")),
    ],
)
def test_a_term_acts_on_the_names_that_its_patterns_mean(on, names):
    assert tuple(terms.chosen(OUT.logits, on)) == names
    close(
        terms.identity_loss(OUT, BATCH, on=on, label_smoothing=0.1),
        sum(identity.cross_entropy(OUT.logits[name], IDENTITY, 0.1) for name in names),
    )
    close(
        terms.triplet(OUT, BATCH, on=on, margin=0.3),
        sum(identity.batch_hard_triplet(OUT.features[name], IDENTITY, 0.3) for name in names),
    )


def test_a_pattern_that_means_nothing_is_named_beside_what_there_is():
    for on in (("part_c",), ("fused", "visible*")):
        with pytest.raises(UserError, match=f"'{on[-1][:5]}.*fused, part_b, part_a"):
            terms.identity_loss(OUT, BATCH, on=on)
    with pytest.raises(UserError, match="the model gives nothing"):
        terms.chosen({}, ("*",))


def test_each_parameter_reaches_its_loss():
    x = list(OUT.features.values())
    soft = identity.batch_hard_triplet
    close(terms.triplet(OUT, BATCH), sum(soft(feature, IDENTITY, None) for feature in x))
    close(terms.mmm(OUT, BATCH, margin=3.0, normalise=False), centres.mmm(x, IDENTITY, 3.0, False))
    close(terms.hc(OUT, BATCH, metric="l2", margin=0.5), centres.hc(x, IDENTITY, "l2", 0.5))
    close(terms.cdc(OUT, BATCH, alpha=0.2, norm="paper"), centres.cdc(x, IDENTITY, 0.2, "paper"))
    consistency = divergence.multi_modal_consistency
    close(terms.mc(OUT, BATCH), consistency(list(OUT.logits.values())))
    close(terms.mc(OUT, BATCH, of="features", reduction="batch"), consistency(x, "batch"))
    last = list(OUT.logits.values())[1:]
    close(terms.mc(OUT, BATCH, on=("part_*",)), consistency(last))


@pytest.mark.parametrize("term", [terms.mc, terms.mmm, terms.hc, terms.cdc])
def test_what_compares_modalities_needs_two(term):
    with pytest.raises(UserError, match=r"two or more .*\['fused'\]"):
        term(OUT, BATCH, on=("fused",))


THERE = np.array([1, 0, 1, 1, 1, 1], bool)


def test_terms_leave_out_the_rows_whose_image_is_missing():
    """A name without an entry in `present` has an image in every row."""
    out = outputs(present={"fused": jnp.asarray(THERE)})
    mask = jnp.asarray(THERE)
    close(
        terms.identity_loss(out, BATCH),
        sum(
            identity.cross_entropy(out.logits[name], IDENTITY, 0.0, there)
            for name, there in zip(NAMES, (mask, None, None), strict=True)
        ),
    )
    close(
        terms.triplet(out, BATCH, on=("fused",)),
        identity.batch_hard_triplet(out.features["fused"], IDENTITY, None, mask),
    )
    fused, b, a = out.logits.values()
    close(
        terms.mc(out, BATCH),
        divergence.min_kl(fused, b, present=mask) + divergence.min_kl(b, a),
    )


@pytest.mark.parametrize("term", ["mmm", "hc", "cdc"])
def test_centres_over_modalities_are_not_defined_where_images_are_missing(term):
    out = outputs(present={"fused": jnp.asarray(THERE)})
    with pytest.raises(UserError, match=rf"loss {term} .*\(config\.data\.incomplete = 'skip'"):
        terms.TERMS[term](out, BATCH)
    terms.TERMS[term](out, BATCH, on=("part_*",))  # of these none is


@pytest.mark.parametrize("name", ["mask_kl", "flare"])
def test_the_flare_losses_count_samples_with_both_images(name):
    term = losses.find(name, tiny.models.own_terms("facenet"))
    present = np.ones((3, 6), bool)
    present[0, 1] = present[1, 4] = present[2, 0] = False
    got = term(OUT, dataclasses.replace(BATCH, present=jnp.asarray(present)))
    rows = np.array([0, 2, 3, 5])
    some = dataclasses.replace(OUT, extras={"flare_logits": OUT.extras["flare_logits"][:, rows]})
    labels = {"flare": BATCH.labels["flare"][:, rows]}
    close(got, term(some, Batch(None, IDENTITY[rows], labels)))


def test_the_parameters_of_a_term_are_options():
    found = options_of(terms.mc)
    assert {name: option.default for name, option in found.items()} == {
        "on": (),
        "of": "logits",
        "reduction": "sample",
    }
    assert found["of"].legal.accepts("features")
    assert not found["of"].legal.accepts("embedding")
    margin = options_of(terms.triplet)["margin"]
    assert margin.legal.accepts(0.3)
    assert not margin.legal.accepts(-1.0)
    assert options_of(terms.mmm)["normalise"].legal.accepts(False)
    assert not options_of(terms.mmm)["normalise"].legal.accepts(1)
    assert options_of(terms.hc)["on"].legal.accepts(("part_*",))
    assert not options_of(terms.hc)["on"].legal.accepts((1,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"losses__mc__of": "embedding"}, r"config\.losses\.mc\.of is 'embedding'"),
        ({"losses__triplet__margin": -0.5}, r"config\.losses\.triplet\.margin is -0\.5"),
        ({"losses__id__label_smoothing": 1.5}, r"losses\.id\.label_smoothing is 1\.5"),
        ({"losses__cdc__norm": "none"}, r"must be one of 'paper', 'code'"),
        ({"losses__mask_kl__reduction": "mean"}, r"losses\.mask_kl\.reduction is 'mean'"),
        (
            {"losses__id__term": "identity"},
            r"one of alignment, cdc, center, flare, hc, id, jeffreys, mask_kl",
        ),
        ({"losses__id__term": "no_such_package.focal"}, "no_such_package"),
        ({"losses__id__term": "tests.losses.terms_test.NAMES"}, "no function"),
    ],
)
def test_a_parameter_that_is_not_legal_is_named(change, words):
    with pytest.raises(UserError, match=words):
        configs.check(tiny.config(**change))


def test_a_models_own_term_is_found_before_ours_and_by_no_other_model():
    def own(outputs, batch):
        return jnp.float32(1)

    assert losses.find("id", {"id": own}) is own
    assert losses.find("id", {}) is terms.identity_loss
    with pytest.raises(UserError, match="mask_kl"):
        losses.find("mask_kl", tiny.models.own_terms("three_stream"))


def largest_logit(outputs, batch, *, power: int = 2, on: tuple[str, ...] = ()):
    """A loss of somebody's own, named by its import path."""
    return sum(jnp.mean(jnp.max(x, axis=1) ** power) for x in outputs.logits.values())


def test_a_term_of_ones_own_is_named_by_its_import_path():
    c = tiny.config("three_stream")
    c.losses.largest = configs.loss(
        "three_stream", f"{__name__}.largest_logit", weight=0.5, power=4
    )
    configs.check(c)
    assert c.losses.largest.on == ()
    found = objective.terms(c)
    assert list(found) == ["id", "triplet", "largest"]  # the recipe's, then others by name
    total, weighted = objective.total(found, OUT, BATCH, jnp.float32(0))
    close(weighted["largest"], 0.5 * largest_logit(OUT, BATCH, power=4))
    close(total, sum(weighted.values()))
    c.losses.largest.power = -(2**40)
    with pytest.raises(UserError, match=r"config\.losses\.largest\.power is -1099511627776"):
        configs.check(c)


@jax.jit
def passed_through(out):
    return out


@pytest.mark.parametrize("transform", ["jit", "vmap", "grad", "map", "scan"])
def test_names_keep_the_models_order(transform):
    """JAX sorts a plain dict by name; the order of modalities is that of the embedding's parts."""
    out = outputs(present={"part_b": jnp.asarray(THERE), "fused": jnp.asarray(THERE)})
    out = dataclasses.replace(out, parts={"part_b": (0, 1), "fused": (1, 1)})
    if transform == "grad":
        out = dataclasses.replace(out, present={})
    result = {
        "jit": lambda: passed_through(out),
        "vmap": lambda: jax.vmap(passed_through)(
            dataclasses.replace(out, extras={"flare_logits": jnp.zeros((6, 2))})
        ),
        "grad": lambda: jax.grad(lambda o: sum(x.sum() for x in jax.tree.leaves(o)))(out),
        "map": lambda: jax.tree.map(lambda x: x, out),
        "scan": lambda: jax.lax.scan(lambda carry, _: (carry, None), out, None, length=2)[0],
    }[transform]()
    assert list(result.features) == list(result.logits) == list(NAMES)
    assert list(result.present) == ([] if transform == "grad" else ["part_b", "fused"])
    assert list(result.parts.items()) == [("part_b", (0, 1)), ("fused", (1, 1))]
