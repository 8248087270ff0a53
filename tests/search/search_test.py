"""A database of embeddings: it answers as `retrieval` ranks, and goes on after a kill."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from data_tfds.errors import UserError
from facenet_jax import api, commands
from facenet_jax.commands import index as index_command
from facenet_jax.commands import search as search_command
from facenet_jax.retrieval import Embeddings
from facenet_jax.retrieval.distances import Euclidean
from facenet_jax.retrieval.missing import joined
from facenet_jax.search import Database, engine, index_folder, indexing, listing, show
from facenet_jax.search import database as databases
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny

SPEC = DataSpec(tiny.MODALITIES, tiny.SIZE, tiny.IDENTITIES, {"camera": 4})
COUNT = 24

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("lancedb") is None, reason="needs .[search]"
)


class Linear(api.Network):
    """A network that multiplies pixels by a matrix for each modality: nothing is compiled."""

    def parts(self, modalities=()):
        names = [m for m in tiny.MODALITIES if not modalities or m in modalities]
        return {name: (16 * i, 16 * i + 16) for i, name in enumerate(names)}

    def forward(self, modalities):
        def call(variables, pixels, labels):
            flat = pixels.reshape(*pixels.shape[:2], -1) / np.float32(255) - np.float32(0.5)
            pairs = zip(flat, modalities, strict=True)
            return np.concatenate([rows @ variables[m] for rows, m in pairs], axis=1)

        return call


def make_network(folder, seed=0):
    """A network without a checkpoint."""
    c = tiny.get_config("three_stream")
    rng = np.random.default_rng(seed)
    shape = (tiny.SIZE[0] * tiny.SIZE[1] * 3, 16)
    variables = {m: rng.normal(size=shape).astype(np.float32) for m in tiny.MODALITIES}
    return Linear(c, tiny.build(c, SPEC), variables, 7, folder)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return make_network(tmp_path_factory.mktemp("workdir"))


def make_folder(root, count=COUNT, first=0):
    """vis, ni, th below identities; some samples lack ni or th, and one has th alone."""
    rng = np.random.default_rng(first)
    for i in range(first, first + count):
        lacks = {"ni": i % 3 == 1, "th": i % 4 == 2, "vis": i in (5, 6)}
        for modality in tiny.FOLDERS:
            pixels = rng.integers(0, 255, (16, 8, 3), np.uint8)
            path = root / str(i // 4) / modality / f"{i}_c{i % 3}_s{i % 5}.png"
            if not lacks[modality] and not (i == 5 and modality == "ni"):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def database(network, folder, tmp_path_factory):
    made = Database.open(network, tmp_path_factory.mktemp("database") / "search")
    assert index_folder(made, folder) == (COUNT, 0, 0)
    return made


@pytest.fixture
def copy(database, tmp_path):
    """The database again, to be changed."""
    shutil.copytree(database.table.address, tmp_path / "copy")
    return Database.open(database.network, tmp_path / "copy")


def by_hand(network, samples):
    """`joined` embeddings of samples, by the network's own `embed` on each subset."""
    parts, found = network.parts(), {}
    for subset in {tuple(x.files) for x in samples} | {tiny.MODALITIES}:
        modalities = tuple(m for m in tiny.MODALITIES if m in subset)
        blank = np.zeros((*tiny.SIZE, 3), np.uint8)  # of samples that lack it: left out again
        images = {m: [x.files.get(m, blank) for x in samples] for m in modalities}
        names = np.array([x.name for x in samples])
        found[modalities] = Embeddings(
            network.embed(**images),
            network.parts(modalities),
            np.zeros(len(samples), int),
            names,
            {},
        )
    present = np.array([[m in x.files for m in parts] for x in samples])
    return joined(found, present, "shared")


def ranked(query, gallery):
    """(names, cosines) of the gallery, the nearest first, by `retrieval`."""
    distances = Euclidean(query, gallery.embedding)
    (row,) = distances.angles(np.array([0]))
    order = np.argsort(row, kind="stable")
    return gallery.name[distances.order[order]].tolist(), 1 - row[order]


