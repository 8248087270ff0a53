"""What data.json of a workdir says of its data, and what it refuses."""

import pytest

from data_tfds.errors import UserError
from facenet_jax.runtime import data_record
from tests.support import tiny_run as tiny

BEFORE = {"train": "a" * 32, "gallery": "b" * 32}
AFTER = {"train": "c" * 32, "gallery": "b" * 32}


def config(root, changed="error"):
    return tiny.config(data__root=root, data__changed=changed)


def test_the_same_data_go_on_and_their_place_is_noted(tmp_path):
    data_record.write(tmp_path, config("/one"), BEFORE, afresh=True)
    assert not data_record.refuse_other_data(tmp_path, config("/two"), BEFORE)
    data_record.write(tmp_path, config("/two"), BEFORE)
    assert data_record.read(tmp_path) == {"root": "/two", "digests": BEFORE, "earlier": []}
    only = {"gallery": BEFORE["gallery"]}  # an evaluation reads no training split
    assert not data_record.refuse_other_data(tmp_path, config("/two"), only)
    data_record.write(tmp_path, config("/two"), only)
    assert data_record.read(tmp_path)["digests"] == BEFORE


def test_other_data_are_refused_unless_accepted_and_leave_a_trace(tmp_path):
    data_record.write(tmp_path, config("/one"), BEFORE, afresh=True)
    with pytest.raises(UserError) as refused:
        data_record.refuse_other_data(tmp_path, config("/two"), AFTER)
    text = str(refused.value)
    assert f"train was {'a' * 32} and is {'c' * 32} (from /one; now /two)" in text
    assert "--config.data.changed=accept" in text
    accepting = config("/two", "accept")
    assert data_record.refuse_other_data(tmp_path, accepting, AFTER)
    data_record.write(tmp_path, accepting, AFTER)
    found = data_record.read(tmp_path)
    assert found["digests"] == AFTER
    assert found["earlier"] == [{"root": "/one", "digests": BEFORE}]


def test_an_older_workdir_knows_nothing_and_learns(tmp_path):
    assert not data_record.refuse_other_data(tmp_path, config("/one"), BEFORE)
    data_record.write(tmp_path, config("/one"), BEFORE)
    assert data_record.differing(tmp_path, AFTER) == ["train"]


def test_a_first_attempt_that_trained_nothing_binds_nobody(tmp_path):
    data_record.write(tmp_path, config("/one"), BEFORE, afresh=True)
    data_record.write(tmp_path, config("/two"), AFTER, afresh=True)
    assert data_record.read(tmp_path) == {"root": "/two", "digests": AFTER, "earlier": []}


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", '{"digests": {"train": 5}}'])
def test_a_damaged_record_is_one_sentence(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data\.json (is damaged|cannot be read)"):
        data_record.read(tmp_path)
