"""Names on the Hugging Face hub, with a stand-in for the package: no test uses a network."""

import sys
import types

import pytest

import facenet_jax
from data_tfds.errors import UserError
from facenet_jax.weights import hub


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The package, whose repositories lie in `tmp_path`; what was asked of it."""
    asked = []

    def snapshot_download(repository, allow_patterns=None):
        asked.append((repository, allow_patterns))
        if repository == "me/gone":
            raise OSError("404 Client Error.\nRepository not found")
        return str(tmp_path)

    module = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_a_repository_or_a_folder_of_it_is_fetched(fake, tmp_path):
    assert hub.fetched("hf://me/vehicles") == tmp_path
    assert hub.fetched("hf://me/vehicles/runs/demo") == tmp_path / "runs" / "demo"
    assert fake == [("me/vehicles", None), ("me/vehicles", ["runs/demo/*"])]
    assert not hub.is_hub("gs://bucket/x")


def test_a_network_is_loaded_by_its_name_on_the_hub(fake, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):  # fetched, and no workdir
        facenet_jax.load("hf://me/vehicles")
    assert fake == [("me/vehicles", None)]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("hf://vehicles", "hf://vehicles names no repository; write hf://OWNER/NAME"),
        ("hf://me/gone", "hf://me/gone could not be fetched: 404 Client Error"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(fake, url, sentence):
    with pytest.raises(UserError, match=sentence):
        hub.fetched(url)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub.*\[hub\]"):
        facenet_jax.load("hf://me/vehicles")