@needs_engine
@pytest.mark.parametrize(
    "given", [tiny.MODALITIES, ("visible", "thermal"), ("near_infrared",)], ids="+".join
)
def test_answers_are_those_of_retrieval(database, network, folder, given):
    """Of every row that has one of the query's modalities, also where it lacks another."""
    samples = listing.samples(folder)
    query = samples[0]
    images = {m: query.files[m] for m in given}
    found = database.search(images, top=COUNT)
    has = [x for x in samples if set(given) & set(x.files)]
    assert len(has) < len(samples) or len(given) == 3
    gallery = by_hand(network, has).select(given)
    names, cosines = ranked(network.embed(**images), gallery)
    assert [x.name for x in found] == names
    assert names[0] == query.name
    np.testing.assert_allclose([x.cosine for x in found], cosines, atol=2e-6)
    assert database.search(images, top=3) == found[:3]


@needs_engine
def test_one_modality_is_found_by_another_where_that_is_asked(database, network, folder):
    samples = listing.samples(folder)
    query = samples[0].files["thermal"]
    found = database.search({"thermal": query}, by=["visible"], top=COUNT)
    has = [x for x in samples if "visible" in x.files]
    names, _ = ranked(network.embed(thermal=query), by_hand(network, has).select(["visible"]))
    assert [x.name for x in found] == names


@needs_engine
def test_of_many_rows_some_are_compared_by_several_parts(database, folder, monkeypatch):
    """As where rows are more than SMALLEST_INDEX; CANDIDATES are enough for all of these."""
    files = listing.samples(folder)[0].files
    images = {m: files[m] for m in ("visible", "thermal")}
    whole = database.search(images, top=COUNT, where="camera != 1")
    monkeypatch.setattr(databases, "SMALLEST_INDEX", 3)
    found = database.search(images, top=COUNT, where="camera != 1")
    assert [x.name for x in found] == [x.name for x in whole]
    np.testing.assert_allclose([x.cosine for x in found], [x.cosine for x in whole], atol=1e-6)
    assert database.search(images, where="camera = 99") == []


@needs_engine
def test_an_approximate_index_finds_the_same_in_few_rows(copy, folder, monkeypatch):
    """Also of vectors that some rows lack, and rows that came after it was made."""
    monkeypatch.setattr(databases, "SMALLEST_INDEX", 10)
    samples = listing.samples(folder)
    asked = [samples[0].files, {"thermal": samples[0].files["thermal"]}]
    before = [copy.search(images, where="camera != 1") for images in asked]
    copy.delete([samples[3].name])
    copy.approximate()
    assert None not in {copy.table.index_of(x) for x in ("joint", *copy.parts)}
    copy.add(samples[3:4])
    for images, expected in zip(asked, before, strict=True):
        for exact in (False, True):
            found = copy.search(images, where="camera != 1", exact=exact)
            assert [x.name for x in found] == [x.name for x in expected]
            np.testing.assert_allclose(
                [x.cosine for x in found], [x.cosine for x in expected], atol=2e-6
            )


@needs_engine
def test_labels_filter(database, folder):
    sample = listing.samples(folder)[0]
    images = {"visible": sample.files["visible"]}
    assert sample.labels == {"identity": "0", "camera": 0, "scene": 0, "view": -1}
    found = database.search(images, top=COUNT, where="camera != 0 and identity <> '1'")
    assert found
    assert all(x.labels["camera"] != 0 and x.labels["identity"] != "1" for x in found)
    with pytest.raises(UserError, match=r"cannot answer where 'cammera = 1'.*columns are name"):
        database.search(images, where="cammera = 1")


@needs_engine
def test_again_changes_nothing_and_what_changed_is_updated(copy, tmp_path, folder, monkeypatch):
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine, copy_function=shutil.copy2)
    embedded = []
    real = Database.embed
    monkeypatch.setattr(
        Database, "embed", lambda self, todo, n: embedded.extend(todo) or real(self, todo, n)
    )
    assert index_folder(copy, folder) == (0, 0, COUNT)
    assert not embedded
    new = mine / "0" / "vis" / "0_c0_s0.png"
    Image.fromarray(np.full((16, 8, 3), 9, np.uint8)).save(new)
    (mine / "labels.csv").write_text("name,colour\n1/4_c1_s4,red\n")
    done = index_folder(copy, mine, labels=mine / "labels.csv")
    assert done == (0, 2, COUNT - 2)
    assert {x.name for x in embedded} == {"0/0_c0_s0", "1/4_c1_s4"}
    best = copy.search({"visible": new}, top=1)[0]
    assert (best.name, best.labels["colour"]) == ("0/0_c0_s0", "")
    assert best.cosine == pytest.approx(1, abs=1e-5)
    red = copy.search({"visible": new}, top=COUNT, where="colour = 'red'")
    assert [x.name for x in red] == ["1/4_c1_s4"]
    assert copy.delete(["1/4_c1_s4", "nobody's"]) == 1
    assert len(copy) == COUNT - 1
    assert not copy.search({"visible": new}, where="colour = 'red'")


