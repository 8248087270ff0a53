"""The script from files to table, and one sentence for each file that it cannot use."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from facenet_jax.commands import score as evaluate_embeddings
from facenet_jax.retrieval import Embeddings, completion, evaluate, metrics, protocols
from facenet_jax.retrieval.rerank import rerank

ROOT = pathlib.Path(__file__).resolve().parents[2]

MODALITIES = ("visible", "near_infrared", "thermal")


def arrays(seed, rows):
    generator = np.random.default_rng(seed)
    identity = generator.integers(6, size=rows)
    return {
        "embedding": (identity[:, None] == np.arange(12) % 6).astype(np.float32)
        + generator.normal(size=(rows, 12)).astype(np.float32),
        "parts": np.array([(0, 4), (4, 8), (8, 12)], np.int32),
        "modalities": np.array(MODALITIES),
        "identity": identity.astype(np.int32),
        "camera": generator.integers(3, size=rows).astype(np.int32),
        "scene": generator.integers(4, size=rows).astype(np.int32),
        "flare": generator.random((rows, 2)) < 0.3,
        "name": np.array([f"sample-{row}" for row in range(rows)]),
    }


@pytest.fixture
def files(tmp_path):
    """Writes query and gallery with some arrays replaced (None: left out); returns options."""

    def write(query=None, gallery=None):
        options = []
        for name, seed, rows, change in (("query", 0, 30, query), ("gallery", 1, 80, gallery)):
            held = {**arrays(seed, rows), **(change or {})}
            held = {key: value for key, value in held.items() if value is not None}
            np.savez(tmp_path / f"{name}.npz", **held)
            options += [f"--{name}", str(tmp_path / f"{name}.npz")]
        return options

    return write


@pytest.fixture
def scores(tmp_path):
    def call(*options):
        path = tmp_path / "scores.json"
        assert evaluate_embeddings.main([*options, "--json", str(path)]) == 0
        return json.loads(path.read_text())

    return call


def expected(protocol, distances=None, part=slice(None)):
    query, gallery = arrays(0, 30), arrays(1, 80)
    labels = [query["identity"], gallery["identity"]]
    if protocol != "none":
        labels += [query[protocol], gallery[protocol]]
    vectors = query["embedding"][:, part], gallery["embedding"][:, part]
    if distances:
        return metrics.per_query_of_distances(distances(*vectors), *labels)
    return metrics.per_query(*vectors, *labels)


@pytest.mark.parametrize("protocol", ["camera", "scene", "none"])
def test_gives_what_the_library_gives(files, scores, protocol):
    result = scores(*files(), "--protocol", protocol)
    ranking = expected(protocol)
    flared = arrays(0, 30)["flare"].any(axis=1)
    assert result == {
        "protocol": protocol,
        "modalities": list(MODALITIES),
        "rerank": None,
        **ranking.metrics(),
        "clean": ranking.metrics(~flared),
        "flared": ranking.metrics(flared),
    }


def test_modalities_are_columns_by_name(files, scores):
    result = scores(*files(), "--protocol", "camera", "--modalities", "thermal,visible")
    ranking = expected("camera", part=[8, 9, 10, 11, 0, 1, 2, 3])
    assert result["modalities"] == ["thermal", "visible"]
    assert result["mAP"] == ranking.metrics()["mAP"] != expected("camera").metrics()["mAP"]


def test_modalities_may_lie_in_another_order_in_the_gallery(files, scores):
    gallery = arrays(1, 80)["embedding"]
    swapped = {
        "embedding": np.concatenate([gallery[:, 8:], gallery[:, :8]], axis=1),
        "modalities": np.array(["thermal", "visible", "near_infrared"]),
    }
    options = files(gallery=swapped)
    assert evaluate_embeddings.main([*options, "--protocol", "none"]) == 1
    result = scores(*options, "--protocol", "none", "--modalities", "visible,thermal")
    straight = scores(*files(), "--protocol", "none", "--modalities", "visible,thermal")
    assert result == straight


def test_rerank(files, scores):
    result = scores(*files(), "--protocol", "camera", "--rerank", "8,3,0.3")
    ranking = expected("camera", lambda q, g: rerank(q, g, 8, 3, 0.3))
    assert result["rerank"] == {"k1": 8, "k2": 3, "lambda": 0.3}
    assert result["mAP"] == ranking.metrics()["mAP"] != expected("camera").metrics()["mAP"]


def test_table(files, capsys):
    no_flare = np.zeros((30, 2), bool)
    assert evaluate_embeddings.main([*files({"flare": no_flare}), "--protocol", "camera"]) == 0
    title, head, total, clean, flared = capsys.readouterr().out.splitlines()
    assert title == "protocol camera, modalities visible + near_infrared + thermal, gallery 80"
    assert head.split() == ["queries", "mAP", "mINP", "R1", "R5", "R10", "R20", "valid", "skipped"]
    score = expected("camera").metrics()
    cells = [score["mAP"], score["mINP"], *score["cmc"].values()]
    assert total.split()[1:7] == [f"{100 * cell:.1f}" for cell in cells]
    assert total.split()[7:] == ["30", "0"]
    assert clean.split()[1:] == total.split()[1:]
    assert " ".join(flared.split()) == "flared no query with a match"


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_other_float_types_and_integers_are_welcome(files, scores, kind):
    change = {"embedding": arrays(0, 30)["embedding"].astype(kind), "identity": np.arange(30) % 6}
    assert scores(*files(change), "--protocol", "none")["queries"] == 30


def broken_embedding(value):
    embedding = arrays(0, 30)["embedding"]
    embedding[7, 3] = value
    return embedding


BAD_ARRAYS = {
    "nan": ("embedding", broken_embedding(np.nan), "1 embeddings, first in row 7 (sample-7)"),
    "infinite": ("embedding", broken_embedding(-np.inf), "first in row 7 (sample-7)"),
    "flat": ("embedding", np.ones(30, np.float32), "array embedding .* float32 [30], not floating"),
    "integers": ("embedding", np.ones((30, 12), int), "is int64 [30, 12], not floating [N, E]"),
    "absent": (
        "scene",
        None,
        "query.npz has no scene among its labels (camera, flare), so the protocol scene does not "
        "belong to this data; camera and none would",
    ),
    "no identity": ("identity", None, "has no array identity; it must have embedding and ident"),
    "parts alone": ("modalities", None, "has the array parts and not modalities; give both or n"),
    "nobody": (
        "identity",
        np.arange(30) - 2,
        "does not know the identity of 2 rows, first",
    ),
    "short": ("camera", np.zeros(29, int), "array camera .* int64 [29], not integer [30]"),
    "floats": ("identity", np.zeros(30), "array identity .* float64 [30], not integer [30]"),
    "flare": ("flare", np.zeros(30, bool), "array flare .* bool [30], not bool [30, M]"),
    "flare of integers": ("flare", np.zeros((30, 2), int), "array flare .* not bool [30, M]"),
    "short label": ("weather", np.zeros((29, 2)), "array weather .* not an array [30, M]"),
    "float scene": ("scene", np.zeros(30), "array scene .* float64 [30], not integer [30]"),
    "parts": ("parts", np.array([(0, 4), (4, 8), (8, 13)]), "8, 13]] .* 12 wide"),
    "reverse": ("parts", np.array([(0, 4), (8, 4), (8, 12)]), "[8, 4]"),
    "two parts": ("parts", np.array([(0, 4), (4, 8)]), "array parts .* int64 [2, 2]"),
    "objects": (
        "name",
        np.array([None] * 30),
        "not an .npz archive of plain arrays: an entry holds Python obj",
    ),
    "two names": (
        "modalities",
        np.array(["visible", "visible", "thermal"]),
        "names one twice: visible, visible, thermal",
    ),
    "other modalities": (
        "modalities",
        np.array(["visible", "x", "thermal"]),
        "visible, x, thermal and",
    ),
    "widths": ("parts", np.array([(0, 3), (3, 8), (8, 12)]), "[3, 5, 4] columns wide in"),
    "no scene": (
        "scene",
        np.where(np.arange(30) < 4, 1, -1),
        "26 rows, first for row 4 (sample-4), so the protocol scene does not belong to this data; "
        "camera and none would",
    ),
    "no match": ("identity", np.arange(30) + 90, "None of the 30 queries has a match"),
    "empty": ("embedding", np.ones((0, 12), np.float32), "array identity .* not integer [0]"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_a_bad_array_is_one_sentence_that_names_the_file(files, capsys, name):
    field, value, words = BAD_ARRAYS[name]
    options = files({field: value})
    assert evaluate_embeddings.main([*options, "--protocol", "scene"]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert len(captured.err.splitlines()) == 1
    for part in words.split(" .* "):
        assert part in captured.err
    assert "query.npz" in captured.err or name == "no match"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--protocol", "view"],
            "query.npz has no view among its labels (camera, scene, flare)",
        ),
        (["--protocol", "view"], "does not belong to this data; camera, scene and none would."),
        (["--protocol", "flare"], "no flare that is an integer [N], but bool [30, 2]"),
        (["--protocol", "wmveid863/other"], "wmveid863 has no protocol"),
        (["--protocol", "no_such_package.rules"], 'no module "no_such_package" to import'),
        (["--protocol", "data_tfds.samples.no_rules"], 'has no attribute "no_rules"'),
        (["--protocol", "data_tfds.samples"], "is a module, not a data_tfds.samples.Protocol"),
        (["--protocol", "none", "--rerank", "20,6"], "--rerank 20,6 must be k1,k2,lambda"),
        (["--protocol", "none", "--rerank", "20,6,x"], "--rerank 20,6,x must be"),
        (["--protocol", "none", "--rerank", ""], "must be k1,k2,lambda"),
        (["--protocol", "none", "--rerank", "200,6,0.3"], "k1 = 200"),
        (
            ["--protocol", "none", "--modalities", "red"],
            "no modality 'red', only visible",
        ),
        (["--protocol", "none", "--modalities", "visible,visible"], "name one twice"),
        (["--protocol", "none", "--json", "/dev/null/scores.json"], "cannot be written"),
        (["--protocol", "none", "--query", "nowhere.npz"], "no file nowhere.npz"),
        (["--protocol", "none", "--query", "."], "no file ."),
        (["--protocol", "none", "--query", __file__], "is not an .npz archive"),
    ],
)
def test_a_bad_option_is_one_sentence(files, capsys, options, words):
    assert evaluate_embeddings.main([*files(), *options]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_files_that_are_no_archive_or_cut_short(files, tmp_path, capsys):
    options = files()
    path = tmp_path / "query.npz"
    whole = path.read_bytes()
    np.save(tmp_path / "single.npy", np.ones(3))
    for content in (
        b"",
        whole[: len(whole) // 2],
        whole[:2000] + bytes(200) + whole[2200:],
        (tmp_path / "single.npy").read_bytes(),
    ):
        path.write_bytes(content)
        assert evaluate_embeddings.main([*options, "--protocol", "none"]) == 1
        assert "query.npz is not an .npz archive" in capsys.readouterr().err


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_is_never_a_traceback(files, tmp_path, compressed):
    options = files()
    path = tmp_path / "query.npz"
    if compressed:
        with np.load(path) as archive:
            held = dict(archive)
        np.savez_compressed(path, **held)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    failed = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        failed += evaluate_embeddings.main([*options, "--protocol", "none"])
    assert failed > 100


def test_as_a_command(files):
    command = [sys.executable, "scripts/evaluate_embeddings.py", *files(), "--protocol"]
    done = subprocess.run([*command, "camera"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("protocol camera")
    failed = subprocess.run([*command, "view"], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "query.npz has no view" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_skipped_queries_are_counted(files, capsys):
    """Three queries of an identity that the gallery does not have."""
    identity = np.where(np.arange(30) < 3, 77, arrays(0, 30)["identity"])
    assert evaluate_embeddings.main([*files({"identity": identity}), "--protocol", "scene"]) == 0
    title, _, total, *_ = capsys.readouterr().out.splitlines()
    assert title.startswith("protocol scene, ")
    assert total.split()[7:] == ["27", "3"]


def test_without_camera_and_scene_only_none_belongs_to_the_data(files, capsys):
    nothing = {label: np.full(30, -1) for label in ("camera", "scene")}
    options = files(nothing)
    for protocol in ("camera", "scene"):
        assert evaluate_embeddings.main([*options, "--protocol", protocol]) == 1
        assert "does not belong to this data; none would." in capsys.readouterr().err
    assert evaluate_embeddings.main([*options, "--protocol", "none"]) == 0


def test_any_label_may_make_junk(files, scores):
    view = {side: np.arange(rows) % 5 for side, rows in (("query", 30), ("gallery", 80))}
    result = scores(*files(*({"view": view[side]} for side in view)), "--protocol", "view")
    query, gallery = arrays(0, 30), arrays(1, 80)
    ranking = metrics.per_query(
        query["embedding"],
        gallery["embedding"],
        query["identity"],
        gallery["identity"],
        view["query"],
        view["gallery"],
    )
    assert result["mAP"] == ranking.metrics()["mAP"] != expected("none").metrics()["mAP"]


def test_a_data_sets_protocol_by_its_name(files, scores):
    result = scores(*files(), "--protocol", "wmveid863/official")
    assert result["protocol"] == "wmveid863/official"
    assert result["mAP"] == expected("camera").metrics()["mAP"]


def test_a_protocol_of_the_users_own(files, scores, tmp_path, monkeypatch, capsys):
    """With trials, between modalities whose parts have different names."""
    (tmp_path / "their_rules.py").write_text(
        "import numpy as np\n"
        "from data_tfds.samples import Protocol, Side\n"
        "def trials(labels):\n"
        "    return [np.flatnonzero(labels['camera'] == camera) for camera in (0, 1)]\n"
        "rules = Protocol('theirs', 'scene', Side('query', ('thermal',)), trials=trials)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    thermal = {"modalities": np.array(["t"]), "parts": np.array([(0, 12)])}
    visible = {"modalities": np.array(["v"]), "parts": np.array([(0, 12)])}
    result = scores(*files(thermal, visible), "--protocol", "their_rules.rules")
    camera = arrays(1, 80)["camera"]
    assert (result["protocol"], result["trials"]) == ("theirs", 2)
    assert result["gallery"] == ((camera == 0).sum() + (camera == 1).sum()) / 2
    lines = capsys.readouterr().out.splitlines()
    assert "2 trials" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["all", "+-", "clean", "+-", "flared", "+-"]


def test_files_without_flare_tell_no_subsets(files, scores, capsys):
    result = scores(*files({"flare": None}), "--protocol", "camera")
    assert not {"clean", "flared"} & result.keys()
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_score_needs_no_jax():
    code = "import sys, facenet_jax.commands.score; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


LEAST = dict.fromkeys(("parts", "modalities", "flare", "name", "scene"))


def test_files_of_others_need_only_what_the_protocol_needs(files, scores):
    whole = scores(*files(), "--protocol", "camera")
    least = scores(*files(LEAST, LEAST), "--protocol", "camera")
    assert least["mAP"] == whole["mAP"]
    assert least["modalities"] == []
    assert "clean" not in least


def foreign(tmp_path, side, table):
    """E.npy with E.csv, as the options of the command; `table` is the text of the latter."""
    seed, rows = {"query": (0, 30), "gallery": (1, 80)}[side]
    np.save(tmp_path / f"{side}.npy", arrays(seed, rows)["embedding"])
    if table is not None:
        (tmp_path / f"{side}.csv").write_text(table)
    return [f"--{side}", str(tmp_path / f"{side}.npy")]


def table(side, identity=str, camera=str):
    held = arrays(*{"query": (0, 30), "gallery": (1, 80)}[side])
    rows = zip(held["identity"].tolist(), held["camera"].tolist(), strict=True)
    return "\n".join(["identity, camera", *(f"{identity(i)}, {camera(c)}" for i, c in rows)])


@pytest.mark.parametrize(
    ("identity", "camera"), [(str, str), (lambda i: f"car-{'zyxwvu'[i]}", "gate {}".format)]
)
def test_an_npy_with_a_csv_beside_it(tmp_path, files, scores, identity, camera):
    """Names count as numbers do, the same in both files."""
    options = [
        option
        for side in ("query", "gallery")
        for option in foreign(tmp_path, side, table(side, identity, camera))
    ]
    found = scores(*options, "--protocol", "camera")
    assert found["mAP"] == scores(*files(), "--protocol", "camera")["mAP"]


def test_names_are_numbered_over_both_sides(files, scores):
    """The queries' names are some of the gallery's, so counted apart they would be others."""
    changes = []
    for seed, rows, keep in ((0, 30, (3, 4, 5)), (1, 80, range(6))):
        identity = arrays(seed, rows)["identity"]
        names = np.array([f"n{i if i in keep else 3}" for i in identity])
        numbers = np.where(identity < min(keep), 3, identity)
        changes.append(({"identity": names}, {"identity": numbers}))
    (names, numbers), (gallery_names, gallery_numbers) = changes
    by_name = scores(*files(names, gallery_names), "--protocol", "none")
    by_number = scores(*files(numbers, gallery_numbers), "--protocol", "none")
    assert by_name["mAP"] == by_number["mAP"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "query.csv; it must stand beside the .npy file"),
        ("identity,camera\n1,2", "has 30 embeddings and"),
        ("identity,camera\n1", "does not fit its header identity,camera: line 2 has not as many"),
        ("identity,camera", "no row, or one name twice"),
        ("identity,identity\n1,1", "no row, or one name twice"),
        ("", "is no CSV table in UTF-8 with a header"),
        ("camera\n" + 30 * "1\n", "has no array identity"),
        ("identity\n" + 30 * "1\n", "query.npy has no camera among its labels"),
        ("identity,camera\n" + 30 * "1,\n", "query.npy has no camera for 30 rows"),
    ],
)
def test_a_table_that_does_not_fit_is_one_sentence(tmp_path, capsys, text, said):
    options = [*foreign(tmp_path, "query", text), *foreign(tmp_path, "gallery", table("gallery"))]
    assert evaluate_embeddings.main([*options, "--protocol", "camera"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_part_that_saw_other_modalities_is_said(files, scores, capsys):
    mixed = {"mixed": np.array(["visible", "near_infrared"])}
    options = [*files(mixed, mixed), "--protocol=camera"]
    for modalities, words in (
        ("visible", "its visible part holds tokens of the others, so this is no score of visible"),
        ("visible,near_infrared", "so this is no score of visible + near_infrared alone"),
        ("thermal", None),
        ("visible,near_infrared,thermal", None),
    ):
        result = scores(*options, f"--modalities={modalities}")
        said = capsys.readouterr().err
        assert (words in said) if words else (said == "" and "note" not in result)
        assert result.get("note", "") == said.strip()


def test_blinded_parts_are_completed_as_training_does(files, scores, capsys):
    flare = {"flare": np.concatenate([arrays(0, 30)["flare"], np.zeros((30, 1), bool)], axis=1)}
    more = {"flare": np.concatenate([arrays(1, 80)["flare"], np.zeros((80, 1), bool)], axis=1)}
    options = files(flare, more)
    found = scores(*options, "--protocol", "camera", "--complete", "3,2")
    assert "blinded parts from 3 neighbours (alpha 2)" in capsys.readouterr().out
    assert found["complete"] == {"neighbours": 3, "alpha": 2.0}
    query, gallery = Embeddings.read_all(*options[1::2])
    blinded = completion.blinded(query, gallery)
    how = completion.Completion(3, 2.0, *blinded)
    expected = evaluate(query, gallery, protocols.by_name("camera"), complete=how).metrics()
    assert found["mAP"] == expected["mAP"]
    assert found["mAP"] != scores(*options, "--protocol", "camera")["mAP"]
    assert evaluate_embeddings.main([*options, "--protocol", "camera", "--complete", "3"]) == 1
    assert "--complete 3 must be neighbours,alpha" in capsys.readouterr().err
