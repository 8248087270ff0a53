import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import optim
from facenet_jax.models import Group
from tests.support import tiny_run as tiny

# What the release's scheduler gives: (base, E, W), then {epoch: (weights, biases)}.
RECIPES = {
    "wmveid863": (
        (3e-3, 120, 5),
        {
            1: (6.24e-4, 1.224e-3),
            4: (2.406e-3, 4.806e-3),
            5: (2.987193e-3, 5.974360e-3),
            60: (1.503e-3, 3.003e-3),
            119: (6.512985e-6, 7.026997e-6),
            120: (6e-6, 6e-6),
        },
    ),
    "rgbnt100": (
        (1e-3, 120, 10),
        {
            1: (1.09e-4, 2.09e-4),
            9: (9.01e-4, 1.801e-3),
            10: (9.829970e-4, 1.965960e-3),
            60: (5.01e-4, 1.001e-3),
            119: (2.170995e-6, 2.342332e-6),
            120: (2e-6, 2e-6),
        },
    ),
    "msvr310": (
        (1e-3, 1000, 100),
        {
            1: (1.99e-5, 2.99e-5),
            99: (9.901e-4, 1.9801e-3),
            100: (9.755772e-4, 1.951105e-3),
            500: (5.01e-4, 1.001e-3),
            999: (2.002462e-6, 2.004930e-6),
            1000: (2e-6, 2e-6),
        },
    ),
}


def section(**changes):
    c = tiny.config().optim
    c.update(changes)
    return c


def table(c, epoch, epochs, own=None):
    """The rates of a section `optim`, for the model's `own` groups, biases and the others."""
    groups = optim.parameter_groups(own or {}, c.bias_lr_factor)
    return optim.rate_table(c, np.asarray(epoch), epochs, groups)


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_learning_rates(name):
    (base, epochs, warmup), expected = RECIPES[name]
    c = section(learning_rate=base, warmup=float(warmup), bias_lr_factor=2.0)
    rates = table(c, list(expected), epochs)
    assert rates.dtype == np.float32
    np.testing.assert_allclose(rates, list(expected.values()), rtol=1e-6)


def test_cosine_warms_up_linearly_and_ends_at_zero():
    c = section(schedule="cosine", learning_rate=0.4, warmup=2.0, bias_lr_factor=0.5)
    epoch = np.repeat(np.arange(1, 11), 3)  # 30 steps, 6 of them to warm up
    rates = table(c, epoch, epochs=10)
    np.testing.assert_allclose(rates[:6, 0], 0.4 * np.arange(1, 7) / 6, rtol=1e-6)
    np.testing.assert_allclose(rates[17, 0], 0.2, rtol=1e-6)  # half way down
    assert rates[-1, 0] == 0.0
    assert (np.diff(rates[5:, 0]) < 0).all()
    np.testing.assert_allclose(rates[:, 1], 0.5 * rates[:, 0], rtol=1e-6)


def test_no_warm_up_starts_at_the_top():
    c = section(schedule="cosine", learning_rate=0.4, warmup=0.0)
    rates = table(c, np.arange(1, 11), epochs=10)[:, 0]
    np.testing.assert_allclose(rates[0], 0.2 * (1 + np.cos(np.pi / 10)), rtol=1e-6)
    c.schedule = "recipe"
    assert np.isfinite(table(c, np.arange(1, 11), epochs=10)).all()


OWN = {"head": Group("block/", 10.0), "frozen": Group("class_token$", 0.0)}


@pytest.mark.parametrize("schedule", ["recipe", "cosine"])
def test_each_group_of_a_model_has_a_column_of_rates(schedule):
    """Others, the model's own in their order, biases."""
    c = section(schedule=schedule, learning_rate=0.4, warmup=2.0, bias_lr_factor=0.5)
    rates = table(c, np.arange(1, 11), 10, OWN)
    assert rates.shape == (10, 4)
    for column, factor in enumerate((1.0, 10.0, 0.0, 0.5)):
        changed = section(schedule=schedule, learning_rate=0.4, warmup=2.0, bias_lr_factor=factor)
        np.testing.assert_array_equal(rates[:, column], table(changed, np.arange(1, 11), 10)[:, 1])