@needs_engine
def test_a_failure_keeps_the_windows_before_it(network, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "WINDOW", 5)
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    names = [x.name for x in listing.samples(mine)]
    bad = next((mine / names[17].split("/")[0]).rglob(f"{names[17].split('/')[1]}.png"))
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    made = Database.open(network, tmp_path / "search")
    with pytest.raises(UserError, match="is not an image"):
        index_folder(made, mine)
    assert sorted(made.stamps(names)) == names[:15]
    bad.write_bytes(content)
    assert index_folder(made, mine) == (COUNT - 15, 0, 15)


@needs_engine
def test_another_model_is_refused(database, network, tmp_path):
    other = make_network(tmp_path, seed=1)
    with pytest.raises(UserError, match=r"at step 7, and .* at step 7 is another"):
        Database.open(other, database.table.address)
    c = network.config.copy_and_resolve_references()
    c.data.test_resize = "bilinear" if c.data.test_resize != "bilinear" else "bicubic"
    with pytest.raises(UserError, match="is another"):
        Database.open(dataclasses.replace(network, config=c), database.table.address)
    with pytest.raises(UserError, match=r"There is no database in .*fill one with facenet index"):
        Database.existing(network, tmp_path / "nowhere")


@needs_engine
def test_the_centre_is_taken_off(network, folder, tmp_path):
    """Cosines are those of `similarity`, of a network whose gallery is known."""
    mean = {name: np.full(16, 3, np.float32) * i for i, name in enumerate(tiny.MODALITIES)}
    own = dataclasses.replace(network)
    vars(own)["centre"] = mean
    samples = [x for x in listing.samples(folder) if len(x.files) == 3]
    made = Database.open(own, tmp_path / "search", centre=True)
    made.add(samples)
    images = {m: [x.files[m] for x in samples] for m in tiny.MODALITIES}
    whole = own.embed(**images)
    found = Database.open(network, tmp_path / "search").search(samples[2].files, len(samples))
    cosines = own.similarity(whole[2:3], whole)[0]
    names = [x.name for x in samples]
    expected = [cosines[names.index(each.name)] for each in found]
    np.testing.assert_allclose([each.cosine for each in found], expected, atol=2e-6)
    assert len(found) == len(samples)
    Database.open(network, tmp_path / "plain")
    with pytest.raises(UserError, match="was made without --centre"):
        Database.open(own, tmp_path / "plain", centre=True)


@needs_engine
def test_the_commands(database, network, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "load", lambda *arguments: network)
    address = str(tmp_path / "search")
    index_command.main([str(folder), "--workdir=w", f"--database={address}", "--part=1/2"])
    index_command.main([str(folder), "--workdir=w", f"--database={address}", "--part=2/2"])
    assert f"{COUNT} samples." in capsys.readouterr().out
    query = listing.samples(folder)[0]
    images = [f"--{m}={query.files[m]}" for m in ("visible", "thermal")]
    out = [f"--json={tmp_path / 'a.json'}", f"--picture={tmp_path / 'a.png'}"]
    search_command.main(["--workdir=w", f"--database={address}", *images, "--top=4", *out])
    text = capsys.readouterr().out
    answer = json.loads((tmp_path / "a.json").read_text())
    assert [x["name"] for x in answer["found"]] == [x.split()[2] for x in text.splitlines()[1:]]
    assert answer["found"][0]["labels"] == {"identity": "0", "camera": 0, "scene": 0}
    assert set(answer["found"][0]["files"]) == set(query.files)
    drawn = Image.open(tmp_path / "a.png")
    assert drawn.size == (5 * 128 + 4, 3 * 128 + 2 * show.LINE + 4)
    assert drawn.getpixel((5, 128 + 30)) == show.GREY  # the query has no near-infrared image
    search_command.main([f"--database={address}", *images, "--not_same_camera=0", "--top=99"])
    assert "camera 0" not in capsys.readouterr().out
    index_command.main(["--workdir=w", f"--database={address}", "--delete", query.name])
    assert f"1 deleted, {COUNT - 1} samples" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no sample 0/0_c0_s0; nothing was deleted"):
        index_command.main(["--workdir=w", f"--database={address}", "--delete", query.name])


