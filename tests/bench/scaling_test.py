import json

import pytest

from scripts import scaling
from tests.support import tiny_run as tiny


@pytest.fixture
def config(tmp_path):
    """The tiny config with four layers."""
    file = tmp_path / "small.py"
    file.write_text(
        "import tiny\n\n\ndef get_config():\n    c = tiny.get_config()\n"
        "    c.model.depth, c.model.mfmp.enabled, c.model.flare_heads = 4, False, False\n"
        "    c.losses.mask_kl = 0.0\n    return c\n"
    )
    return str(file)


def test_what_a_layer_adds_is_added_for_each(config, tmp_path, quick_compile):
    """The figures for four layers, from networks of two and three, are those of four."""
    table = tmp_path / "table.json"
    assert (
        scaling.main(["--config", config, "--devices", "4", "--batch", "8", "--json", str(table)])
        == 0
    )
    (four,) = json.loads(table.read_text())
    assert [four["devices"], four["batch"]] == [4, 8]
    half = {"model__mfmp__enabled": False, "model__flare_heads": False, "losses__mask_kl": 0.0}
    c = tiny.config(model__depth=4, model__unroll=0, **half)
    program = scaling.lowered(c, 8, tiny.make_mesh(4)).compile()
    assert four["GFLOP"] == pytest.approx(program.cost_analysis()["flops"] / 1e9, rel=0.01)
    moved = [x for x in scaling.collectives(program.as_text()) if x.kind == "all-reduce"]
    assert four["all-reduce"] == pytest.approx(sum(x.sent(4) for x in moved) / 1e9, rel=0.01)
    assert four["all-reduce"] > 0