def test_a_parameter_moves_by_the_first_group_that_holds_it():
    """A bias of the model's own group has that group's rate; the biases get what is left."""
    groups = optim.parameter_groups(OWN, 2.0)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    moved = optim.descend(PARAMS, ones, jnp.float32([1, 10, 0, 2]), groups)
    expected = {
        ("block", "kernel"): 10,
        ("block", "bias"): 10,
        ("norm", "scale"): 1,
        ("norm", "bias"): 2,
        ("class_token",): 0,
    }
    before, after = flat(PARAMS), flat(moved)
    for name, rate in expected.items():
        np.testing.assert_allclose(before[name] - after[name], rate, rtol=1e-5, err_msg=str(name))


def test_a_group_matches_from_the_beginning_of_a_path():
    group = Group("head/", 1.0)
    assert group.holds("head/kernel")
    assert not group.holds("trunk/head/kernel")
    biases = optim.parameter_groups({}, 2.0)["biases"]
    assert biases.holds("bias")
    assert biases.holds("trunk/blocks/fc1/bias")
    assert not biases.holds("trunk/bias/kernel")


PARAMS = {
    "block": {"kernel": tiny.noise(3, 2), "bias": tiny.noise(2, seed=1)},
    "norm": {"scale": tiny.noise(2, seed=2), "bias": tiny.noise(2, seed=3)},
    "class_token": tiny.noise(1, 2, seed=4),
}
NAMES = [("block", "kernel"), ("block", "bias"), ("norm", "scale"), ("norm", "bias")]
RATES = np.array([[0.1, 0.2], [0.1, 0.2], [0.05, 0.1], [0.05, 0.1], [0.01, 0.02]], np.float32)


BIASES = optim.parameter_groups({}, 2.0)


def flat(tree):
    named = {path: np.asarray(tree[path[0]][path[1]], np.float64) for path in NAMES}
    return named | {("class_token",): np.asarray(tree["class_token"], np.float64)}


def gradients(step):
    """Other numbers at every step."""
    return {
        "block": {
            "kernel": tiny.noise(3, 2, seed=10 + step),
            "bias": tiny.noise(2, seed=20 + step),
        },
        "norm": {"scale": tiny.noise(2, seed=30 + step), "bias": tiny.noise(2, seed=40 + step)},
        "class_token": tiny.noise(1, 2, seed=50 + step),
    }


def five_steps(c):
    transformation, params = optim.optimizer(c), PARAMS
    state = transformation.init(params)
    for step, rates in enumerate(RATES):
        directions, state = transformation.update(gradients(step), state, params)
        params = optim.descend(params, directions, jnp.asarray(rates), BIASES)
    return flat(params)


def test_sgd_is_torchs():
    """v = 0.9 v + (g + decay p); p = p - lr v, all decayed, biases at their own rate."""
    result = five_steps(section(name="sgd", momentum=0.9, weight_decay=0.1, clip=0.0))
    expected, velocity = flat(PARAMS), {}
    for step, (rate, bias_rate) in enumerate(RATES):
        for name, g in flat(gradients(step)).items():
            g = g + 0.1 * expected[name]
            velocity[name] = 0.9 * velocity[name] + g if name in velocity else g
            expected[name] = expected[name] - (
                (bias_rate if name[-1] == "bias" else rate) * velocity[name]
            )
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-5, atol=1e-6, err_msg=str(name))


