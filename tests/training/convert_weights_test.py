import importlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from facenet_jax import evaluate
from facenet_jax.runtime import workdir
from facenet_jax.weights import facenet_release as interop
from facenet_jax.weights.merge import read_checkpoint
from facenet_jax.weights.torch_writer import write_state_dict
from tests.support import small_datasets as trees

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "scripts")]
convert_weights = importlib.import_module("convert_weights")

TINY = HERE / "golden" / "tiny" / "facenet_official_small.pth"
CLASSIFIERS = ("classifier.weight", "classifierN.weight", "classifierT.weight")
RECIPE = HERE.parent / "configs" / "wmveid863_official.py"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A workdir with the tiny checkpoint, for images of 64 x 32."""
    folder = tmp_path_factory.mktemp("convert") / "run"
    config = convert_weights.load_recipe(RECIPE)
    config.data.image_size = (64, 32)
    said = convert_weights.import_file(TINY, folder, config, heads=2)
    assert "width 16 and depth 2 for 6 identities" in said
    return folder


def test_import_then_export_keeps_every_used_bit(imported, tmp_path):
    assert convert_weights.main([str(imported), str(tmp_path / "out.pth")]) == 0
    before, after = read_checkpoint(TINY), read_checkpoint(tmp_path / "out.pth")
    assert set(after) == set(before)
    for name in ["threshold", *(row[0] for row in interop.used_rows(2))]:
        assert after[name].tobytes() == before[name].tobytes(), name


def test_the_workdirs_config_is_the_checkpoints(imported):
    model = workdir.read_config(imported).model
    assert (model.width, model.depth, model.heads, model.identities) == (16, 2, 2, 6)
    assert (model.mfmp.heads, model.mfmp.head_width, model.pretrained) == (2, 16, "none")
    assert model.dtype == "float32"


def test_an_import_is_evaluated_and_embedded(tmp_path):
    state = read_checkpoint(TINY)
    of_four = {k: v[:4] if k in CLASSIFIERS else v for k, v in state.items()}
    write_state_dict(tmp_path / "four.pth", of_four)
    config = convert_weights.load_recipe(RECIPE)
    config.data.image_size = (64, 32)
    config.data.root = str(trees.wmveid863(tmp_path / "tree"))
    config.data.prepared = str(tmp_path / "prepared")
    config.train.identities_per_batch = 4
    convert_weights.import_file(tmp_path / "four.pth", tmp_path / "run", config, heads=2)
    config = workdir.read_config(tmp_path / "run")
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
    config = convert_weights.load_recipe(RECIPE)
    config.model.mfmp[option] = value
    with pytest.raises(convert_weights.UserError, match=f"config.model.mfmp.{option}"):
        convert_weights.check_official(config, "a run")


def test_the_paper_preset_is_refused_with_every_reason():
    config = convert_weights.load_recipe(RECIPE.parent / "wmveid863.py")
    with pytest.raises(convert_weights.UserError) as error:
        convert_weights.check_official(config, "runs/paper")
    for part in ("runs/paper", "fce.mask is 'soft' instead of 'hard'", "fce.gate", "fce.keep"):
        assert part in str(error.value)


def test_mistakes_are_sentences(imported, tmp_path, capsys):
    def fails(*arguments):
        assert convert_weights.main([str(argument) for argument in arguments])
        return capsys.readouterr().err

    assert "recipe None" in fails(TINY, tmp_path / "a")
    assert "--heads" in fails(TINY, tmp_path / "a", "--config", RECIPE)
    assert "8 patch positions" in fails(TINY, tmp_path / "a", "--config", RECIPE, "--heads", 2)
    assert "does not exist" in fails(tmp_path / "no.pth", tmp_path / "a", "--config", RECIPE)
    assert "config.json" in fails(tmp_path, tmp_path / "a.pth")
    assert "already exists" in fails(imported, TINY)
    assert not (tmp_path / "a").exists()


def test_an_import_never_touches_a_folder_that_has_something(tmp_path):
    (tmp_path / "mine").write_text("kept")
    config = convert_weights.load_recipe(RECIPE)
    config.data.image_size = (64, 32)
    with pytest.raises(convert_weights.UserError, match="already exists"):
        convert_weights.import_file(TINY, tmp_path, config, heads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_it_runs_from_anywhere(tmp_path):
    script = HERE.parent / "scripts" / "convert_weights.py"
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
