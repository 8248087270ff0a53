"""Exported networks: they give the network's embeddings, without this package."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load

from data_tfds.errors import UserError
from facenet_jax import api, commands, export
from facenet_jax.export import card, formats, program
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny

SPEC = DataSpec(tiny.MODALITIES, tiny.SIZE, tiny.IDENTITIES, {"camera": 4})

ALONE = """
import sys

class Refused:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("facenet_jax", "data_tfds", "flax"):
            raise ImportError(name)

sys.meta_path.insert(0, Refused())
"""

needs_flatbuffers = pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None, reason="needs .[export]"
)
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("jax2onnx") is None, reason="needs .[export]"
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """FACENet, whose masks matter; no checkpoint."""
    c = tiny.config()
    model = tiny.build(c, SPEC)
    return api.Network(c, model, tiny.variables(model), 7, tmp_path_factory.mktemp("workdir"))


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    export.write(network, out, "stablehlo", [tiny.MODALITIES, ("thermal",)])
    return out


def run(code: str, folder: pathlib.Path, *arguments: str) -> str:
    """What a program prints that runs in a process of its own, in a folder."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_flatbuffers
def test_the_card_runs_in_its_folder_with_jax_alone(network, folder):
    """Its example, and the same file on images of which the network's embeddings are known."""
    (example,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    one = program.Program.of(network, tiny.MODALITIES)
    arguments = one.some(3, seed=5)
    np.savez(folder / "arguments.npz", **dict(zip(one.names, arguments, strict=True)))
    more = (
        "given = np.load('arguments.npz')\n"
        f"np.save('found.npy', program.call(*(given[name] for name in {one.names})))\n"
        "assert 'facenet_jax' not in sys.modules\n"
    )
    assert run(ALONE + example + more, folder) == "(2, 48)"
    pixels, flare = np.stack(arguments[:3]), arguments[3].T
    labels = {"camera": np.full((3, 3), -1, np.int32), "flare": flare}
    expected = network.forward(tiny.MODALITIES)(network.variables, pixels, labels)
    found = np.load(folder / "found.npy")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    plain = network.forward(tiny.MODALITIES)(
        network.variables, pixels, labels | {"flare": np.zeros_like(flare)}
    )
    assert np.abs(found - plain).max() > 1e-3  # flare has a say


@needs_flatbuffers
def test_what_lies_beside_it(network, folder):
    facts = json.loads((folder / "model.json").read_text())
    assert list(facts["files"]) == ["visible+near_infrared+thermal.stablehlo", "thermal.stablehlo"]
    for name, each in facts["files"].items():
        assert each["sha256"] == card.digest((folder / name).read_bytes())
        assert each["largest_difference"] <= program.TOLERANCE
    assert facts["files"]["thermal.stablehlo"]["inputs"] == ["thermal"]
    stored = (folder / "weights.safetensors").read_bytes()
    assert facts["weights"]["sha256"] == card.digest(stored)
    kernel = load(stored)["params/trunk/patch/kernel"]
    np.testing.assert_array_equal(kernel, network.variables["params"]["trunk"]["patch"]["kernel"])
    exported = formats.open_stablehlo((folder / "thermal.stablehlo").read_bytes())
    images = program.Program.of(network, ("thermal",)).some(2)[0]
    expected = network.embed(thermal=images)  # of this size, so nothing is resized
    np.testing.assert_allclose(exported(images), expected, rtol=1e-4, atol=1e-5)


def test_a_file_that_differs_is_not_written(network, tmp_path, monkeypatch):
    spoilt = formats.Format((), lambda one: b"", lambda data: lambda *arguments: np.ones((5, 48)))
    monkeypatch.setitem(formats.FORMATS, "stablehlo", spoilt)
    with pytest.raises(UserError, match=r"for visible, near_infrared, thermal .* not written"):
        export.write(network, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_tolerance_holds(network):
    one = program.Program.of(network, ("thermal",))
    expected = [np.ones((size, 16), np.float32) for size in program.SIZES]
    for factor, fits in ((1 + 0.9e-5, True), (1 + 2e-5, False), (np.nan, False)):

        def opened(images, factor=factor):
            return np.full((len(images), 16), factor)

        if fits:
            assert 0 < program.check(one, opened, expected) <= 1e-5
        else:
            with pytest.raises(UserError, match="was not written"):
                program.check(one, opened, expected)


def test_products_are_in_float32(network):
    c = network.config.copy_and_resolve_references()
    c.model.dtype = "bfloat16"
    half = dataclasses.replace(network, config=c, model=tiny.build(c, SPEC))
    assert program.in_float32(half).config.model.dtype == "float32"
    assert half.config.model.dtype == "bfloat16"
    assert program.in_float32(network) is network


def test_what_cannot_be_exported_is_one_sentence(network, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="has no modalities radar; it takes any of visible"):
        export.write(network, tmp_path, "stablehlo", [("radar",)])
    assert commands.main(["export", str(tmp_path)]) != 0
    assert "config.json" in capsys.readouterr().err
    lacking = formats.FORMATS["onnx"]._replace(packages=("jax3onnx",))
    monkeypatch.setitem(formats.FORMATS, "onnx", lacking)
    with pytest.raises(UserError, match=r"onnx needs jax3onnx, .*facenet_jax\[export\]"):
        export.write(network, tmp_path, "onnx")


@needs_onnx
@pytest.mark.slow
def test_onnx_runs_without_jax(network, tmp_path):
    """jax2onnx puts functions of its own into JAX, so it has a process of its own."""
    code = (
        "from tests.export.export_test import SPEC\n"
        "from tests.support import tiny_run as tiny\n"
        "from facenet_jax import api, export\n"
        "import pathlib, sys\n"
        "c = tiny.config(); model = tiny.build(c, SPEC)\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "network = api.Network(c, model, tiny.variables(model), 7, out)\n"
        "export.write(network, out, 'onnx')\n"
    )
    run(code, tiny.ROOT, str(tmp_path))
    (example,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    one = program.Program.of(network, tiny.MODALITIES)
    np.savez(tmp_path / "a.npz", **dict(zip(one.names, one.some(7, seed=3), strict=True)))
    more = (
        "given = np.load('a.npz')\n"
        f"np.save('found.npy', session.run(None, {{n: given[n] for n in {one.names}}})[0])\n"
        "assert not {'jax', 'facenet_jax'} & set(sys.modules)\n"
    )
    run(ALONE + example + more, tmp_path)
    pixels = np.stack(one.some(7, seed=3)[:3])
    labels = {"camera": np.full((3, 7), -1, np.int32), "flare": one.some(7, seed=3)[3].T}
    expected = network.forward(tiny.MODALITIES)(network.variables, pixels, labels)
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
