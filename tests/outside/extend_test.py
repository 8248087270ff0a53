"""The code of docs/extend.md is written into a package as it stands there, and trains."""

import importlib
import re
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import facenet_jax
from facenet_jax import run, train
from facenet_jax.inputs import dataset
from tests.support import tiny_run as tiny

PAGE = tiny.ROOT / "docs" / "extend.md"
PACKAGE = "my_research"


def blocks() -> dict[str, str]:
    """{file: code} of the page: each block of Python begins with the name of its file."""
    found = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == PAGE.read_text().count("```python")
    return dict(found)


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    """The files of the page in a folder of their own, on the path."""
    folder = tmp_path_factory.mktemp("page")
    for name, code in blocks().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    (folder / PACKAGE / "__init__.py").touch()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.path.remove(str(folder))
    for name in [each for each in sys.modules if each.split(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def plain_jax(monkeypatch):
    """A reader's JAX is not as strict as that of our tests. One device compiles fast."""
    monkeypatch.setattr(run, "make_mesh", lambda: tiny.make_mesh(1))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def recipe(name):
    """The config of a file of the page, as short and as small as the tests want it."""
    c = importlib.import_module(f"{PACKAGE}.{name}").get_config()
    c.train.steps, c.train.steps_per_dispatch, c.train.evaluate_every = 4, 2, 0
    c.train.identities_per_batch, c.train.samples_per_identity = 4, 2
    c.evaluate.batch = 8
    c.augment.pad = 2
    return c


def trained(c, workdir):
    """The scores of a run, whose losses were finite in every step."""
    result = train.train(c, workdir)
    lines = [line for line in tiny.metrics(workdir) if "train/loss" in line]
    assert len(lines) == 4
    assert np.isfinite([line["train/loss"] for line in lines]).all()
    return result, lines


def test_a_loss_has_at_most_15_lines():
    code = blocks()[f"{PACKAGE}/focal.py"].rstrip().splitlines()
    assert len(code) <= 15


def test_loss(tmp_path):
    c = recipe("with_focal")
    assert c.losses.focal.gamma == 1.5
    c.data.name, c.data.root, c.data.image_size = "lab.sets.aligned.load", "", (32, 16)
    c.model.variant = ""
    c.model.width, c.model.depth, c.model.heads, c.model.patch = 16, 1, 2, 8
    c.evaluate.sanity_baselines = c.evaluate.per_modality = False
    _, lines = trained(c, tmp_path)
    assert all(line["train/loss_focal"] > 0 for line in lines)


def test_model_sampler_and_arrays(tmp_path):
    c = recipe("with_linear")
    result, _ = trained(c, tmp_path)
    assert result["protocol"] == "pairs/camera"
    network = facenet_jax.load(tmp_path)
    assert network.variables["memory"]["mean"].any()
    images = np.zeros((3, 32, 16, 3), np.uint8)
    assert network.embed(batch=4, thermal=images).shape == (3, 16)
    assert network.model.spec.labels["weather"] == 3


def test_protocol(tmp_path):
    from my_research import pairs, protocols

    from facenet_jax import retrieval
    from facenet_jax.retrieval import Embeddings

    sides = []
    for name in ("query", "gallery"):
        split = pairs.load(recipe("with_linear").data).splits[name]
        rng = np.random.default_rng(0)
        noise = rng.normal(size=(len(split), 3)).astype(np.float32)
        labels = {"camera": split.labels["camera"]}
        sides.append(Embeddings(noise, {"all": (0, 3)}, split.identity, split.name, labels))
    scores = retrieval.evaluate(*sides, protocols.SINGLE_SHOT).metrics()
    assert scores["trials"] == 10
    assert scores["gallery"] == 4


def test_backbone(tmp_path):
    trained(recipe("with_convolutions"), tmp_path)


def test_files(tmp_path):
    rng = np.random.default_rng(0)
    for split, kinds in (("train", ("vis", "ir")), ("query", ("ir",)), ("gallery", ("vis",))):
        for identity in range(2):
            for kind in kinds:
                folder = tmp_path / "tree" / split / f"{identity:04d}" / kind
                folder.mkdir(parents=True)
                pixels = rng.integers(0, 256, (32, 16, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{kind}_c{1 + (kind == 'ir')}.png")
    data = recipe("with_linear").data
    data.name, data.incomplete = f"{PACKAGE}.persons", "keep"
    data.root, data.prepared = str(tmp_path / "tree"), str(tmp_path / "prepared")
    found = dataset.load(data)
    assert found.modalities == ("visible", "infrared")
    assert found.protocol.name == "persons/infrared_to_visible"
    assert {name: len(split) for name, split in found.splits.items()} == {
        "train": 4,
        "query": 2,
        "gallery": 2,
    }


@pytest.mark.parametrize("name", ["with_linear", "with_convolutions"])
def test_a_divided_state_gives_the_losses_of_a_whole_one(name, tmp_path, monkeypatch, log_lines):
    """Though the kernels of the page are not gathered by layers of ours."""
    c = recipe(name)
    _, expected = trained(c, tmp_path / "whole")
    assert not any("divided over them" in line for line in log_lines)
    monkeypatch.setattr(run, "make_mesh", lambda: tiny.make_mesh(4))
    c.train.shard_state, c.train.shard_above = "always", 64
    _, found = trained(c, tmp_path / "divided")
    assert any("divided over them" in line for line in log_lines)
    for one, other in zip(expected, found, strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)
