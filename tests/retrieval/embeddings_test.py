"""The .npz file of embeddings: round trip, files of older runs, what is refused."""

import dataclasses
import io
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from etils.epath import backend
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tfds.errors import UserError
from data_tfds.paths import open_path
from facenet_jax.retrieval import Embeddings
from facenet_jax.retrieval import files as embedding_files
from tests.support.fake_gcs import Bucket


def embeddings(rows=6, **change):
    generator = np.random.default_rng(rows)
    held = {
        "embedding": generator.normal(size=(rows, 7)).astype(np.float32),
        "parts": {"visible": (0, 3), "thermal": (3, 7)},
        "identity": np.arange(rows, dtype=np.int32) % 3,
        "name": np.array([f"sample-{row}" for row in range(rows)]),
        "labels": {
            "camera": np.arange(rows, dtype=np.int32),
            "flare": np.arange(2 * rows).reshape(rows, 2) % 3 == 0,
            "identity_name": np.array([f"PLATE {row % 3}" for row in range(rows)]),
        },
    }
    return Embeddings(**{**held, **change})


def check_equal(actual, expected):
    assert actual.parts == expected.parts
    assert list(actual.parts) == list(expected.parts)
    assert actual.labels.keys() == expected.labels.keys()
    for name, values in {"embedding": expected.embedding, **expected.by_name}.items():
        found = actual.embedding if name == "embedding" else actual.by_name[name]
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9),
    st.dictionaries(st.text("abc_é ", min_size=1, max_size=5), st.integers(0, 3), max_size=4),
    st.integers(0, 3),
)
def test_what_is_written_is_read(tmp_path_factory, rows, labels, parts):
    generator = np.random.default_rng(0)
    expected = embeddings(
        rows,
        labels={
            name: generator.integers(9, size=(rows, width) if width else rows)
            for name, width in labels.items()
        },
        parts={f"part {number}": (number, number + 2) for number in range(parts)},
    )
    path = tmp_path_factory.mktemp("files") / "new" / "side.npz"
    expected.write(path)
    actual = Embeddings.read(path)
    assert actual.origin == str(path)
    check_equal(actual, expected)
    assert [file.name for file in path.parent.iterdir()] == ["side.npz"]  # no draft is left


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(Bucket, "home", tmp_path)
    monkeypatch.setattr(Bucket, "broken", None)
    for name in ("gs", "gcs"):
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, name, Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield Bucket
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_a_bucket_takes_and_gives_the_file(bucket, monkeypatch):
    path = open_path("gs://bucket/run/embeddings/query.npz")
    embeddings().write(path)
    assert bucket.names() == ["bucket/run/embeddings/query.npz"]
    check_equal(Embeddings.read(str(path)), embeddings())
    with pytest.raises(UserError, match="no file gs://bucket/nothing"):
        Embeddings.read("gs://bucket/nothing.npz")
    monkeypatch.setattr(bucket, "broken", PermissionError("no rights"))
    with pytest.raises(UserError, match=r"gs://bucket/run/.* cannot be read: no rights"):
        Embeddings.read(path)


def test_the_arrays_of_a_file(tmp_path):
    embeddings().write(tmp_path / "side.npz")
    with np.load(tmp_path / "side.npz") as file:
        labels = ["camera", "flare", "identity_name"]
        assert {*file.files} == {"embedding", "parts", "modalities", "identity", "name", *labels}
        assert file["parts"].dtype == np.int32
        assert file["parts"].tolist() == [[0, 3], [3, 7]]
        assert file["modalities"].tolist() == ["visible", "thermal"]


def test_a_file_of_an_older_run_is_read(tmp_path):
    """Three parts, flare of two modalities, camera and scene that are always there."""
    rows = 4
    held = {
        "embedding": np.ones((rows, 6), np.float32),
        "parts": np.array([(0, 2), (2, 4), (4, 6)], np.int32),
        "modalities": np.array(["visible", "near_infrared", "thermal"]),
        "identity": np.arange(rows, dtype=np.int32),
        "camera": np.zeros(rows, np.int32),
        "scene": np.full(rows, -1, np.int32),
        "flare": np.array([(0, 0), (0, 1), (1, 0), (1, 1)], bool),
        "name": np.array(["a", "b", "c", "d"]),
    }
    np.savez(tmp_path / "query.npz", **held)
    read = Embeddings.read(str(tmp_path / "query.npz"))
    assert list(read.labels) == ["camera", "scene", "flare"]
    assert read.parts == {"visible": (0, 2), "near_infrared": (2, 4), "thermal": (4, 6)}
    assert read.flared.tolist() == [False, True, True, True]


def test_without_a_flare_label_nothing_is_said_of_flare():
    assert embeddings(labels={}).flared is None


