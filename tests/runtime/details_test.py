"""The file of tracebacks and of other packages' lines."""

import logging as python_logging
import sys
import tempfile
import threading

import pytest

from facenet_jax.runtime import details


@pytest.fixture
def kept(monkeypatch):
    """Details that are installed during a test."""
    found = details.Details()
    hooks = threading.excepthook, sys.unraisablehook
    found.install()
    yield found
    python_logging.getLogger().removeHandler(found)
    threading.excepthook, sys.unraisablehook = hooks


def test_what_threads_and_packages_say_is_kept_and_not_shown(kept, tmp_path, capfd):
    kept.folder = tmp_path

    def fail():
        raise ZeroDivisionError("in a thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    python_logging.getLogger("orbax").error("a package's word")
    try:
        raise ValueError("the end") from KeyError("the cause")
    except ValueError as error:
        path = kept.write("title", error)
    assert path == tmp_path / "details.log"
    text = path.read_text()
    for words in ("ZeroDivisionError: in a thread", "a package's word", "the cause", "the end"):
        assert words in text
    assert "in a thread" not in capfd.readouterr().err


def test_a_folder_that_takes_nothing_is_passed_over(tmp_path, monkeypatch):
    found = details.Details()
    found.folder = tmp_path / "absent"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert found.write("title", ValueError("x")) == tmp_path / "facenet_jax-details.log"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    assert found.write("title", ValueError("x")) is None


def test_it_is_bounded(tmp_path):
    found = details.Details()
    found.folder = tmp_path
    for number in range(5000):
        found.emit(python_logging.makeLogRecord({"msg": f"line {number}"}))
    path = found.write("title", ValueError("x" * 10_000))
    assert path.stat().st_size < 200_000
    assert len(details.sentence(ValueError("x" * 10_000))) < 300
