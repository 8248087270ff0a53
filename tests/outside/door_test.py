"""A stranger's research goes through main.py, and no file of facenet_jax or data_tfds is touched.

lab/ is such research: a two-modality model with its own loss, weights, collection, parameter group
and label; a cross-modal protocol with its own data set and sampler; an unstacked backbone.
"""

import ast
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from lab import protocols
from lab.recipes import resnet, vi
from lab.sets import aligned
from lab.sets import vi as vi_set

import facenet_jax
from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import evaluate, stored, train
from facenet_jax import run as runs
from facenet_jax.retrieval import Embeddings
from facenet_jax.runtime.checkpoint import Checkpoints
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny

HERE = pathlib.Path(__file__).resolve().parent
COMMAND = [
    *(sys.executable, str(tiny.ROOT / "main.py")),
    f"--compile_cache={tiny.ROOT / '.cache' / 'jax-tests'}",
]


def start(*options: str) -> subprocess.Popen:
    """main.py from the stranger's folder, which is how `lab` is found."""
    return subprocess.Popen(
        [*COMMAND, *options],
        env=tiny.environment(),
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    """What a process said, after it ended well."""
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


def saved(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint of a workdir, by path."""
    checkpoints = Checkpoints(folder / "checkpoints")
    tree = checkpoints.manager.restore(checkpoints.latest(), args=ocp.args.StandardRestore())
    checkpoints.close()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal_bits(one: pathlib.Path, other: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of both newest checkpoints, which are the same."""
    first, second = saved(one), saved(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)
    return first


def read(path: pathlib.Path):
    return json.loads(path.read_text())


def killed(process: subprocess.Popen, folder: pathlib.Path, lines: int) -> None:
    """Kill a run once metrics.jsonl has so many lines and a checkpoint is complete."""
    path, deadline = folder / "metrics.jsonl", time.time() + 120
    while (
        not path.exists()
        or path.read_bytes().count(b"\n") < lines
        or not any(x.name.isdigit() for x in (folder / "checkpoints").glob("*"))
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The two-stream run to its end without a break; one beside it was killed and goes on."""
    folder = tmp_path_factory.mktemp("vi")
    first, second = (
        start("--config=lab/recipes/vi.py", f"--workdir={folder / name}")
        for name in ("straight", "broken")
    )
    killed(second, folder / "broken", lines=9)
    finished(first)
    said = finished(start("--config=lab/recipes/vi.py", f"--workdir={folder / 'broken'}"))
    assert re.search(r"from step [1-9]", said)
    return folder / "straight"


def sides(folder: pathlib.Path) -> tuple[Embeddings, Embeddings]:
    return tuple(Embeddings.read(folder / "embeddings" / f"{x}.npz") for x in ("query", "gallery"))


def test_killed_run_goes_on_to_the_same_bits(straight):
    arrays = assert_equal_bits(straight, straight.parent / "broken")
    assert any("collections" in name and "prototypes" in name for name in arrays)
    assert any("optimizer" in name for name in arrays)
    prototypes = next(x for name, x in arrays.items() if "prototypes" in name)
    assert prototypes.shape == (8, 12)
    assert (np.abs(prototypes).sum(axis=1) > 0).all()
    assert read(straight / "result.json") == read(straight.parent / "broken" / "result.json")


def test_the_loss_of_the_model_follows_the_progress(straight):
    lines = [line for line in tiny.metrics(straight) if "train/loss_prototype" in line]
    values = [line["train/loss_prototype"] for line in lines]
    assert values[0] == 0.0  # it is trusted by the progress, which starts at 0
    assert min(values[1:]) > 0.0
    assert all(
        line["train/loss"] == pytest.approx(line["train/loss_id"] + line["train/loss_prototype"])
        for line in lines
    )


def test_score_is_that_of_the_protocol_by_hand(straight):
    query, gallery = sides(straight)
    assert (len(query), len(gallery)) == (12, 16)
    assert list(query.parts.items()) == [("appearance", (0, 12)), ("view", (12, 15))]
    assert {"view", "camera", "weather"} <= query.labels.keys()
    assert set(query.labels["camera"]) == {3, 6}
    assert set(gallery.labels["camera"]) == {1, 2}
    a, b = (
        x.embedding / np.linalg.norm(x.embedding, axis=1, keepdims=True) for x in (query, gallery)
    )
    precision, first = [], []
    for trial in protocols.single_shot(gallery.by_name):
        for row, identity, camera in zip(a, query.identity, query.labels["camera"], strict=True):
            kept = trial[~((camera == 3) & (gallery.labels["camera"][trial] == 2))]
            ranked = gallery.identity[kept[np.argsort(np.linalg.norm(b[kept] - row, axis=1))]]
            hits = np.flatnonzero(ranked == identity) + 1
            precision.append(np.mean(np.arange(1, len(hits) + 1) / hits))
            first.append(list(dict.fromkeys(ranked.tolist())).index(identity) == 0)
    scores = read(straight / "result.json")["last"]
    assert scores["trials"] == 10
    assert scores["gallery"] == 8
    assert scores["mAP"] == pytest.approx(np.mean(precision), abs=1e-6)
    assert scores["cmc"]["1"] == pytest.approx(np.mean(first), abs=1e-6)
    assert scores["deviation"]["mAP"] > 0


def test_files_score_the_same_by_the_import_path_of_the_protocol(straight, tmp_path):
    script = tiny.ROOT / "scripts" / "evaluate_embeddings.py"
    files = [f"--{x}={straight / 'embeddings' / x}.npz" for x in ("query", "gallery")]
    target = tmp_path / "scores.json"
    done = subprocess.run(
        [sys.executable, script, *files, "--protocol=lab.protocols.ALL_SEARCH", "--json", target],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    scores, expected = read(target), read(straight / "result.json")["last"]
    assert {name: scores[name] for name in expected if name in scores} == {
        name: expected[name] for name in expected if name in scores
    }
    assert {"mAP", "mINP", "cmc", "deviation"} <= scores.keys()


def test_embeds_images_with_a_label_of_the_model(straight):
    network = facenet_jax.load(straight)
    assert network.parts(["visible"]) == {"appearance": (0, 12), "view": (12, 15)}
    data = vi.get_config().data
    split, (_, gallery) = vi_set.load(data).splits["test"], sides(straight)
    images, rows = split.images["visible"], split.rows[0][split.rows[0] >= 0]
    found = network.embed(batch=8, labels={"view": gallery.labels["view"]}, visible=images[rows])
    np.testing.assert_allclose(found, gallery.embedding, rtol=1e-4, atol=1e-5)
    unknown = network.embed(batch=8, visible=images[rows])
    np.testing.assert_array_equal(unknown[:, 12:], 0.0)
    np.testing.assert_allclose(unknown[:, :12], found[:, :12], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="got the label weathr; the model was trained with "):
        network.embed(labels={"weathr": np.zeros(3)}, visible=images[:3])
    with pytest.raises(UserError, match=r"label view of shape \[2\] for 3 samples"):
        network.embed(labels={"view": np.zeros(2)}, visible=images[:3])


def test_other_data_with_the_stored_model(straight):
    said = finished(start(f"--workdir={straight}", "--mode=evaluate", "--config.data.root=second"))
    folder = straight / "other_data" / "lab.sets.vi.load-second"
    assert str(folder) in said
    assert read(folder / "result.json")["last"]["queries"] == 15
    (folder / "embeddings" / "query.npz").unlink()
    finished(start(f"--workdir={straight}", "--mode=embed", "--config.data.root=second"))
    query, gallery = sides(folder)
    assert (len(query), len(gallery)) == (15, 20)
    assert set(query.identity) == set(range(200, 205))


def test_files_weights_streams_and_held_out_identities(tmp_path, caplog):
    """The same kind of data from files by a builder, read batch by batch, from given weights."""
    vi_set.write(tmp_path / "tree")
    c = vi.get_config()
    c.data.name, c.data.incomplete, c.data.resident = "lab.sets.vi", "keep", "never"
    c.data.root, c.data.prepared = str(tmp_path / "tree"), str(tmp_path / "prepared")
    c.data.validation_identities, c.train.steps, c.train.steps_per_dispatch = 2, 4, 2
    c.train.evaluate_every = 0
    c.evaluate.sanity_baselines = c.evaluate.per_modality = True
    c.model.pretrained = str(tmp_path / "weights.npz")
    rng = np.random.default_rng(0)
    stems = {f"{name}": np.float32(rng.normal(size=(24, 12))) for name in ("rgb", "ir")}
    running = {"running.mean": np.zeros(12, "f4"), "running.var": np.full(12, 2.0, "f4")}
    np.savez(tmp_path / "weights.npz", **stems, **running, unused=np.zeros(1, "f4"))

    run = runs.open_run(c)
    assert run.model.spec.labels["view"] == 4
    assert run.model.spec.identities == 6
    state = runs.start_state(run)
    np.testing.assert_array_equal(state.params["visible"]["kernel"], stems["rgb"])
    np.testing.assert_array_equal(state.collections["batch_stats"]["neck"]["var"], 2.0)

    result = train.train(c, tmp_path / "run")
    assert result["protocol"] == "vi/all_search"
    assert {"last", "best_on_validation", "untrained", "raw_pixels"} <= result.keys()
    query, gallery = sides(tmp_path / "run")
    assert (len(query), len(gallery)) == (12, 16)
    assert set(query.labels["camera"]) == {3, 6}


def test_parameters_of_a_group_have_their_own_rate():
    c = vi.get_config()
    c.optim.schedule, c.optim.warmup = "cosine", 0.0
    run = runs.open_run(c)
    assert list(run.groups) == ["stems", "biases"]
    np.testing.assert_allclose(run.rates[:-1, 1] / run.rates[:-1, 0], 0.1, rtol=1e-5)
    images = runs.training_images(run)
    assert not images.missing  # each sample has one image, and each column of the plan has two
    before = jax.tree.map(np.asarray, runs.untrained_state(run)())
    after, _ = runs.compile_step(run, images)(runs.untrained_state(run)(), images, 1)
    directions = saved_trace(after.optimizer)
    for part, factor in (("visible", 0.1), ("infrared", 0.1), ("shared", 1.0)):
        moved = before.params[part]["kernel"] - np.asarray(after.params[part]["kernel"])
        rate = factor * run.rates[0, 0]
        direction = np.asarray(directions[part]["kernel"])
        np.testing.assert_allclose(moved, rate * direction, rtol=1e-3, atol=1e-7)


def saved_trace(optimizer):
    """The first directions of SGD with momentum."""
    return next(part.trace for part in optimizer if hasattr(part, "trace"))


def resnet_weights(folder):
    """(a file of weights for the unstacked backbone, its arrays, the config that starts from it)"""
    c = resnet.get_config()
    run = runs.open_run(c)
    weights = folder / "weights.npz"
    shapes = jax.eval_shape(run.model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    arrays = {}
    for collection, tree in shapes.items():
        for part, half in (("trunk_visible", "tokens"), ("last_visible", "head")):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree[part]):
                name = "/".join([collection, half, *(key.key for key in path)])
                arrays[name] = np.float32(rng.uniform(0.5, 1.0, leaf.shape) / 5)
    np.savez(weights, **arrays)
    c.model.pretrained = str(weights)
    return weights, arrays, c


def test_unstacked_backbone_starts_from_weights_of_its_own(tmp_path):
    _, arrays, c = resnet_weights(tmp_path)
    state = runs.start_state(runs.open_run(c))
    for modality in aligned.MODALITIES:
        statistics = state.collections["batch_stats"][f"trunk_{modality}"]["norm"]["var"]
        np.testing.assert_array_equal(statistics, arrays["batch_stats/tokens/norm/var"])


@pytest.mark.slow  # three runs of main.py
def test_unstacked_backbone_under_the_baseline(tmp_path):
    """Trains, is evaluated, is killed and goes on, from weights of its own."""
    weights, _, _ = resnet_weights(tmp_path)
    recipe = ("--config=lab/recipes/resnet.py", f"--config.model.pretrained={weights}")
    recipe += ("--config.train.steps=24",)
    first, second = (
        start(*recipe, f"--workdir={tmp_path / name}") for name in ("straight", "broken")
    )
    killed(second, tmp_path / "broken", lines=5)
    finished(first)
    assert re.search(
        r"from step [1-9]", finished(start(*recipe, f"--workdir={tmp_path / 'broken'}"))
    )
    assert read(tmp_path / "straight" / "result.json") == read(tmp_path / "broken" / "result.json")
    arrays = assert_equal_bits(tmp_path / "straight", tmp_path / "broken")
    assert any("trunk_thermal" in name and "['var']" in name for name in arrays)

    # The stored model on other data: scored, and embedded alone.
    stored_config = stored.read_config(tmp_path / "straight")
    stored_config.data.root = "second"
    result = evaluate.evaluate(stored_config, tmp_path / "straight")
    folder = tmp_path / "straight" / "other_data" / "lab.sets.aligned.load-second"
    assert result == read(folder / "result.json")
    first = sides(folder)[0].embedding
    evaluate.export_only(stored_config, tmp_path / "straight")
    np.testing.assert_array_equal(sides(folder)[0].embedding, first)

    # Two modalities alone, which is the columns of the whole.
    network = facenet_jax.load(tmp_path / "straight")
    split = aligned.load(stored_config.data).splits["gallery"]
    images = {m: split.images[m][split.rows[0]] for m in ("visible", "thermal")}
    found = network.embed(batch=8, **images)
    columns = sides(folder)[1].select(["visible", "thermal"]).embedding
    np.testing.assert_allclose(found, columns, rtol=1e-4, atol=1e-5)


def broken(**changes):
    """The recipe with changes such as model__name="lab.broken.no_parts"."""
    c = vi.get_config()
    with c.unlocked():
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def traced(c):
    """All that happens before the first step but compiling."""
    run = runs.open_run(c)
    images = runs.training_images(run)
    runs.trace_step(run, runs.state_shapes(run), images, run.schedule).lower()


def sampled(name):
    """The run of the recipe with another sampler."""
    c = vi.get_config()
    c.sampler = configs.sampler(name)
    return runs.open_run(c)


NAMED = {
    "nothing": 'which has no "build"',
    "no_model": "gives str; it must give a facenet_jax.models.Model",
    "short_apply": r"is called as apply\(variables, batch, train=.*but it is defined with",
    "only_outputs": r"gives \(Outputs\); it must give \(facenet_jax.types.Outputs, the collections",
    "no_parts": 'Outputs have no parts; name the columns of the embedding, as in parts={"all"',
    "wide_part": "part all is the columns 0 to 99 of an embedding that has 15",
    "flat_embedding": r"embedding is float32 \[8\]; it must be \[8, E\], a row for each sample",
    "odd_feature": r'features\["visible"\] is float32 \[3, 5\]; it must be \[8, D\]',
    "new_collection": "changes the collection memory; it may change those that its init makes",
    "moved_collection": "keeps its arrays, their shapes and types",
    "empty_group": "parameter group head holds no parameter: no path begins with 'head/'",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_broken_model_is_one_sentence(name):
    with pytest.raises(UserError, match=NAMED[name]) as caught:
        traced(broken(model__name=f"lab.broken.{name}"))
    assert_sentence(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mixed", "puts images of different identities into column 0 of step 0"),
        ("beyond", r"names rows 10\d\d to 10\d\d; the modalities have \[32, 24\] images"),
        ("one_modality", r"\[60, 1, 8\] for 60 steps \(its epoch\) and 2 modalities"),
        ("no_plan", "gives ndarray; it must give a facenet_jax.inputs.sampler.Plan"),
        ("few_arguments", r"is called as f\(split, seed=.*but it is defined with \(split, seed\)"),
        ("missing", 'lab.broken has no attribute "missing"'),
    ],
)
def test_a_broken_sampler_is_one_sentence(name, words):
    with pytest.raises(UserError, match=words) as caught:
        sampled(f"lab.broken.{name}")
    assert_sentence(caught.value)


def test_an_unknown_option_of_a_sampler_is_named():
    with pytest.raises(UserError, match=r"config\.sampler has no option 'hard'"):
        runs.open_run(broken(sampler__hard=True))
    with pytest.raises(UserError, match="steps_per_epoch is 0; it must be a whole number of 1"):
        runs.open_run(broken(sampler__steps_per_epoch=0))


def test_broken_losses_are_one_sentence():
    with pytest.raises(
        UserError, match=r"defined with .*margin=0.3\); it must be \(outputs, batch"
    ):
        configs.loss("lab.two_streams", "lab.broken.positional")
    c = vi.get_config()
    c.losses.mine = configs.loss("lab.two_streams", "lab.broken.vector")
    with pytest.raises(UserError, match=r"loss mine of config.losses gives float32 \[8\]"):
        traced(c)
    c = vi.get_config()
    c.losses.id.on = ("thermal",)
    with pytest.raises(UserError, match="acts on 'thermal', but the model gives visible, infrared"):
        traced(c)


def test_a_broken_data_set_is_one_sentence():
    with pytest.raises(UserError, match='returned dict without "modalities"'):
        runs.open_run(broken(data__name="lab.broken.no_split"))
    with pytest.raises(UserError, match=r"is called as load\(config.data\), but"):
        runs.open_run(broken(data__name="lab.broken.positional"))


def assert_sentence(error: UserError):
    assert str(error).endswith(".")
    assert "\n" not in str(error)


def test_weights_must_fill_what_the_model_has():
    c = broken(model__name="lab.broken.other_load", model__pretrained="FILE")
    words = r"load gives \['batch_stats'\].* as nothing where the model has float32 \[12\]"
    with pytest.raises(UserError, match=words) as caught:
        runs.start_state(runs.open_run(c))
    assert_sentence(caught.value)


def test_modalities_come_in_the_order_of_training():
    spec = DataSpec(("infrared", "visible"), (32, 16), 8, {"view": 4})
    with pytest.raises(UserError, match="trained on infrared, visible; list them in that order"):
        runs.open_run(vi.get_config(), spec=spec, training=False)


def test_the_package_is_a_stranger_and_stays_one():
    """It imports public names alone, and no file of ours knows of it."""
    for path in (HERE / "lab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            else:
                continue
            assert not any(name.startswith("_") for name in names), (path, names)
            assert names[0] not in ("tests", "configs", "scripts"), (path, names)
    files = [*(tiny.ROOT / "facenet_jax").rglob("*.py"), *(tiny.ROOT / "data_tfds").rglob("*.py")]
    assert len(files) > 50
    names = re.compile(r"^\s*(from|import) lab\b|[\"']lab[.\"']", re.MULTILINE)
    assert not [file for file in files if names.search(file.read_text())]
