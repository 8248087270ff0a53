import time

from facenet_jax.runtime import progress


def seen(monkeypatch, capsys, items=3, **values):
    for name, value in values.items():
        monkeypatch.setattr(progress, name, value)
    found = []
    for item in progress.shown(range(items), "embedding", items, "samples"):
        time.sleep(0.02)
        found.append(item)
    assert found == [*range(items)]
    return capsys.readouterr().err


def test_what_is_over_in_seconds_shows_nothing(monkeypatch, capsys):
    assert seen(monkeypatch, capsys) == ""


def test_what_takes_longer_says_how_far_it_is(monkeypatch, capsys):
    said = seen(monkeypatch, capsys, FILE=0.01)
    assert "embedding:" in said
    assert "/3" in said
    assert "samples/s" in said or "s/ samples" in said


def test_other_processes_are_quiet(monkeypatch, capsys):
    monkeypatch.setattr(progress.Bar, "quiet", True)
    assert seen(monkeypatch, capsys, FILE=0.0) == ""
