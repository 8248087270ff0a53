"""Every option has its legal values; one check names all that is wrong, before anything loads."""

import math

import pytest
from ml_collections import ConfigDict

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import run as runs
from facenet_jax.options import Option, above, between, numbers, options_of, schedule, whole
from tests.support import tiny_run as tiny

MODELS = ("facenet", "three_stream")
NAMES = {
    model: [name for name, _, _ in configs.describe(configs.default_config(model))]
    for model in MODELS
}
OTHERS = [name for name in NAMES["three_stream"] if name not in NAMES["facenet"]]


def refusal(config):
    """The sentence with which a config is refused."""
    with pytest.raises(UserError) as raised:
        configs.check(config)
    text = str(raised.value)
    assert "\n" not in text
    return text


def put(config, name, value):
    """Set an option whatever its type, as a hand-edited config.json may."""
    *path, last = name.split(".")
    section = config
    for part in path:
        section = section[part]
    with section.unlocked(), section.ignore_type():
        section[last] = value
    return config


ILLEGAL = (-1, math.nan, math.inf, 1.5, 10**9, "no such word", "", None, (), (1.0, "x"))
"""Values of which every option refuses some: too small, not finite, a fraction, too large, ..."""


@pytest.mark.parametrize("name", NAMES["facenet"] + OTHERS)
def test_every_option_refuses_what_it_cannot_be_and_is_named(name):
    model = "facenet" if name in NAMES["facenet"] else "three_stream"
    config = configs.default_config(model)
    (option,) = (option for path, _, option in configs.describe(config) if path == name)
    assert option.legal.accepts(option.default)
    refused = [value for value in ILLEGAL if not option.legal.accepts(value)]
    assert refused
    if name in ("model.name", "model.backbone") or name.endswith(".term"):
        refused = [None]  # other texts are looked for as modules and functions
    for value in refused:
        changed = put(configs.default_config(model), name, value)
        text = refusal(changed)
        assert f"config.{name}" in text, text


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, _, option in configs.describe(configs.default_config("facenet"))
        if isinstance(option.default, int | float)
        and not isinstance(option.default, bool)
        and not name.endswith(".weight")
    ],
)
def test_every_number_has_a_range(name):
    """A negative one is refused, but as the bias of a mask, or where it stands for a choice."""
    options = {path: option for path, _, option in configs.describe(tiny.config())}
    legal = options[name].legal
    assert not legal.accepts(math.nan)
    assert not legal.accepts(math.inf)
    assert not legal.accepts("1")
    assert legal.accepts(-1) == (name in ("model.fce.mask_bias", "model.unroll"))


@pytest.mark.parametrize("model", MODELS)
def test_the_defaults_are_legal_and_describe_names_all_of_them(model):
    config = configs.default_config(model)
    configs.check(config)
    rows = configs.describe(config)
    assert len({name for name, _, _ in rows}) == len(rows)
    for name, value, option in rows:
        assert option.legal.accepts(value), name
        words = name.rpartition(".")[2]
        of_a_loss = name.startswith("losses.")  # the function's own text explains those
        assert option.about or of_a_loss, f"{words} has no explanation"


@pytest.mark.parametrize(
    ("legal", "inside", "outside"),
    [
        (between(0, 1), (0, 0.5, 1), (-0.1, 1.1, True, "1", math.nan)),
        (above(0, 1), (1e-9, 1), (0, 1.1)),
        (above(0), (1e-9, 1e9), (0, math.inf)),
        (whole(1), (1, 10**12), (0, 1.0, True)),
        (whole(0, 3), (0, 3), (4, -1)),
        (numbers(2, whole(1)), ((1, 2), [3, 4]), ((1,), (1, 2, 3), (0, 1), 1)),
        (
            schedule(),
            (0.0, 3, ((0.0, 1.0),), ((0, 1), (0.5, 0), (1, 2)), [[0.0, 1.0], [1.0, 0.0]]),
            ((), "high", math.nan, (0.0, 1.0), ((0.0, 1.0), (0.0, 2.0)), ((0, 1), (1.1, 0))),
        ),
        (
            schedule(),
            (((0.2, -1.0),),),
            (((0.5, 1.0), (0.2, 1.0)), ((-0.1, 1.0),), ((0, math.inf),)),
        ),
    ],
)
def test_legal_values_end_where_they_say(legal, inside, outside):
    assert all(map(legal.accepts, inside))
    assert not any(map(legal.accepts, outside))


def test_all_that_is_wrong_is_said_at_once():
    config = tiny.config(
        data__flare_rule="none", evaluate__batch=-1, losses__id__weight=((1, 2, 3),)
    )
    config = put(config, "model.fce.mask", "grey")
    with config.unlocked():
        config.optim.friction = True
        del config.train.epochs
    text = refusal(config)
    for clause in (
        "config.data.flare_rule is 'none'; it must be one of 'per_modality', 'either', 'both'",
        "config.evaluate.batch is -1; it must be a whole number of 0 or more",
        "config.losses.id.weight is ((1, 2, 3),); it must be a number or ((progress, value), ...)",
        "config.model.fce.mask is 'grey'; it must be one of 'soft', 'hard', 'straight_through'",
        "config.optim has no option 'friction'",
        "config.train.epochs is missing",
    ):
        assert clause in text, clause


