import json

import pytest

from scripts import scaling
from tests.support import tiny_run as tiny


@pytest.fixture
def config(tmp_path):
    """The tiny baseline with four layers."""
    file = tmp_path / "small.py"
    file.write_text(
        "from tests.support import tiny_run\n\n\n"
        "def get_config():\n"
        "    return tiny_run.config('three_stream', model__depth=4)\n"
    )
    return str(file)


@pytest.mark.slow
def test_what_a_layer_adds_is_added_for_each(config, tmp_path):
    """The figures for four layers, from networks of two and three, are those of four."""
    table = tmp_path / "table.json"
    scaling.main(["--config", config, "--devices", "4", "--batch", "8", "--json", str(table)])
    (four,) = json.loads(table.read_text())
    assert [four["devices"], four["batch"]] == [4, 8]
    c = tiny.config("three_stream", model__depth=4, model__unroll=0)
    program = scaling.lowered(c, 8, tiny.make_mesh(4)).compile()
    assert four["GFLOP"] == pytest.approx(program.cost_analysis()["flops"] / 1e9, rel=0.01)
    moved = [x for x in scaling.collectives(program.as_text()) if x.kind == "all-reduce"]
    assert four["all-reduce"] == pytest.approx(sum(x.sent(4) for x in moved) / 1e9, rel=0.01)
    assert four["all-reduce"] > 0


def test_the_images_are_shapes():
    """Replicated over 256 devices they would not fit; a step is lowered on shapes all the same."""
    c = tiny.config("three_stream", data__image_size=(4096, 2048), model__patch=1024)
    assert scaling.lowered(c, 8, tiny.make_mesh(2)).in_tree.num_leaves > 10
