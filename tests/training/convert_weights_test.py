"""The release's checkpoints become workdirs, and workdirs the release's checkpoints."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import evaluate, stored
from facenet_jax.commands import convert as convert_weights
from facenet_jax.runtime import script
from facenet_jax.weights import facenet_release as interop
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.torch_writer import write_state_dict
from tests.support import small_datasets as trees

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "golden" / "tiny" / "facenet_official_small.pth"
CLASSIFIERS = ("classifier.weight", "classifierN.weight", "classifierT.weight")
RECIPE = ROOT / "configs" / "wmveid863_official.py"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A workdir with the tiny checkpoint, for images of 64 x 32."""
    folder = tmp_path_factory.mktemp("convert") / "run"
    config = script.load_config(RECIPE)
    config.data.image_size = (64, 32)
    said = convert_weights.import_file(TINY, folder, config, heads=2)
    assert "width 16 and depth 2 for 6 identities" in said
    return folder


def test_import_then_export_keeps_every_used_bit(imported, tmp_path):
    convert_weights.main([str(imported), str(tmp_path / "out.pth")])
    before, after = read_checkpoint(TINY), read_checkpoint(tmp_path / "out.pth")
    assert set(after) == set(before)
    for name in ["threshold", *(row[0] for row in interop.used_rows(2))]:
        assert after[name].tobytes() == before[name].tobytes(), name


def test_the_workdir_says_what_the_checkpoint_is(imported):
    model, spec = stored.read_config(imported).model, stored.read_spec(imported)
    assert (model.width, model.depth, model.heads) == (16, 2, 2)
    assert (model.mfmp.heads, model.mfmp.head_width, model.pretrained) == (2, 16, "none")
    assert model.dtype == "float32"
    assert (spec.identities, spec.image_size) == (6, (64, 32))
    assert spec.modalities == ("visible", "near_infrared", "thermal")


def test_an_import_is_evaluated_and_embedded(tmp_path):
    state = read_checkpoint(TINY)
    of_four = {k: v[:4] if k in CLASSIFIERS else v for k, v in state.items()}
    write_state_dict(tmp_path / "four.pth", of_four)
    config = script.load_config(RECIPE)
    config.data.image_size = (64, 32)
    config.data.root = str(trees.wmveid863(tmp_path / "tree"))
    config.data.prepared = str(tmp_path / "prepared")
    config.train.identities_per_batch = 4
    convert_weights.import_file(tmp_path / "four.pth", tmp_path / "run", config, heads=2)
    config = stored.read_config(tmp_path / "run")
    evaluate.export_only(config, tmp_path / "run")
    embedding = np.load(tmp_path / "run" / "embeddings" / "query.npz")["embedding"]
    assert embedding.shape[1] == 48
    assert np.isfinite(embedding).all()
    scores = evaluate.evaluate(config, tmp_path / "run")
    assert scores["last"]["queries"] == len(embedding)


@pytest.mark.parametrize(
    ("option", "value"),
    [("split", "heads"), ("norms", 1), ("norm_epsilon", 1e-6), ("head_width", 8)],
)
def test_another_preset_is_refused_with_the_reason(option, value):
    config = script.load_config(RECIPE)
    config.model.mfmp[option] = value
    with pytest.raises(UserError, match=f"config.model.mfmp.{option}"):
        convert_weights.check_official(config, "a run")


def test_the_paper_preset_is_refused_with_every_reason():
    config = script.load_config(RECIPE.parent / "wmveid863.py")
    with pytest.raises(UserError) as error:
        convert_weights.check_official(config, "runs/paper")
    for part in ("runs/paper", "fce.mask is 'soft' instead of 'hard'", "fce.gate", "fce.keep"):
        assert part in str(error.value)


def test_another_model_is_refused(tmp_path):
    config = script.load_config(RECIPE.parent / "wmveid863_baseline.py")
    with pytest.raises(UserError, match=r"model\.name is 'three_stream' instead of 'facenet'"):
        convert_weights.import_file(TINY, tmp_path / "run", config, heads=2)


def test_mistakes_are_sentences(imported, tmp_path):
    def fails(*arguments):
        with pytest.raises(UserError) as error:
            convert_weights.main([str(argument) for argument in arguments])
        return str(error.value)

    recipe = ("--config", RECIPE)
    assert "needs a recipe" in fails(TINY, tmp_path / "a")
    assert "--heads" in fails(TINY, tmp_path / "a", *recipe)
    assert "8 patch positions" in fails(TINY, tmp_path / "a", *recipe, "--heads", 2)
    assert "does not exist" in fails(tmp_path / "no.pth", tmp_path / "a", *recipe)
    assert "does not exist" in fails(TINY, tmp_path / "a", "--config", "no.py")
    assert "config.json" in fails(tmp_path, tmp_path / "a.pth")
    assert "already exists" in fails(imported, TINY)
    assert not (tmp_path / "a").exists()


def test_an_import_never_touches_a_folder_that_has_something(tmp_path):
    (tmp_path / "mine").write_text("kept")
    config = script.load_config(RECIPE)
    config.data.image_size = (64, 32)
    with pytest.raises(UserError, match="already exists"):
        convert_weights.import_file(TINY, tmp_path, config, heads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_it_runs_from_anywhere(tmp_path):
    script = ROOT / "scripts" / "convert_weights.py"
    run = subprocess.run(
        [sys.executable, script, TINY, "out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "--config" in run.stderr


def test_torch_loads_the_exported_workdir(imported, tmp_path):
    torch = pytest.importorskip("torch")
    convert_weights.main([str(imported), str(tmp_path / "out.pth")])
    theirs = torch.load(TINY, weights_only=True)
    ours = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(ours) == set(theirs)
    np.testing.assert_array_equal(ours["b1T.1.weight"], theirs["b1T.1.weight"])