@pytest.mark.parametrize("section", ["data", "train", "model", "losses", "model.fce", "losses.mc"])
def test_a_section_that_is_missing_or_is_none_is_named(section):
    *path, last = section.split(".")
    for value in (None, 5):
        config = tiny.get_config()
        parent = config[path[0]] if path else config
        with parent.unlocked(), parent.ignore_type():
            if value is None:
                del parent[last]
            else:
                parent[last] = value
        if section == "losses.mc" and value is None:
            configs.check(config)  # a loss that is not there is not used
        else:
            assert last in refusal(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"losses__mask_kl__weight": 1.0, "model__flare_heads": False},
            "kl.weight is 1.0 but",
        ),
        (
            {
                "losses__mask_kl__weight": 0.0,
                "losses__flare__weight": 0.5,
                "model__flare_heads": False,
            },
            "losses.flare.weight is 0.5 but",
        ),
        ({f"losses__{x}__weight": 0.0 for x in tiny.get_config().losses}, "nothing to learn"),
        (
            {"train__samples_per_identity": 1},
            "samples_per_identity is 1, but config.losses.triplet",
        ),
        ({"train__identities_per_batch": 1}, "identities_per_batch is 1, but config.losses.tri"),
        ({"model__stride": 9}, "model.stride 9 is above config.model.patch 8"),
        ({"losses__id__weight": "high"}, "losses.id.weight is 'high'"),
        ({"losses__id__weight": ((0.0, 1.0), (0.0, 2.0))}, "rising progress"),
        ({"losses__id__weight": (0.0, 1.0)}, "losses.id.weight is"),
        ({"losses__id__weight": float("nan")}, "losses.id.weight is nan"),
        ({"losses__id__term": "idd"}, "'idd'; it must be one of alignment, cdc, center, "),
        ({"losses__id__term": "tests.none"}, r"tests\.none"),
        (
            {"losses__mc__reduction": "sum"},
            "mc.reduction is 'sum'; it must be one of 'sample",
        ),
        ({"model__name": "resnet9000"}, "resnet9000"),
        ({"model__name": "three_stream"}, "has no option 'fce', 'flare_heads', 'mfmp'"),
        ({"model__heads": 3}, "heads"),
        ({"evaluate__complete": (2.5, 3.0)}, r"evaluate.complete is \(2.5, 3.0\)"),
        ({"evaluate__expand": (0, 3.0)}, r"evaluate.expand is \(0, 3.0\)"),
    ],
)
def test_what_does_not_fit_together_is_said(changes, words):
    with pytest.raises(UserError, match=words):
        configs.check(tiny.config(**changes))


def test_a_config_becomes_no_other_model_by_its_name_alone():
    """--config.model.name=three_stream on a recipe of FACENet: all that it lacks is named."""
    text = refusal(tiny.config(model__name="three_stream"))
    assert "config.model.name is 'three_stream', which has no option 'fce', 'flare_heads'" in text
    assert "common.get_config('three_stream')" in text


def test_a_section_of_a_loss_has_the_parameters_of_its_function():
    section = configs.loss("facenet", "triplet", margin=0.3)
    assert section.to_dict() == {
        "term": "triplet",
        "weight": 1.0,
        "on": (),
        "margin": 0.3,
        "together": False,
        "normalise": False,
    }
    section.weight = ((0.0, 0.0), (1.0, 2.0))  # a table where a number was
    config = tiny.get_config()
    with config.losses.unlocked():
        config.losses.far = section
    configs.check(config)
    section.margin = -0.1
    assert "config.losses.far.margin is -0.1; it must be 0 or more" in refusal(config)


def cost(outputs, batch, *, scale: float = 1.0, how: str = "fast", many: int = 3, on: bool = True):
    """A term of the user's own."""


def test_options_without_a_legal_range_take_values_of_the_defaults_type():
    options = options_of(cost)
    assert set(options) == {"scale", "how", "many", "on"}
    assert all(isinstance(option, Option) for option in options.values())
    good = {"scale": -2.5, "how": "slow", "many": -4, "on": False}
    bad = {"scale": "1", "how": 1, "many": 1.5, "on": 1}
    for name, option in options.items():
        assert option.legal.accepts(good[name])
        assert not option.legal.accepts(bad[name])


def test_the_check_comes_before_any_data_is_loaded():
    def load(data: ConfigDict, training: bool):
        raise AssertionError("the data set was loaded")

    with pytest.raises(UserError, match=r"config.evaluate.batch is -1"):
        runs.open_run(tiny.config(evaluate__batch=-1), load=load)
    with pytest.raises(UserError, match="= 12 does not divide by the 8 devices"):
        runs.open_run(tiny.config(train__samples_per_identity=3), load=load)
    with pytest.raises(AssertionError, match="was loaded"):
        runs.open_run(tiny.config(), load=load)