def test_adam_couples_the_decay_into_the_gradient_of_everything():
    """torch.optim.Adam: g + decay p enters both moments, biases and scales included."""
    c = section(name="adam", betas=(0.9, 0.99), weight_decay=0.1, clip=0.0)
    with jax.numpy_dtype_promotion("standard"):  # which optax.scale_by_adam needs
        result = five_steps(c)
    expected, m, v = flat(PARAMS), {}, {}
    for step, (rate, bias_rate) in enumerate(RATES):
        for name, g in flat(gradients(step)).items():
            g = g + 0.1 * expected[name]
            m[name] = 0.9 * m.get(name, 0) + 0.1 * g
            v[name] = 0.99 * v.get(name, 0) + 0.01 * g**2
            root = np.sqrt(v[name] / (1 - 0.99 ** (step + 1))) + 1e-8
            direction = m[name] / (1 - 0.9 ** (step + 1)) / root
            rate_of_it = bias_rate if name[-1] == "bias" else rate
            expected[name] = expected[name] - rate_of_it * direction
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-4, atol=1e-6)


def test_multistep_warms_up_and_falls_at_its_milestones():
    """CCNet on MSVR310: epochs 1 to 10 rise from 0.01, then a tenth at 300 and again at 550."""
    c = section(
        schedule="multistep",
        learning_rate=3.5e-4,
        warmup=10.0,
        milestones=(300, 550),
        gamma=0.1,
        bias_lr_factor=1.0,
    )
    share = {1: 0.109, 5: 0.505, 9: 0.901, 10: 1, 299: 1, 300: 0.1, 549: 0.1, 550: 0.01, 1200: 0.01}
    rates = table(c, list(share), 1200)
    np.testing.assert_allclose(rates[:, 0], 3.5e-4 * np.array(list(share.values())), rtol=1e-6)
    np.testing.assert_array_equal(rates[:, 0], rates[:, 1])


@pytest.mark.parametrize("milestones", [(70, 40), (40, 40), (-1,), ("40",)])
def test_milestones_rise(milestones):
    with pytest.raises(UserError, match=r"optim.milestones is .* rising numbers"):
        configs.check(tiny.config(optim__milestones=milestones))


def test_adamw_decays_kernels_alone():
    c = section(name="adamw", betas=(0.9, 0.99), weight_decay=0.1, clip=0.0)
    with jax.numpy_dtype_promotion("standard"):  # which optax.scale_by_adam needs
        result = five_steps(c)
    expected, m, v = flat(PARAMS), {}, {}
    for step, (rate, bias_rate) in enumerate(RATES):
        for name, g in flat(gradients(step)).items():
            m[name] = 0.9 * m.get(name, 0) + 0.1 * g
            v[name] = 0.99 * v.get(name, 0) + 0.01 * g**2
            direction = (m[name] / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(v[name] / (1 - 0.99 ** (step + 1))) + 1e-8
            )
            if name[-1] == "kernel":
                direction = direction + 0.1 * expected[name]
            expected[name] = expected[name] - (
                (bias_rate if name[-1] == "bias" else rate) * direction
            )
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-4, atol=1e-5, err_msg=str(name))


@pytest.mark.parametrize(("clip", "scale"), [(0.5, None), (1e6, 1.0), (0.0, 1.0)])
def test_clipping_scales_all_gradients_by_their_common_norm(clip, scale):
    c = section(name="sgd", momentum=0.0, weight_decay=0.0, clip=clip)
    transformation, g = optim.optimizer(c), gradients(0)
    norm = np.sqrt(sum((x**2).sum() for x in flat(g).values()))
    np.testing.assert_allclose(optax.tree.norm(g), norm, rtol=1e-6)
    directions, _ = transformation.update(g, transformation.init(PARAMS), PARAMS)
    for name, value in flat(g).items():
        np.testing.assert_allclose(
            flat(directions)[name], value * (scale or clip / norm), rtol=1e-5
        )


def test_clipping_comes_before_the_decay():
    """The other order would clip the decay as well."""
    c = section(name="sgd", momentum=0.0, weight_decay=100.0, clip=0.5)
    transformation = optim.optimizer(c)
    directions, _ = transformation.update(gradients(0), transformation.init(PARAMS), PARAMS)
    assert optax.tree.norm(directions) > 10
