"""The page of a run: what is on it, that it needs nothing else, and each of its computations."""

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data_tfds.errors import UserError
from facenet_jax import api, commands, evaluate, report, retrieval
from facenet_jax.inputs import dataset as datasets
from facenet_jax.models.layers import plain_attention, plain_block
from facenet_jax.models.trunk import plain_tokens
from facenet_jax.report import curves, finished, inside, ranked, sections
from facenet_jax.retrieval import Embeddings
from facenet_jax.runtime.writers import write_json
from facenet_jax.stored import claim
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny
from tests.training.evaluate_test import data

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning:sklearn")

SPEC = DataSpec(tiny.MODALITIES, tiny.SIZE, tiny.IDENTITIES, {"camera": 4})


def embedded(split, seed):
    """Embeddings near a point for each identity."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(0).normal(size=(200, 48))[split.identity]
    rows = np.float32(3 + centre + rng.normal(size=centre.shape))
    parts = {m: (16 * i, 16 * i + 16) for i, m in enumerate(tiny.MODALITIES)}
    labels = {name: split.labels[name] for name in ("camera", "flare")}
    return Embeddings(rows, parts, split.identity, split.name, labels, mixed=("visible",))


@pytest.fixture(scope="module")
def network():
    c = tiny.config()
    model = tiny.build(c, SPEC)
    return api.Network(c, model, tiny.variables(model), 5, None)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory, network):
    """Two workdirs as training leaves them, with no checkpoints; a name that HTML must escape."""
    root, of = tmp_path_factory.mktemp("runs"), data()
    folders = [root / "a<b", root / "other"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        claim(folder, network.config, SPEC)
        sides = tuple(embedded(of.splits[name], seed) for name in ("query", "gallery"))
        evaluate.export(folder / "embeddings", sides, 5, of.protocol)
        scores = retrieval.evaluate(*sides, of.protocol).metrics()
        write_json(folder / "result.json", {"protocol": "tiny", "last": scores | {"step": 5}})
        rows = [
            {"step": s, "train/loss": 1 / s, "train/loss_id": 0.5 / s, "train/learning_rate": 0.1}
            for s in range(1, 900)
        ]
        lines = [json.dumps(row) for row in [*rows, {"step": 900, "test/mAP": 0.5, "test/R1": 0.6}]]
        (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9']))
    return folders


@pytest.fixture
def here(monkeypatch, network):
    """The data set of arrays and the network, as if they were on disk."""
    monkeypatch.setattr(datasets, "load", lambda options, training: data())
    monkeypatch.setattr(api, "load", lambda folder, which: network)


@pytest.fixture(scope="module")
def page(workdirs, network):
    """Both runs side by side, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", lambda options, training: data())
        patch.setattr(api, "load", lambda folder, which: network)
        out = workdirs[0] / "report.html"
        size = report.write(workdirs, out, doctor="never")
    assert size == out.stat().st_size < 2e6
    return out


def test_the_page_has_everything_inside_and_nothing_else(page):
    text = page.read_text()
    assert "a&lt;b" in text
    assert "a<b" not in text
    assert "<script" not in text
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(link.startswith(("data:image/", "data:,", "#")) for link in links)
    assert not re.findall(r"url\((?!#)", text)
    for source in {link for link in links if link.startswith("data:image/jpeg")}:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).load()
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    wanted = "Scores, Compared, Ranked lists, Ranks and pairs, Modalities, Flare masks, Attention"
    assert set(wanted.split(", ")) <= set(titles)
    ids = re.findall(r'<[^>]* id="([^"]*)"', text)
    assert len(set(ids)) == len(ids)


def test_frames_say_what_the_protocol_says(workdirs, here):
    run = finished.open_finished(workdirs[0])
    of = run.ranking.trials[0]
    for row in of.query.tolist():
        found = ranked.ranked(run, row)
        for place, kind in found:
            match = run.gallery.identity[place] == run.query.identity[row]
            same = run.gallery.labels["camera"][place] == run.query.labels["camera"][row]
            assert kind == (("junk" if same else "right") if match else "wrong")
        kept = [kind for _, kind in found if kind != "junk"]
        assert kept.index("right") + 1 == of.first_match[of.query.tolist().index(row)]


def test_attention_is_that_of_the_blocks():
    """By NumPy, one layer; and the rollout of two, from weights that rows of ones sum to."""
    rng = np.random.default_rng(0)
    trunk = {
        "patch": {"kernel": rng.normal(size=(48, 8)) / 7, "bias": rng.normal(size=8)},
        "class_token": rng.normal(size=(1, 8)),
        "position": rng.normal(size=(5, 8)),
    }
    block = {
        "norm1": {"scale": rng.normal(size=8), "bias": rng.normal(size=8)},
        "norm2": {"scale": rng.normal(size=8), "bias": rng.normal(size=8)},
        "qkv": {"kernel": rng.normal(size=(8, 24)), "bias": rng.normal(size=24)},
        "proj": {"kernel": rng.normal(size=(8, 8)), "bias": rng.normal(size=8)},
        "fc1": {"kernel": rng.normal(size=(8, 32)), "bias": rng.normal(size=32)},
        "fc2": {"kernel": rng.normal(size=(32, 8)), "bias": rng.normal(size=8)},
    }
    trunk, block = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (trunk, block))
    x = rng.normal(size=(2, 5, 8)).astype(np.float32)
    norm = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    plain = jax.tree.map(np.asarray, block)
    y = norm * plain["norm1"]["scale"] + plain["norm1"]["bias"]
    q, k = np.split(y @ plain["qkv"]["kernel"] + plain["qkv"]["bias"], 3, -1)[:2]
    found = plain_attention(block, x, 2)
    for head in range(2):
        some = slice(4 * head, 4 * head + 4)
        expected = np.exp(np.einsum("btd,bsd->bts", q[..., some], k[..., some]) / 2)
        expected /= expected.sum(-1, keepdims=True)
        np.testing.assert_allclose(found[:, head], expected, atol=2e-5)

    trunk["blocks"] = jax.tree.map(lambda x: x[None], block)
    images = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    rollout, last = inside.attention_maps(trunk, block, images, heads=2)
    first = {k: v for k, v in trunk.items() if k != "blocks"}
    tokens = plain_tokens(first, images, 2)
    weights = plain_attention(block, tokens, 2)
    after = plain_attention(block, plain_block(block, tokens, 2), 2)
    np.testing.assert_allclose(last, after.mean(1)[:, 0, 1:], rtol=1e-5)
    one, two = (0.5 * (np.asarray(w).mean(1) + np.eye(5)) for w in (weights, after))
    np.testing.assert_allclose(rollout, (two @ one)[:, 0, 1:], rtol=1e-4, atol=1e-7)