def test_select_takes_columns_by_part():
    side = embeddings()
    chosen = side.select(["thermal", "visible"])
    columns = [3, 4, 5, 6, 0, 1, 2]
    np.testing.assert_array_equal(chosen.embedding, side.embedding[:, columns])
    assert chosen.parts == {"thermal": (0, 4), "visible": (4, 7)}
    assert list(chosen.parts) == ["thermal", "visible"]
    again = chosen.select(["visible"])
    np.testing.assert_array_equal(again.embedding, side.embedding[:, :3])
    assert again.labels is side.labels


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["red"], "There is no modality 'red', only visible, thermal"),
        (["visible", "visible"], "name one twice"),
        ([], "no modality to compare by"),
    ],
)
def test_parts_that_cannot_be_selected(parts, words):
    with pytest.raises(UserError, match=words):
        embeddings().select(parts)


BAD = {
    "integers": ("embedding", np.ones((6, 7), int), r"int64 \[6, 7\], not floating"),
    "identities": ("identity", np.arange(5), r"array identity .* \[5\], not integer \[6\]"),
    "names": ("name", np.arange(6), r"array name .* not str \[6\]"),
    "negative part": ("parts", {"a": (-1, 3)}, r"\[\[-1, 3\]\]"),
    "wide part": ("parts", {"a": (3, 8)}, "7 wide"),
    "empty part": ("parts", {"a": (3, 3)}, "not column ranges"),
    "present": ("labels", {"present": np.ones(6, bool)}, r"not bool \[6, M\]"),
    "view": ("labels", {"view": np.ones(6)}, r"array view .* not integer \[6\]"),
    "plates": ("labels", {"identity_name": np.ones(6)}, "array identity_name .* not str"),
    "cube": ("labels", {"x": np.ones((6, 2, 2))}, r"not an array \[6, M\]"),
    "scalar": ("labels", {"x": np.ones(())}, r"not an array \[6\]"),
    "same name": ("labels", {"parts": np.ones(6)}, "label of the embeddings is called parts"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_do_not_fit_are_one_sentence(name):
    field, value, words = BAD[name]
    with pytest.raises(UserError, match=words):
        embeddings(**{field: value})


def side(path, **changes):
    """A file of six rows."""
    arrays = {
        "embedding": embeddings().embedding.astype(np.float64),
        "parts": np.zeros((0, 2), int),
        "modalities": np.zeros(0, str),
        "identity": np.arange(6),
        "name": np.array(list("abcdef")),
    }
    np.savez_compressed(path, **{**arrays, **changes})
    return path


@pytest.mark.parametrize("scale", [1e-300, 1e-42, 1e39, 1e290])
def test_rows_beyond_the_range_of_float32_keep_their_direction(tmp_path, scale):
    plain = embeddings().embedding.astype(np.float64)
    embedding = plain.copy()
    embedding[4] *= scale
    found = Embeddings.read(side(tmp_path / "side.npz", embedding=embedding)).embedding
    assert found.dtype == np.float32
    cosine = found[4] @ plain[4] / np.linalg.norm(found[4]) / np.linalg.norm(plain[4])
    assert cosine == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(found[:4], plain[:4].astype(np.float32))


def test_values_that_are_not_finite_are_named_by_row(tmp_path):
    embedding = embeddings().embedding.astype(np.float64)
    embedding[4, 1] = np.inf
    path = side(tmp_path / "side.npz", embedding=embedding)
    with pytest.raises(UserError, match=r"side.npz .* first in row 4 \(e\)"):
        Embeddings.read(path)


def test_what_a_header_only_claims_takes_no_memory(tmp_path, monkeypatch):
    """A shape of 144 GB in a file of 100 bytes, and zeros that unpack to a thousandfold."""
    path = side(tmp_path / "side.npz")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (3_000_000_000, 12)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, header.getvalue() if name == "embedding.npy" else content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"shape \(3000000000, 12\) has 0 bytes"):
            Embeddings.read(path)
        zeros = tmp_path / "zeros.npz"
        with (
            zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("embedding.npy", "w") as file,
        ):
            for _ in range(64):
                file.write(bytes(2**20))
        monkeypatch.setattr(embedding_files, "HARMLESS", 2**24)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"claim 67108864 bytes, more than 100 times"):
            Embeddings.read(zeros)
        assert time.monotonic() - start < 2
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x05\x06" + bytes(18), b"PK", b"not an archive" * 50, None]
)
def test_what_is_no_archive_is_one_sentence(tmp_path, content):
    path = tmp_path / "side.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"side\.npz") as error:
        Embeddings.read(path)
    assert len(str(error.value).splitlines()) == 1


def test_embeddings_are_not_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        embeddings().identity = np.zeros(6, int)
