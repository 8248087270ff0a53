"""Names to modules and objects, and one sentence where there is none."""

import pytest

from data_tfds import errors, samples
from data_tfds.door import find
from data_tfds.errors import UserError


def test_a_word_is_a_module_of_the_room():
    assert find("errors", "data_tfds", "thing") is errors


def test_a_path_is_a_module_or_an_attribute():
    assert find("data_tfds.samples", "data_tfds", "thing") is samples
    assert find("data_tfds.samples.Protocol", "data_tfds", "thing") is samples.Protocol


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", 'data set is "nothing" and must be one of folder, .* import path'),
        ("", 'data set is "" and must be one of'),
        ("no_such.thing", 'no module "no_such" to import'),
        ("data_tfds.samples.no", 'data_tfds.samples has no attribute "no"'),
        (".sets", "is no import path"),
        ("a..b", "is no import path"),
        ("data_tfds.", "is no import path"),
    ],
)
def test_a_name_of_nothing_is_one_sentence(name, words):
    with pytest.raises(UserError, match=words) as error:
        find(name, "data_tfds.sets", "data set")
    assert len(str(error.value).splitlines()) == 1


def test_an_error_inside_their_module_comes_through(tmp_path, monkeypatch):
    (tmp_path / "their_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        find("their_broken.thing", "data_tfds.sets", "data set")
