"""What a workdir knows of its training, in this version and in the one before."""

import json
import pathlib
import shutil

import pytest

from configs import demo
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import stored
from facenet_jax.runtime.workdir import flat
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny

OLD = pathlib.Path(__file__).parents[1] / "golden" / "workdir_0_1_0"
"""The config.json of `make demo` as version 0.1.0 wrote it."""

ADDED = {"augment.erase_fill", "sampler", "model.backbone"}
"""Options of the old demo's sections that version 0.1.0 did not have."""


def claim(folder, config, resuming=False):
    if resuming:
        stored.refuse_other_run(folder, config)
    stored.claim(folder, config, tiny.SPEC)


@pytest.fixture
def old(tmp_path):
    return pathlib.Path(shutil.copytree(OLD, tmp_path / "old"))


def test_what_is_claimed_is_what_is_read(tmp_path, log_lines):
    config = tiny.config(losses__triplet__weight=((0.0, 0.0), (1.0, 2.0)))
    claim(tmp_path, config)
    read = stored.read_config(tmp_path)
    assert flat(read.to_dict()) == flat(config.to_dict())
    configs.check(read)
    assert log_lines == []  # nothing is lacking
    assert stored.read_spec(tmp_path) == tiny.SPEC
    claim(tmp_path, read, resuming=True)  # tuples that came back as lists are the same
    assert not list(tmp_path.glob("*.part"))


def test_a_config_that_was_read_takes_other_weights(tmp_path):
    """A table where a number was, and a number where a table was, as on the command line."""
    claim(tmp_path, tiny.config(losses__triplet__weight=((0.0, 0.0), (1.0, 2.0))))
    read = stored.read_config(tmp_path)
    read.losses.triplet.weight = 0.5
    read.losses.id.weight = ((0.0, 1.0), (1.0, 0.0))
    configs.check(read)


def test_a_trained_folder_takes_no_other_config(tmp_path):
    claim(tmp_path, tiny.config())
    other = tiny.config(model__width=32, optim__learning_rate=0.5)
    with pytest.raises(UserError) as raised:
        claim(tmp_path, other, resuming=True)
    text = str(raised.value)
    assert f"The workdir {tmp_path} belongs to a run with another config" in text
    assert "config.model.width was 16 and is 32" in text
    assert "config.optim.learning_rate was 0.02 and is 0.5" in text
    assert stored.read_config(tmp_path).model.width == 16
    other = tiny.get_config()
    with other.losses.unlocked():
        other.losses.more = configs.loss("facenet", "id")
        del other.losses.cdc
    with pytest.raises(UserError) as raised:
        claim(tmp_path, other, resuming=True)
    assert "config.losses.more.term was 'absent' and is 'id'" in str(raised.value)
    assert "config.losses.cdc.term was 'cdc' and is 'absent'" in str(raised.value)


def test_what_changes_no_parameter_may_change(tmp_path):
    claim(tmp_path, tiny.config())
    changes = {
        "evaluate__batch": 16,
        "evaluate__per_modality": True,
        "model__remat": "full",
        "model__unroll": 0,
        "train__evaluate_every": 3,
        "train__save_every_steps": 7,
        "train__shard_state": "always",
        "data__root": "/elsewhere",
        "data__resident": "never",
        "data__max_memory_fraction": 0.1,
        "data__workers": 2,
    }
    claim(tmp_path, tiny.config(**changes), resuming=True)
    assert stored.read_config(tmp_path).evaluate.batch == 16
    with pytest.raises(UserError, match="centre"):  # scores by another rule name another best
        claim(tmp_path, tiny.config(**changes, evaluate__centre=True), resuming=True)


def test_a_trained_model_may_be_used_otherwise_than_in_training(tmp_path, log_lines):
    """As on a device without the attention that it was trained with."""
    claim(tmp_path, tiny.config(model__attention="cudnn"))
    config = tiny.config(model__attention="xla", model__dtype="bfloat16")
    assert stored.results_folder(tmp_path, config) == tmp_path
    stored.log_used(tmp_path, config)
    assert log_lines == [
        "config.model.attention is xla; in training it was cudnn.",
        "config.model.dtype is bfloat16; in training it was float32.",
    ]
    assert not stored.same_scores(tmp_path, config)
    assert stored.same_scores(tmp_path, tiny.config(model__attention="cudnn", model__unroll=0))
    with pytest.raises(UserError, match="neck_feature"):  # other embeddings: a model of its own
        stored.results_folder(tmp_path, tiny.config(model__neck_feature="after"))
    with pytest.raises(UserError, match="Choose another --workdir"):
        claim(tmp_path, config, resuming=True)


