"""DeMo's experts and ProxyTTT's proxies: their formulas by NumPy loops, and runs with each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.joined import demo, wmveid863
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import models, objective, optim
from facenet_jax.models import experts, proxies
from facenet_jax.types import Outputs
from tests.support import tiny_run as tiny

R, N, T = tiny.MODALITIES


def config(name):
    """The demo of this name on the tiny tree."""
    c = tiny.small_demo(demo.get_config(name))
    c.model.update(width=16, depth=2, heads=2)
    c.model.experts.update(heads=4, attention_width=8)
    return c


@functools.cache
def built(name):
    """(a tiny model, its variables, its jitted apply)."""
    model = tiny.build(config(name))
    apply = jax.jit(model.apply, static_argnames=("train", "modalities"))
    return model, tiny.variables(model), apply


@pytest.mark.parametrize("name", wmveid863.ROWS)
def test_recipes_fit_together_and_ask_for_weights(name):
    c = wmveid863.get_config(name)
    configs.check(c)
    optim.optimizer(c.optim)
    _, with_experts, with_proxies, _ = wmveid863.ROWS[name]
    assert c.model.experts.enabled == with_experts
    assert ({"proxies", "recovery"} <= set(objective.terms(c))) == with_proxies
    with pytest.raises(UserError, match="pretrained is not set"):
        models.check_start(c)
    with pytest.raises(UserError, match="system is 'x'; it must be one of demo_clip"):
        wmveid863.get_config("x")


def test_what_does_not_fit_is_named():
    c = config("experts")
    c.model.experts.heads = 5
    c.losses.proxies.weight = 1.0
    with pytest.raises(UserError, match=r"experts\.heads is 5 and does not .*proxies\.weight is 1"):
        configs.check(c)


def gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def batch_norm(x, params, stats):
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def layer_norm(x, params):
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return x * params["scale"] + params["bias"]


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def by_loops(params, stats, tokens, present):
    """DeMo's head on the tokens {modality: [1 + n, D]} of one sample, as the formulas have it."""
    width, heads, size = 16, 4, 8
    means = {}
    for name in present:
        both = np.concatenate([tokens[name][0], tokens[name][1:].mean(0)])
        p = params[f"mean_{name}"]
        both = layer_norm(both, p["norm"])
        means[name] = gelu(both @ p["dense"]["kernel"] + p["dense"]["bias"])
    answers, there = [], []
    for subset in ((R,), (N,), (T,), (R, N), (R, T), (N, T), (R, N, T)):
        left = [name for name in subset if name in present]
        there.append(bool(left))
        if not left:
            answers.append(np.zeros(width))
            continue
        p = params[f"query_{'_'.join(subset)}"]
        rows = np.concatenate([np.vstack([means[name][None], tokens[name][1:]]) for name in left])
        q, k, v = linear(p["q"], p["query"][0]), linear(p["k"], rows), linear(p["v"], rows)
        found = []
        for h in range(width // size):
            cut = slice(h * size, (h + 1) * size)
            found.append(softmax(k[:, cut] @ q[cut] / np.sqrt(size)) @ v[:, cut])
        answers.append(linear(p["out"], np.concatenate(found)))
    p, s = params["experts"], stats["experts"]
    joint = gelu(np.concatenate(answers) @ p["joint"]["kernel"] + p["joint"]["bias"])
    joint = batch_norm(joint, p["joint_bn"], s["joint_bn"])
    result = np.zeros((7, width))
    for h in range(heads):
        cut = slice(h * 4, (h + 1) * 4)
        gates = np.array(
            [(joint @ p["q"]["kernel"])[cut] @ (u @ p["k"]["kernel"])[cut] / 2 for u in answers]
        )
        gates[~np.array(there)] = -np.inf
        for e, gate in enumerate(softmax(gates)):
            y = gelu(answers[e][cut] @ p["kernel"][e, h] + p["bias"][e, h])
            at = slice(e * width + h * 4, e * width + (h + 1) * 4)
            part = {k: x[at] for k, x in p["bn"].items()}
            result[e, cut] = gate * batch_norm(y, part, {k: x[at] for k, x in s["bn"].items()})
    return means, result.ravel()


@pytest.mark.parametrize("present", [(R, N, T), (R, T), (N,)])
def test_the_experts_by_loops(present):
    head = experts.DeMoHead(tiny.MODALITIES, 4, 2, 0.1, jnp.dtype("float32"))
    tokens = {name: tiny.noise(2, 9, 16, seed=i) for i, name in enumerate(tiny.MODALITIES)}
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), tokens, 1, False))
    variables = tiny.draw(dict(shapes))
    given = {name: tokens[name] for name in present}
    means, found = jax.jit(lambda v, x: head.apply(v, x, 1, False))(variables, given)
    arrays = jax.tree.map(np.asarray, variables)
    for row in range(2):
        one = {name: np.asarray(x[row], np.float64) for name, x in tokens.items()}
        own, expected = by_loops(arrays["params"], arrays["batch_stats"], one, present)
        np.testing.assert_allclose(found[row], expected, rtol=2e-4, atol=2e-5)
        for name in present:
            np.testing.assert_allclose(means[name][row], own[name], rtol=1e-4, atol=1e-5)
    if present == (N,):  # the subsets R, T and RT have nothing left
        assert not np.asarray(found).reshape(2, 7, 16)[:, [0, 2, 4]].any()