@needs_engine
def test_what_cannot_be_searched_is_one_sentence(database, folder):
    files = listing.samples(folder)[0].files
    for by in ("radar", "thermal"):
        two = {"visible": files["visible"], "near_infrared": files["near_infrared"]}
        with pytest.raises(UserError, match=f"--by {by} cannot be compared: the query has visible"):
            database.search(two, by=[by])
    with pytest.raises(UserError, match="ask for 1 or more"):
        database.search(files, top=0)
    with pytest.raises(UserError, match="an approximate index is made from 10000 on"):
        database.approximate()


def test_a_missing_package_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(engine, "PACKAGES", ("lancedc",))
    assert commands.main(["index", str(tmp_path), "--workdir", "w"]) != 0
    assert "Search needs lancedc, which is not installed" in capsys.readouterr().err
    assert commands.main(["search", "--workdir", "w", "--visible", "a.png"]) != 0
    assert "pip install 'facenet_jax[search]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "table", "said"),
    [
        ({}, None, "holds no image"),
        ({"a.png": 1}, None, "lies in no folder vis, ni, th or ir"),
        ({"vis/a.png": 1, "vis/a.jpg": 1}, None, "are both the visible image of a"),
        ({"vis/a.png": 1}, "name\nb\n", "names b, which is no sample of .*named like a"),
        ({"vis/a.png": 1}, "name,camera\na,x\n", "line 2 has the camera 'x', not a whole"),
        ({"vis/a.png": 1}, "name,camera\na\n", "line 2 has not as many cells"),
        ({"vis/a.png": 1}, "name\na\na\n", "line 3 repeats the name a"),
        ({"vis/a.png": 1}, "nome\na\n", "has the columns nome; it needs name"),
    ],
)
def test_what_a_folder_cannot_be(tmp_path, files, table, said):
    root = tmp_path / "images"
    root.mkdir()
    for file in files:
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_bytes(b"")
    if table:
        (tmp_path / "t.csv").write_text(table)
    with pytest.raises(UserError, match=said):
        listing.samples(root, table=tmp_path / "t.csv" if table else None)


CHILD = """
import pathlib, sys
import tests.search.search_test as of
from facenet_jax.search import indexing
indexing.WINDOW = 8
made = of.Database.open(of.make_network(pathlib.Path(sys.argv[1])), sys.argv[2])
real = of.Database.put
def put(self, todo, joint):
    real(self, todo, joint)
    print(len(self), flush=True)
of.Database.put = put
print(*indexing.index_folder(made, sys.argv[3], batch=8), flush=True)
"""


@needs_engine
@pytest.mark.slow
def test_killed_while_indexing_it_goes_on(network, tmp_path):
    """SIGKILL at instants in or between writes; what was told as written is there each time."""
    images = make_folder(tmp_path / "images", count=400)
    address = str(tmp_path / "search")
    command = [sys.executable, "-c", CHILD, str(network.folder), address, str(images)]
    kills, told = 0, 0
    for delay in (0.0, 0.003, 0.01, 0.02, 0.05):
        child = subprocess.Popen(
            command, cwd=tiny.ROOT, env=tiny.environment(), stdout=subprocess.PIPE, text=True
        )
        told = int(child.stdout.readline())
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        rest = child.communicate()[0].split()
        told = max([told, *map(int, rest)])
        kills += child.returncode == -signal.SIGKILL
        there = len(Database.open(network, address))
        assert there >= told
        assert there % 8 == 0  # a window is there whole or not at all
        assert there < 400
    assert kills == 5
    made = Database.open(network, address)
    done = index_folder(made, images)
    assert done.unchanged >= told
    assert (done.added, len(made)) == (400 - done.unchanged, 400)
    samples = listing.samples(images)
    fresh = Database.open(network, tmp_path / "fresh")
    index_folder(fresh, images)
    asked = {"visible": samples[0].files["visible"]}
    pairs = zip(fresh.search(asked, 400), made.search(asked, 400), strict=True)
    for one, other in pairs:
        assert one.name == other.name
        assert one.cosine == pytest.approx(other.cosine, abs=1e-5)