def test_a_failed_first_attempt_may_be_mended(tmp_path):
    """Nothing was trained yet: a batch too large or a wrong file must not lock the folder."""
    claim(tmp_path, tiny.config())
    claim(tmp_path, tiny.config(model__width=32))
    assert stored.read_config(tmp_path).model.width == 32


@pytest.mark.parametrize("text", [None, "{", ""])
def test_a_config_that_cannot_be_read_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json cannot be read .* a workdir\?"):
        stored.read_config(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        '"text"',
        "{}",
        '{"seed": 5}',
        '{"model": {}}',
        '{"model": {"name": "facenet"}}',
        '{"model": {"name": "facenet"}, "losses": 3}',
        '{"model": {"name": "facenet"}, "losses": {"id": 1.0}}',
        '{"loss_options": {}}',
        '{"model": {"name": "facenet"}, "losses": {}, "data": 5}',
    ],
)
def test_a_file_of_something_else_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json is no config of this program.* a workdir\?"):
        stored.read_config(tmp_path)


def test_an_older_config_is_completed_with_one_line_that_names_what_was_added(tmp_path, log_lines):
    claim(tmp_path, tiny.get_config())
    values = json.loads((tmp_path / "config.json").read_text())
    del values["sampler"], values["model"]["fce"]["gate"], values["losses"]["id"]["on"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    read = stored.read_config(tmp_path)
    assert flat(read.to_dict()) == flat(tiny.get_config().to_dict())
    stored.log_added(tmp_path)
    (line,) = log_lines
    assert f"The config in {tmp_path} is older than this program; added at their defaults: " in line
    assert set(line.partition("defaults: ")[2].rstrip(".").split(", ")) == {
        *("sampler", "model.fce.gate", "losses.id.on"),
    }


def test_the_demo_of_version_0_1_0_is_the_demo_of_today(old, log_lines):
    """Under today's names; only options that are new were added, at their defaults."""
    ours, today = stored.read_config(old), demo.get_config()
    configs.check(ours)
    before, now = (flat(c.to_dict()) for c in (ours, today))
    assert before.keys() == now.keys()
    # The demo counts steps: its epochs, once 11 for the schedule's sake, mean nothing any more.
    differing = {name for name in now if before[name] != now[name]}
    # What is computed again follows the device's memory since 0.2.0, how many samples are embedded
    # at once the number of devices, and whether the state is divided their kind, unless an option
    # says it; and the demo matches after the neck and completes what is blinded (docs/flare.md).
    matching = {"model.neck_feature", "evaluate.complete"}
    chosen = {"model.remat", "model.unroll", "evaluate.batch", "train.shard_state"}
    assert differing == {"train.epochs"} | chosen | matching
    stored.log_added(old)
    (line,) = log_lines
    added = line.partition("defaults: ")[2].rstrip(".").split(", ")
    unchanged = flat(configs.default_config("facenet").to_dict())
    for name in added:
        inside = [path for path in now if path == name or path.startswith(f"{name}.")]
        assert inside, name
        assert all(before[path] == unchanged[path] for path in inside)
    assert set(added) >= ADDED


def test_the_data_of_a_run_of_version_0_1_0_are_known_from_its_config(old):
    spec = stored.read_spec(old)
    assert spec == DataSpec(tiny.MODALITIES, (32, 64), 176)
    (old / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"spec.json is missing; it says what the model was trai"):
        stored.read_spec(old)


def test_an_old_run_may_go_on_and_is_then_a_run_of_today(old):
    config = stored.read_config(old)
    stored.refuse_other_run(old, config)
    stored.claim(old, config, stored.read_spec(old))
    assert (old / "spec.json").exists()
    assert flat(stored.read_config(old).to_dict()) == flat(config.to_dict())
    config.seed = 1
    with pytest.raises(UserError, match=r"config.seed was 0 and is 1"):
        stored.refuse_other_run(old, config)


@pytest.mark.parametrize(
    ("old_value", "name", "value"),
    [
        ({"augment": {"draw": "independent"}}, "augment.per_modality", True),
        ({"optim": {"bias_rate": 2}}, "optim.bias_lr_factor", 2.0),
        ({"evaluate": {"floors": False}}, "evaluate.sanity_baselines", False),
        ({"evaluate": {"breakdown": False}}, "evaluate.per_modality", False),
        ({"data": {"resident_share": 0.25}}, "data.max_memory_fraction", 0.25),
        ({"loss_options": {"kl_reduction": "batch"}}, "losses.mc.reduction", "batch"),
        ({"loss_options": {"kl_reduction": "batch"}}, "losses.mask_kl.reduction", "batch"),
        ({"loss_options": {"label_smoothing": 0.2}}, "losses.id.label_smoothing", 0.2),
        ({"loss_options": {"margin": 0.3}}, "losses.triplet.margin", 0.3),
        ({"losses": {"mmm": 0.5}}, "losses.mmm.weight", 0.5),
    ],
)
def test_each_option_of_version_0_1_0_keeps_its_value_under_its_new_name(
    old, old_value, name, value
):
    values = json.loads((old / "config.json").read_text())
    for section, changes in old_value.items():
        values[section] |= changes
    (old / "config.json").write_text(json.dumps(values))
    assert flat(stored.read_config(old).to_dict())[name] == value


def test_an_old_baseline_has_the_model_of_today(old):
    """In version 0.1.0 the baseline was FACENet with everything switched off."""
    values = json.loads((old / "config.json").read_text())
    values["model"] |= {"flare_heads": False}
    values["losses"]["mask_kl"] = 0.0
    for part in ("mfmp", "fce"):
        values["model"][part]["enabled"] = False
    (old / "config.json").write_text(json.dumps(values))
    config = stored.read_config(old)
    configs.check(config)
    assert config.model.name == "facenet"  # whose parameters then are the baseline's


@pytest.mark.parametrize("text", ["{}", '{"modalities": ["visible"]}', '{"modalities": 3}', "[]"])
def test_a_spec_that_lacks_something_is_named(tmp_path, text):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(UserError, match=r"spec.json lacks .* a workdir\?"):
        stored.read_spec(tmp_path)


def test_results_on_other_data_have_a_folder_of_their_own(tmp_path):
    claim(tmp_path, tiny.config(data__root="/data/set"))

    def changed(**changes):
        c = tiny.config(data__root="/data/set")
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return stored.results_folder(tmp_path, c).relative_to(tmp_path).as_posix()

    assert changed() == "."
    assert changed(evaluate__batch=16, data__prepared="/elsewhere") == "."
    assert changed(data__root="/mnt/other set/") == "other_data/wmveid863-other-set"
    other = changed(data__name="folder/camera", data__root="gs://bucket/mine.csv")
    assert other == "other_data/folder-camera-mine.csv"
    assert changed(data__flare_threshold=0.1).startswith("other_data/")
    (tmp_path / other).mkdir(parents=True)
    mine = tiny.config(data__name="folder/camera", data__root="gs://bucket/mine.csv")
    claim(tmp_path / other, mine)
    assert changed(data__name="folder/camera", data__root="gs://bucket/mine.csv") == other
    with pytest.raises(UserError, match=r"data.root was .*bucket.* and is .*elsewhere.*Move this"):
        changed(data__name="folder/camera", data__root="/elsewhere/mine.csv")
    with pytest.raises(UserError, match=r"config.model.width was 16 and is 32. Choose the --work"):
        changed(model__width=32)
    with pytest.raises(UserError, match=r"config.data.image_size was"):
        changed(data__image_size=(16, 8))


@pytest.mark.parametrize(("before", "now"), [(False, "never"), (True, "always")])
def test_a_state_that_was_divided_stays_so(tmp_path, before, now):
    """Version 0.1.0 and those until November 2026 had a switch."""
    claim(tmp_path, tiny.config())
    values = json.loads((tmp_path / "config.json").read_text())
    values["train"]["shard_state"] = before
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert stored.read_config(tmp_path).train.shard_state == now
