"""`facenet compile-for` without the TPU compiler, and, marked slow, with it on the recipe."""

import importlib.util
import json

import pytest

from configs import wmveid863
from data_tfds.errors import UserError
from facenet_jax.bench import estimate, hlo, slices
from facenet_jax.commands import compile_for
from tests.bench.hlo_test import TEXT
from tests.support import tiny_run as tiny

ON = estimate.Target("v5e:4", type("Mesh", (), {"size": 4}), slices.CHIPS["v5e"], 1000, 2e14, "x 1")


def test_a_slice_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match=r"'v9:1' is no known slice; choose one of v5e:1, v5e:4"):
        compile_for.main(["v9:1"])
    with pytest.raises(UserError, match="Name a slice"):
        compile_for.main(["--what=embed"])


def test_without_the_compiler_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refusal:
        compile_for.main(["v5e:1"])
    assert "pip install -e '.[tpu]' -c constraints.txt" in str(refusal.value)
    assert "no TPU is needed" in str(refusal.value)


def test_every_slice_is_of_a_known_chip():
    assert {slices.chip(name) for name in slices.SLICES} == set(slices.CHIPS.values())


def test_the_figures_of_a_program():
    """5 steps in a dispatch: what stands outside their loop counts a fifth. 4,424 cycles."""
    program = hlo.Program(TEXT, steps=5)
    cycles = 7 + 5 + 11 * 100 + 5 * 100 + 9 + 3
    found = estimate.times(program, batch=8, steps=5, flops=1000, on=ON)
    seconds = cycles / 5 / 1.5e9
    assert found["step_seconds"] == pytest.approx(seconds)
    assert found["samples_per_second"] == pytest.approx(8 / seconds)
    assert found["share_of_peak"] == pytest.approx(1000 * 8 / 4 / seconds / 2e14)
    assert found["moves_share"] == pytest.approx(10 / cycles)
    sent = 2 * 4 * 8 * 4 * 3 / 4 * (11 + 5) / 5  # an all-reduce sends 2 (D - 1) / D of its bytes
    part = 2 * 8 * 4 * 3 / 5  # and a reduce-scatter D - 1 times what a device is left with
    assert found["collective_bytes"] == pytest.approx({"all-reduce": sent, "reduce-scatter": part})
    assert found["collective_seconds"] == pytest.approx((sent + part) / 100e9)
    assert found["background_bytes"] == pytest.approx(224 / 5)
    assert found["background_seconds"] == pytest.approx(224 / 5 / 819e9)
    first = found["costliest"][0]
    assert first["source"] == "facenet_jax/models/layers.py:42 Block.__call__.heads"
    assert (first["runs"], first["result"]) == (11, "f32[4,8]")
    json.dumps(found)


def test_layers_are_unrolled_as_on_a_tpu():
    """Whatever this machine has; what a config asks for stays, and the config itself."""
    c = tiny.config("three_stream")
    assert c.model.unroll == -1
    assert estimate.as_on_a_tpu(c).model.unroll == 0
    assert c.model.unroll == -1
    c.model.unroll = 1
    assert estimate.as_on_a_tpu(c).model.unroll == 1


def test_a_report_says_whose_figures_these_are():
    known = {"what": "train", "slice": "v5e:4", "devices": 4, "compiler": "libtpu 0"}
    known |= {"memory_limit": 10**9, "peak_flops_per_second": 2e14}
    refused = estimate.report(known | {"fits": False, "refused": "RESOURCE_EXHAUSTED: 2 of 1"})
    assert "by the estimate of libtpu 0" in refused
    assert "DOES NOT FIT in 1.00 GB a device: RESOURCE_EXHAUSTED: 2 of 1" in refused
    figures = estimate.times(hlo.Program(TEXT, 5), 8, 5, 1000, ON)
    held = {"bytes": {"temporaries": 10**8}, "fits": True, "compile_seconds": 1.0, "remat": "dots"}
    text = estimate.report(known | figures | held | {"training_steps": 36_000})
    assert "fits: 100.00 MB of 1.00 GB a device (temporaries 100.00 MB)" in text
    assert "config.model.remat dots" in text
    assert "facenet_jax/models/layers.py:42 Block.__call__.heads: exp to f32[4,8]" in text


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs .[tpu]"
)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "what", "batch", "share"),
    [
        ("v5e:1", "embed", 64, 0.48),
        ("v5e:1", "train", 32, 0.35),
        ("v5e:4", "embed", 256, 0.47),
        ("v5e:4", "train", 32, 0.30),
    ],
)
def test_the_recipe_fits_a_v5e_and_uses_it(name, what, batch, share):
    """By the compiler's estimate: share of its own peak, and copies at most 5 %."""
    found = estimate.estimate(wmveid863.get_config(), what, estimate.target(name))
    print(estimate.report(found))
    assert found["batch"] == batch
    assert found["fits"]
    assert found["share_of_peak"] >= share
    assert found["moves_share"] <= 0.05
