"""Short runs of scripts/chaos.py; the long ones are slow. docs/reliability.md has the counts."""

import random

import pytest

from tests.support import fuzz, kills, mutations
from tests.support.fuzz import NAMES

CASES = 40  # of each reader; the slow test runs 1,000


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return fuzz.readers(tmp_path_factory.mktemp("fuzz"))


def test_every_reader_has_a_name_here(readers):
    assert tuple(readers) == NAMES


@pytest.mark.filterwarnings("ignore")  # of Pillow, and of Orbax's threads
@pytest.mark.parametrize("name", NAMES)
def test_a_spoiled_file_is_read_right_or_ends_in_one_sentence(readers, name):
    found = fuzz.cases(name, readers[name], 0, range(CASES))
    assert not found.failures, "\n".join(found.failures)
    assert found.right + found.sentences == CASES
    assert found.slowest < 5
    assert found.grown < 300e6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_cases_of_each_reader(readers, name):
    found = fuzz.cases(name, readers[name], 1, range(1000))
    assert not found.failures, "\n".join(found.failures)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path):
    runs = kills.Kills(tmp_path, seed=0)
    runs.read_only()
    runs.chain(0)
    runs.disk_full(0)
    assert not runs.outcome.failures, "\n".join(runs.outcome.failures)
    assert runs.outcome.equal == 2


def test_the_fuzzer_sees_what_is_wrong():
    """Errors that are no sentence, long ones and hangs are failures; a case can be repeated."""
    seen = []

    def read(data):
        seen.append(data)
        raise [ValueError("x"), fuzz.UserError("y " * 5000), fuzz.Hang()][len(seen) % 3]

    reader = fuzz.Reader([b"abc" * 50], mutations.of_bytes, read)
    found = fuzz.cases("x", reader, 3, range(9))
    assert len(found.failures) == 9
    again = fuzz.cases("x", reader, 3, range(4, 5))
    assert seen[9] == seen[4]
    assert again.failures
    assert mutations.of_bytes(b"abc" * 50, random.Random(1)) != b"abc" * 50
