"""The rendered tree: WMVeID863's layout, the same bytes from any number of workers."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_tfds.errors import UserError
from data_tfds.rendered import tree as rendered_tree

SMALL = {"train_identities": 3, "test_identities": 2, "train_samples": 3, "test_samples": 7}
NAME = re.compile(r"(\d{4})_v([1-8])_n([01])_s(\d{3})_(\d{3})\.jpg")


def contents(root: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered") / "set"
    rendered_tree.write_tree(root, **SMALL, workers=1)
    return root


def test_layout_and_names(tree):
    assert sorted(p.name for p in tree.iterdir()) == ["query", "rendered.json", "test", "train"]
    assert sorted(p.name for p in (tree / "train").iterdir()) == ["0001", "0002", "0003"]
    assert sorted(p.name for p in (tree / "test").iterdir()) == ["0004", "0005"]
    assert sorted(p.name for p in (tree / "query").iterdir()) == ["0004", "0005"]
    for split, samples in (("train", 3), ("test", 7), ("query", 3)):
        for home in (tree / split).iterdir():
            names = [
                sorted(p.name for p in (home / folder).iterdir()) for folder in ("vis", "ni", "th")
            ]
            assert names[0] == names[1] == names[2]
            assert len(names[0]) == samples
            for name in names[0]:
                assert NAME.fullmatch(name)[1] == home.name


def test_queries_repeat_test_files_and_show_two_views(tree):
    for home in (tree / "query").iterdir():
        views = set()
        for path in home.rglob("*.jpg"):
            assert (
                path.read_bytes() == (tree / "test" / path.relative_to(tree / "query")).read_bytes()
            )
            views.add(NAME.fullmatch(path.name)[2])
        assert len(views) >= 2


@pytest.mark.parametrize(("samples", "queries"), [(2, 2), (3, 2), (4, 2), (16, 6)])
def test_number_of_queries(samples, queries):
    assert len(rendered_tree.query_samples(samples)) == queries


def test_files_are_colour_jpegs_of_the_asked_size(tree):
    for path in tree.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 128))


def test_flare_label_survives_the_jpeg(tmp_path):
    splits = {"train": list(range(10))}
    for identity in range(4):
        rendered_tree.write_identity(str(tmp_path), splits, 0, identity, (256, 128), {})
        for number, folder in enumerate(("vis", "ni", "th")):
            paths = sorted((tmp_path / "train" / f"{identity + 1:04d}" / folder).iterdir())
            for path in paths:
                sample = int(NAME.fullmatch(path.name)[5]) - 1
                flared = rendered_tree.renderer.render(0, identity, sample).flared
                share = (np.asarray(Image.open(path).convert("L")) >= 251).mean()
                assert (share > 0.05) == (number < 2 and flared[number])


def test_flare_has_its_share_of_samples_and_of_pixels(tree, tmp_path):
    """And every sample without flare in both has the same bytes; the record names what differs."""
    options = {"flare_share": 1.0, "flare_saturated": (0.3, 0.35)}
    rendered_tree.write_tree(tmp_path / "set", **SMALL, **options, workers=1)
    record = json.loads((tmp_path / "set" / "rendered.json").read_text())
    assert (record["flare_share"], record["flare_saturated"]) == (1.0, [0.3, 0.35])
    assert "flare_share" not in json.loads((tree / "rendered.json").read_text())
    before, after = contents(tree), contents(tmp_path / "set")
    thermal = {name for name in before if "/th/" in name}
    assert all(before[name] == after[name] for name in thermal)
    for sample in ("train/0001", "train/0002", "train/0003"):
        shares = [
            [
                (np.asarray(Image.open(path).convert("L")) >= 251).mean()
                for path in sorted((tmp_path / "set" / sample / folder).iterdir())
            ]
            for folder in ("vis", "ni")
        ]
        assert (np.max(shares, axis=0) > 0.25).all()


@pytest.mark.parametrize("saturated", [(0.3, 0.2), (0.0, 0.1), (0.5, 1.0)])
def test_impossible_flare_is_one_sentence(tmp_path, saturated):
    with pytest.raises(UserError, match="flare_saturated between 0 and 1"):
        rendered_tree.write_tree(tmp_path / "set", **SMALL, flare_saturated=saturated)


def test_worker_count_changes_no_byte(tree, tmp_path):
    rendered_tree.write_tree(tmp_path / "set", **SMALL, workers=2)
    assert contents(tmp_path / "set") == contents(tree)


def test_seed_changes_every_picture(tree, tmp_path):
    rendered_tree.write_tree(tmp_path / "set", **SMALL, workers=1, seed=1)
    first, second = (
        {p.read_bytes() for p in root.rglob("*.jpg")} for root in (tree, tmp_path / "set")
    )
    assert not first & second


def test_an_identity_keeps_its_pictures_when_the_set_grows(tree, tmp_path):
    rendered_tree.write_tree(tmp_path / "set", **(SMALL | {"train_samples": 4}), workers=1)
    grown = contents(tmp_path / "set")
    kept = {name: data for name, data in contents(tree).items() if name.endswith(".jpg")}
    assert kept.items() <= grown.items()


def test_a_second_call_returns_at_once(tree, monkeypatch):
    monkeypatch.setattr(rendered_tree.renderer, "render", None)
    rendered_tree.write_tree(tree, **SMALL, workers=1)


def test_an_empty_folder_is_filled(tmp_path):
    rendered_tree.write_tree(tmp_path, **(SMALL | {"train_identities": 1}), workers=1)
    assert json.loads((tmp_path / "rendered.json").read_text())["train_identities"] == 1


def test_another_set_in_the_folder_is_an_error_and_stays(tree):
    before = contents(tree)
    with pytest.raises(UserError, match=r"seed = 0 instead of 5.*choose another folder"):
        rendered_tree.write_tree(tree, **SMALL, seed=5, workers=1)
    assert contents(tree) == before


def test_an_older_renderer_is_another_set(tree, tmp_path, monkeypatch):
    rendered_tree.write_tree(tmp_path / "set", **SMALL, workers=1)
    monkeypatch.setattr(rendered_tree.renderer, "VERSION", -1)
    with pytest.raises(UserError, match="renderer = "):
        rendered_tree.write_tree(tmp_path / "set", **SMALL, workers=1)


@pytest.mark.parametrize("record", [None, "", "[]", "{"])
def test_files_of_the_user_are_never_touched(tmp_path, record):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    if record is not None:
        (tmp_path / "rendered.json").write_text(record)
    with pytest.raises(UserError, match="choose another folder"):
        rendered_tree.write_tree(tmp_path, **SMALL, workers=1)
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rendered_tree, "write_identity", fail)
    with pytest.raises(UserError, match="No space left on device"):
        rendered_tree.write_tree(tmp_path / "set", **SMALL, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_root_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write the rendered set"):
        rendered_tree.write_tree(tmp_path / "file" / "set", **SMALL, workers=1)
    with pytest.raises(UserError, match="which is a file"):
        rendered_tree.write_tree(tmp_path / "file", **SMALL, workers=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"test_samples": 1}, "test_samples >= 2, got 1"),
        ({"train_identities": -1}, "train_identities >= 0, got -1"),
        ({"train_identities": 0, "test_identities": 0}, "got 0"),
        ({"train_identities": 9999}, "got 10001"),
        ({"train_samples": 1000}, "got 1000 and 7"),
        ({"size": (128, 128)}, "got 128 x 128"),
        ({"size": (258, 128)}, "got 258 x 128"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
        ({"infrared_follows_paint": 1.5}, "in 0..1, got 1.5"),
    ],
)
def test_impossible_numbers(tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        rendered_tree.write_tree(tmp_path / "set", **(SMALL | {"workers": 1} | wrong))
    assert list(tmp_path.iterdir()) == []


def test_rendering_needs_no_jax():
    code = "import sys, data_tfds.rendered.tree; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
