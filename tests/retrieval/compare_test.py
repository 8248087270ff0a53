"""Two runs on the same queries."""

import dataclasses
import json

import numpy as np
import pytest

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax import commands, retrieval
from facenet_jax import config as configs
from facenet_jax.retrieval import breakdown, compare, intervals
from facenet_jax.runtime.writers import write_json
from tests.retrieval.breakdown_test import CAMERA, sides


def shuffled(side, order):
    labels = {name: values[order] for name, values in side.labels.items()}
    fields = {name: getattr(side, name)[order] for name in ("embedding", "identity", "name")}
    return dataclasses.replace(side, labels=labels, **fields)


def noisy(side, scale):
    rng = np.random.default_rng(1)
    noise = scale * rng.normal(size=side.embedding.shape)
    return dataclasses.replace(side, embedding=np.float32(side.embedding + noise))


def test_queries_are_matched_by_name_and_the_difference_is_paired():
    query, gallery = sides()
    first = retrieval.evaluate(query, gallery, CAMERA)
    order = np.random.default_rng(0).permutation(len(query))
    other = noisy(shuffled(query, order), 1.5)
    second = retrieval.evaluate(other, gallery, CAMERA)
    found = compare.pair(first, second, query, other)
    assert found.name.tolist() == query.name.tolist()
    _, values = breakdown.values(second, "mAP")
    assert np.array_equal(found.second["mAP"], values[np.argsort(order)])
    row = compare.differences(found)["mAP"]
    expected = intervals.paired(found.first["mAP"], found.second["mAP"], query.identity)
    assert (row["difference"], row["low"], row["high"]) == tuple(expected)
    assert row["difference"] == pytest.approx(row["first"] - row["second"])
    same = compare.differences(compare.pair(first, first, query, query))
    assert all(each["low"] == each["high"] == 0 for each in same.values())
    assert "*" not in compare.table(same, "a", "b", 20).splitlines()[2]


def test_other_queries_or_protocols_cannot_be_compared():
    query, gallery = sides()
    first = retrieval.evaluate(query, gallery, CAMERA)
    none = retrieval.evaluate(query, gallery, Protocol("none"))
    with pytest.raises(UserError, match="ranked by camera, the other by none"):
        compare.pair(first, none, query, query)
    renamed = dataclasses.replace(query, name=np.char.add("x", query.name))
    with pytest.raises(UserError, match="have 20 and 20 queries, of which 0 agree"):
        compare.pair(first, first, query, renamed)


def test_the_command(tmp_path, capsys):
    query, gallery = sides()
    for name, scale in (("good", 0.0), ("bad", 3.0)):
        folder = tmp_path / name / "embeddings"
        for file, side in (("query", noisy(query, scale)), ("gallery", gallery)):
            side.write(folder / f"{file}.npz")
        (tmp_path / name / "result.json").write_text('{"protocol": "camera"}')
    folders = [str(tmp_path / name) for name in ("good", "bad")]
    out = tmp_path / "out.json"
    assert commands.main(["compare", *folders, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    row = found["scores"]["mAP"]
    assert f"{100 * row['difference']:+.1f} [" in said
    assert row["low"] > 0
    assert len(found["queries"]["first"]) == 20
    assert commands.main(["compare", str(tmp_path / "nothing"), folders[0]]) != 0
    assert "There is no folder" in capsys.readouterr().err


def test_each_run_is_matched_as_its_config_says(tmp_path, capsys):
    query, gallery = sides()
    folders = [tmp_path / name for name in ("plain", "centred")]
    for folder in folders:
        for file, side in (("query", query), ("gallery", gallery)):
            side.write(folder / "embeddings" / f"{file}.npz")
        (folder / "result.json").write_text('{"protocol": "camera"}')
        config = configs.default_config("three_stream")
        config.evaluate.centre = folder.name == "centred"
        write_json(folder / "config.json", config.to_dict())
    out = tmp_path / "out.json"
    assert commands.main(["compare", *map(str, folders), "--json", str(out)]) == 0
    assert "B with evaluate.centre=True, evaluate.flare_weight=1" in capsys.readouterr().out
    found = json.loads(out.read_text())["scores"]["mAP"]
    plain = retrieval.evaluate(query, gallery, CAMERA).metrics()["mAP"]
    centred = retrieval.evaluate(query, gallery, CAMERA, centre=True).metrics()["mAP"]
    assert plain != centred
    assert (found["first"], found["second"]) == pytest.approx((plain, centred))
