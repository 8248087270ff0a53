"""The forms that JSON files of a workdir must have."""

import json

import pytest

from data_tfds.errors import UserError
from facenet_jax.runtime import form
from facenet_jax.runtime.workdir import read_json

ROW = {"mAP": 0.5, "mINP": 0.2, "cmc": {"1": 0.4, "5": 0.6, "10": 1}}
ROW |= {"step": 3, "queries": 8, "valid_queries": 7, "gallery": 9}


@pytest.mark.parametrize(
    ("value", "pattern", "right"),
    [
        (3, int, True),
        (True, int, False),
        (True, bool, True),
        (3, form.NUMBER, True),
        (float("nan"), form.NUMBER, False),
        (float("inf"), float, False),
        ("3", form.NUMBER, False),
        (["a", "b"], [str], True),
        (["a", 1], [str], False),
        ("ab", [str], False),
        ({}, {"a": int}, False),
        ({"a": 1, "b": None}, {"a": int}, True),
        ({"a": 1, "b": None}, {"a": int, form.EACH: int}, False),
        ({"a": 1}, {"a": int, "b?": int}, True),
        ({"a": 1, "b": "x"}, {"a": int, "b?": int}, False),
        ({"protocol": "x", "last": ROW}, form.RESULT, True),
        ({"protocol": "x", "last": ROW | {"step": 3.5}}, form.RESULT, False),
        ({"protocol": "x", "last": ROW | {"cmc": {"1": 0.5}}}, form.RESULT, False),
    ],
)
def test_a_value_fits_its_pattern_or_not(value, pattern, right):
    assert form.fits(value, pattern) is right


def test_a_damaged_file_is_one_sentence(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"protocol": "x", "last": {"mAP": 0.5}}))
    with pytest.raises(UserError, match=r"result.json is damaged: it lacks what .* Remove it"):
        read_json(path, tmp_path, form.RESULT)
