"""DINOv2, DINOv3 and CLIP against numbers of their publishers' code."""

import pathlib

import pytest

from scripts import check_parity

HERE = pathlib.Path(__file__).parents[1] / "golden" / "backbones"
NAMES = ("dinov2_tiny", "dinov2_reg4_tiny", "dinov3_tiny", "clip_tiny")


def compared(folder):
    rows = check_parity.check(folder)
    wrong = [(row.name, row.relative) for row in rows if row.status != "ok"]
    assert not wrong
    return {row.name for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_the_numbers_gradients_and_names_of_other_publishers(name):
    found = compared(HERE / name)
    assert sum(row.startswith("gradient norm") for row in found) > 40
    assert {"from timm names", "from hugging_face names"} <= found


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "dinov3_vits16"])
def test_all_numbers(name, shared):
    assert len(compared(shared / "golden" / "backbones" / name)) > 12
