"""Readers given anything at all: bytes, JSON values, names. They give something or one sentence."""

import functools
import json
import pathlib
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax.retrieval import protocols
from tests.support import fuzz
from tests.support.fuzz import NAMES

SCRATCH = tempfile.TemporaryDirectory()  # until the process ends
quick = settings(
    max_examples=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@functools.cache
def readers():
    return fuzz.readers(pathlib.Path(SCRATCH.name))


def ends_well(read, data):
    """Checks that a reader gives something or one sentence; any other error comes through."""
    text = ""
    try:
        read(data)
    except UserError as error:
        text = str(error)
    assert text.isprintable()
    assert len(text) < fuzz.LONGEST


@pytest.mark.parametrize("name", [name for name in NAMES if name != "checkpoint"])
def test_any_bytes(name):
    @quick
    @given(st.binary(max_size=200))
    def check(data):
        ends_well(readers()[name].read, data)

    check()


@pytest.mark.parametrize("name", ["config.json", "spec.json", "data.json", "metrics.jsonl"])
def test_any_json(name):
    @quick
    @given(VALUES, st.booleans())
    def check(value, inside):
        seed = readers()[name].seeds[0].splitlines()[0] if name == "metrics.jsonl" else None
        seed = json.loads(seed or readers()[name].seeds[0])
        for key in list(seed)[:3] if inside else ():
            ends_well(readers()[name].read, json.dumps({**seed, key: value}).encode())
        ends_well(readers()[name].read, json.dumps(value).encode())

    check()


@quick
@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=12), max_size=4))
def test_any_file_names(parts):
    name = "/".join(["train", *parts]).encode(errors="surrogateescape")
    ends_well(readers()["names"].read, readers()["names"].seeds[0] + b"\n" + name)


@quick
@given(st.text(max_size=30))
def test_any_name_of_a_protocol(name):
    def read(text):
        assert isinstance(protocols.by_name(text), Protocol)

    ends_well(read, name)
