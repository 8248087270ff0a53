"""Parquet files of embeddings and of every query."""

import json

import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax import retrieval
from facenet_jax.commands import score
from facenet_jax.retrieval import Embeddings, protocols, tables

parquet = pytest.importorskip("pyarrow.parquet", reason="needs .[tables]")


def side(rows, seed):
    rng = np.random.default_rng(seed)
    labels = {
        "camera": np.arange(rows) % 3,
        "identity_name": np.array([f"van {i % 4}" for i in range(rows)]),
        "flare": rng.random((rows, 2)) < 0.5,
    }
    embedding = rng.normal(size=(rows, 6)).astype(np.float32)
    names = np.array([f"s{seed}_{i}" for i in range(rows)])
    parts = {"visible": (0, 3), "thermal": (3, 6)}
    return Embeddings(embedding, parts, np.arange(rows) % 4, names, labels)


def test_the_command_writes_what_was_scored(tmp_path, capsys):
    query, gallery = side(5, 1), side(12, 2)
    for name, each in (("q", query), ("g", gallery)):
        each.write(tmp_path / f"{name}.npz")
    files = [f"--query={tmp_path / 'q.npz'}", f"--gallery={tmp_path / 'g.npz'}"]
    assert score.main([*files, "--protocol=camera", f"--tables={tmp_path / 'out'}"]) == 0
    found = parquet.read_table(tmp_path / "out" / "gallery.parquet")
    assert json.loads(found.schema.metadata[b"parts"]) == {"visible": [0, 3], "thermal": [3, 6]}
    np.testing.assert_array_equal(np.array(found["embedding"].to_pylist()), gallery.embedding)
    np.testing.assert_array_equal(np.array(found["flare"].to_pylist()), gallery.labels["flare"])
    assert found["identity_name"].to_pylist() == gallery.labels["identity_name"].tolist()
    assert found["camera"].to_pylist() == gallery.labels["camera"].tolist()
    result = retrieval.evaluate(query, gallery, protocols.by_name("camera")).trials[0]
    each = parquet.read_table(tmp_path / "out" / "per_query.parquet").to_pydict()
    assert each["query"] == result.query.tolist()
    assert each["name"] == query.name[result.query].tolist()
    np.testing.assert_allclose(each["average_precision"], result.average_precision)
    assert each["first_match"] == result.first_match.tolist()


def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "PACKAGE", "pyarrov")
    with pytest.raises(UserError, match=r"need pyarrov, .*facenet_jax\[tables\]"):
        tables.refuse_missing()
