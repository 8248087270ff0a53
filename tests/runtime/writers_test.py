import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from facenet_jax.runtime.writers import Writer, drop_after, write_json


def test_lines_and_events_say_the_same(tmp_path):
    writer = Writer(tmp_path)
    writer.write(1, {"train/loss": np.float32(0.5), "train/learning_rate": 1e-3})
    writer.write(2, {"test/mAP": 0.25})
    # Line by line: a killed process has lost none of them.
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    writer.close()
    assert [line["step"] for line in lines] == [1, 2]
    assert (lines[0]["train/loss"], lines[0]["train/learning_rate"]) == (0.5, 1e-3)
    (path,) = (tmp_path / "tensorboard").iterdir()
    read = {
        (event.step, value.tag): value.tensor.float_val[0]
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    }
    expected = {(1, "train/loss"): 0.5, (1, "train/learning_rate"): 1e-3, (2, "test/mAP"): 0.25}
    assert read == pytest.approx(expected)


def test_a_second_writer_appends(tmp_path):
    for step in (1, 2):
        writer = Writer(tmp_path)
        writer.write(step, {"x": step})
        writer.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_loss_that_is_not_finite_is_written_too(tmp_path):
    writer = Writer(tmp_path)
    writer.write(1, {"x": float("nan"), "y": float("inf")})
    writer.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert np.isnan(line["x"])
    assert np.isinf(line["y"])


def test_drop_after_removes_later_steps_and_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = [json.dumps({"step": step, "x": 1.0}) for step in (1, 2, 3)]
    path.write_text("\n".join([*kept, '{"step": 4, "x": 2.0}', '{"step": 3, "x":']))
    drop_after(path, 3)
    assert path.read_text() == "".join(line + "\n" for line in kept)
    drop_after(path, 0)
    assert path.read_text() == ""
    drop_after(tmp_path / "absent.jsonl", 3)
    assert not (tmp_path / "absent.jsonl").exists()


@pytest.mark.parametrize(
    "line", [b"\xff\xfe{}", b"[1]", b"5", b"null", b'{"step": "a"}', b"[" * 10_000, b'{"x": 1}']
)
def test_drop_after_removes_damaged_lines(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "x": 1.0}\n'
    path.write_bytes(good + line + b"\n" + good)
    drop_after(path, 3)
    assert path.read_bytes() == good + good


def test_drop_after_removes_an_evaluation_that_is_made_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "train/loss": 1}\n', '{"step": 1, "test/mAP": 1}\n']
    path.write_text("".join(lines))
    drop_after(path, 1)
    assert path.read_text() == "".join(lines)
    drop_after(path, 1, evaluated=False)
    assert path.read_text() == lines[0]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": [1, 2]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    assert [x.name for x in tmp_path.iterdir()] == ["result.json"]