def test_masks_are_those_of_the_network(workdirs, here, network):
    run = finished.open_finished(workdirs[0])
    _, *shown = inside.masks(run)
    assert len(shown) == 3
    images, labels, rows = inside.chosen(run)
    assert labels["flare"][0].all()  # every query of this set is flared
    extras = inside.outputs(network, images, labels).extras
    expected = np.asarray(jax.nn.sigmoid(extras["mfmp"][1, 0]).mean(axis=-1))
    assert shown[0].tiles[5].label == f"after MFMP: {expected.min():.3f} to {expected.max():.3f}"
    assert rows[0] == int(np.flatnonzero(run.query.name == shown[0].caption.split()[1])[0])


def test_lists_are_of_completed_embeddings_where_the_scores_are(workdirs, here):
    """The first match of every list is at the rank that the scores say; columns stay as seen."""
    run = finished.open_finished(workdirs[0])
    options = run.config.evaluate.copy_and_resolve_references()
    options.complete = (3, 3.0)
    run = dataclasses.replace(run, config=ConfigDict({"evaluate": options}))
    assert not np.array_equal(run.sides[0].embedding, run.seen[0].embedding)
    assert np.array_equal(run.seen[0].embedding, run.query.embedding)
    (trial,) = run.ranking.trials
    found = 0
    for row, first in zip(trial.query, trial.first_match, strict=True):
        kinds = [kind for _, kind in ranked.ranked(run, int(row)) if kind != "junk"]
        if "right" in kinds:
            assert kinds.index("right") + 1 == first
            found += 1
    assert found > 3


def test_a_table_of_columns_says_that_it_is_one(workdirs, here):
    run = finished.open_finished(workdirs[0])
    table, words = curves.modality_tables(run)
    assert len(table.rows) == 7
    assert "facenet modalities" in words.words
    whole = run.ranking.metrics()["mAP"]
    assert table.rows[-1][-1] == f"{100 * whole:.1f}"
    cells = {row[0]: dict(zip(table.head[1:], row[1:], strict=True)) for row in table.rows}
    assert cells["R"]["N+T"] == "-"
    assert cells["R"]["R+T"] == cells["R"]["R"]


def test_without_data_or_network_the_page_says_so(workdirs):
    """The stored config names a data set that is not there, and there is no checkpoint."""
    run = finished.open_finished(workdirs[1])
    assert "cannot be opened here" in run.splits
    assert "no last checkpoint" in run.network
    (block,) = ranked.lists(run)
    assert block.words == run.splits


def test_what_cannot_be_reported_is_one_sentence(workdirs, tmp_path, monkeypatch, capsys):
    assert commands.main(["report", str(tmp_path)]) != 0
    assert "result.json cannot be read" in capsys.readouterr().err
    write_json(tmp_path / "result.json", {"protocol": "camera"})
    shutil.copy(workdirs[0] / "config.json", tmp_path)
    assert commands.main(["report", str(tmp_path)]) != 0
    assert "has no embeddings" in capsys.readouterr().err
    monkeypatch.setattr(report, "PACKAGES", ("json", "jinja3"))
    with pytest.raises(UserError, match=r"needs jinja3, .* pip install 'facenet_jax\[report\]'"):
        report.write([tmp_path], tmp_path / "out.html")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: apt-get install chromium")
def test_a_browser_shows_it_without_an_error_or_a_request(page, tmp_path):
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    log, picture = tmp_path / "net.json", tmp_path / "page.png"
    options += ["--enable-logging=stderr", f"--log-net-log={log}", f"--screenshot={picture}"]
    done = subprocess.run(
        ["chromium", *options, "--window-size=390,3000", page.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    text = log.read_text()
    asked = set(re.findall(r'"url":"((?:http|ws)[^"]*)"', text))
    own = ("google", "gvt1.com")  # what the browser asks for itself, also without a page
    assert not {url for url in asked if not any(name in url for name in own)}
    assert len(np.unique(np.asarray(Image.open(picture).convert("L")))) > 50


def test_the_doctor_examines_a_folder_of_the_users_own(tmp_path):
    """Whose root is text, as the config has it."""
    c = tiny.config(data__name="folder/camera", data__root=str(tiny.folder(tmp_path / "mine")))
    (block,) = sections.findings(types.SimpleNamespace(config=c))
    assert "cannot examine" not in str(block)