def test_the_embedding_has_the_modalities_and_the_experts():
    _, variables, apply = built("experts")
    batch = tiny.batch(4)
    out, changed = apply(variables, batch, train=False)
    assert changed == {}
    assert list(out.parts) == [R, N, T, "experts"]
    assert out.parts["experts"] == (48, 48 + 7 * 16)
    assert set(out.logits) == set(out.features) == {R, N, T, "experts"}
    rows = jnp.array([0, 2])
    labels = {name: x[rows] for name, x in batch.labels.items()}
    some = dataclasses.replace(batch, images=batch.images[rows], labels=labels)
    alone, _ = apply(variables, some, train=False, modalities=(R, T))
    assert alone.parts["experts"] == (32, 32 + 7 * 16)
    np.testing.assert_allclose(alone.features[R], out.features[R], rtol=1e-5, atol=1e-6)


def test_proxies_move_as_the_formulas_say():
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    table, sums = unit(rng.normal(size=(4, 3, 5))), rng.normal(size=(4, 3, 5))
    rows, labels = unit(rng.normal(size=(5, 5))), np.array([0, 0, 2, 2, 2])
    for add in ("sum", "mean"):
        new, kept = proxies.moved(*(jnp.float32(x) for x in (table, sums, rows)), labels, add)
        expected, total = table.copy(), sums.copy()
        for identity in (0, 2):
            own = np.flatnonzero(labels == identity)
            share = [softmax(table[identity] @ rows[i] / 0.1) for i in own]
            for k in range(3):
                x = sum(a[k] * rows[i] for a, i in zip(share, own, strict=True))
                x = x / len(own) if add == "mean" else x
                total[identity, k] = 0.9 * sums[identity, k] + 0.1 * x
            expected[identity] = unit(0.9 * table[identity] + 0.1 * unit(total[identity]))
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(kept, total, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(new[1], jnp.float32(table)[1])  # not in the batch


def test_the_losses_of_proxies_by_loops():
    rng = np.random.default_rng(1)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    x, table, labels = rng.normal(size=(4, 5)), unit(rng.normal(size=(3, 2, 5))), [0, 1, 1, 2]
    extras = {"drawn_a": jnp.float32(x), "proxies_a": jnp.float32(table), "recovery_a": 2.0}
    outputs = Outputs({}, {}, 0, extras=extras)
    batch = dataclasses.replace(tiny.batch(4), identity=jnp.array(labels))
    pull = push = 0.0
    for row, own in zip(unit(x), labels, strict=True):
        pull -= np.mean(table[own] @ row) / 4
        others = [table[c] @ row for c in range(3) if c != own]
        push += np.mean(others) / 2 / 4
    loss = functools.partial(proxies.draw_together, outputs, batch)
    assert float(loss()) == pytest.approx(pull, rel=1e-5)
    assert float(loss(negatives=True)) == pytest.approx(pull + push, rel=1e-5)
    assert proxies.recovery(outputs, batch) == 2.0
    with pytest.raises(UserError, match=r"proxies\.enabled"):
        proxies.recovery(Outputs({}, {}, 0), batch)


def test_a_training_step_moves_the_proxies_of_its_identities_alone():
    model, variables, apply = built("proxies")
    batch = tiny.batch(4)  # identities 0 and 1
    out, changed = apply(variables, batch, train=True, key=jax.random.key(1))
    names = {f"{kind}_{m}" for kind in ("drawn", "proxies", "recovery") for m in (R, N, T, "mixed")}
    assert set(out.extras) == names
    for name in (R, "mixed"):
        before = np.asarray(variables["proxies"][f"proxies_{name}"]["table"])
        after = np.asarray(changed["proxies"][f"proxies_{name}"]["table"])
        assert before.shape[1] == (3 if name == "mixed" else 1)
        same = (before == after).all((1, 2))
        assert same.tolist() == [False, False] + [True] * (len(before) - 2)
    assert float(proxies.recovery(out, batch)) > 0
    alone, _ = apply(variables, batch, train=False)
    assert not alone.extras
    assert model.spec.identities == len(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", demo.ROWS)
def test_a_run_is_resumed_and_exports(name, place, tmp_path):
    """A run that was stopped after a chunk goes on to the very state of one that was not."""
    tiny.resumed_and_exported(config(name), place, tmp_path)
